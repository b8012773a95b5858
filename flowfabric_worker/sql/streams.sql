-- Frames that running attempts append, and that readers follow.

-- Appending ---------------------------------------------------------------------------------------------------------

-- Return the failure of a holder that may not append to an attempt, or null if the holder may.
CREATE FUNCTION fn.append_refused(f fn.found, of_attempt bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN f.failure IS NOT NULL THEN f.failure
    WHEN fn.of_attempt((f.x).attempt, 1) <> fn.ascii(of_attempt) THEN fn.failure('stale_lease', fn.bytes((f.x).uuid)) END
$$;

-- Append the frames of an item that have no reply yet. Return the replies to all of its frames, and the context.
CREATE FUNCTION fn.append_new(
  f fn.found, s fn.stream, frames fn.frame[], answers bytea[], args bytea[], at int
) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  c fn.context := f.c;
  x db.executions := f.x;
  frame fn.frame;
  taken text := '';
  first_id bytea;
  first_count bytea := fn.bytes(fn.num(s.state[4]) + 1);
  version bytea := CASE WHEN args[at + 5] <> '' THEN fn.bytes(fn.num(s.state[12]) + 1) ELSE '' END;
  is_stale boolean := args[at + 5] <> ''
    AND (array_remove(answers, NULL) <> '{}' OR s.state[12] <> args[at + 5]);
BEGIN
  IF x.stream IS NULL THEN
    x.stream := '1';
    c := fn.put(c, f.was, x);
  END IF;
  FOR i IN 1 .. cardinality(frames) LOOP
    frame := frames[i];
    IF answers[i] IS NULL THEN
      -- The document of a stale item was not merged from the present one and the new frames alone.
      answers[i] := CASE WHEN is_stale THEN fn.failure('stale_summary_version', fn.bytes(x.uuid))
        ELSE fn.frame_refused(x.uuid, s, frame, args[at + 7], args[at + 8]) END;
      IF answers[i] IS NULL THEN
        s := fn.append_one(c, x.uuid, s, frame);
        first_id := coalesce(first_id, s.last);
        answers[i] := fn.answer(
          'ok', s.last, s.state[4], CASE frame.mode WHEN 'summary' THEN s.state[12] ELSE '' END
        );
        taken := taken || '1';
        CONTINUE;
      END IF;
    END IF;
    taken := taken || '0';
  END LOOP;
  IF s.is_changed THEN
    IF (frames[1]).seq = '' THEN
      s.calls := fn.remember(s.calls, args[at + 3], fn.bytes(fn.id_ms(first_id)), fn.bytes(fn.id_n(first_id)), first_count,
        version, fn.bytes(taken));
    END IF;
    s.document := CASE WHEN args[at + 5] <> '' THEN args[at + 6] END;
    PERFORM fn.close_append(c, x, s);
  END IF;
  b.c := c; b.items := ARRAY[fn.replies(VARIADIC fn.reply('frames'::text) || answers)];
  RETURN b;
END $$;

-- Append the frames of the item whose arguments begin at `at`, and return its reply.
CREATE FUNCTION fn.append(c fn.context, args bytea[], at int) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  f fn.found := fn.load(c, fn.id(args[at]), true);
  s fn.stream;
  frames fn.frame[] := fn.frames_of(args[at + 4]);
  answers bytea[];
  failure bytea := f.failure;
BEGIN
  b.c := c;
  IF failure IS NULL THEN
    s := fn.load_stream(c, f.x, args[at + 2]);
    failure := s.failure;
  END IF;
  IF failure IS NOT NULL THEN
    b.items := ARRAY[failure];
    RETURN b;
  END IF;
  answers := fn.recall_frames(c, f.x, s, frames, args[at + 3], args[at + 1]);
  IF array_position(answers, NULL) IS NOT NULL THEN
    f := fn.fenced(c, fn.id(args[at]), args[at + 1], NULL, NULL);
    b.c := f.c;
    failure := fn.append_refused(f, args[at + 2]);
    IF failure IS NULL THEN
      s.state[1] := fn.bytes(fn.attempt_of(args[at + 1]));
      RETURN fn.append_new(f, s, frames, answers, args, at);
    ELSIF array_remove(answers, NULL) = '{}' THEN
      b.items := ARRAY[failure];
      RETURN b;
    END IF;
    answers := array_replace(answers, NULL, failure);
  END IF;
  b.items := ARRAY[fn.replies(VARIADIC fn.reply('frames'::text) || answers)];
  RETURN b;
END $$;

-- append_frames: append frames to the streams of executions' present attempts.
-- Arguments per item: uuid, fence, index of the attempt, call, frames (see fn.frames_of), the version of the summary into
-- which summary frames were merged and the merged document, or '' and '', most durable frames, most bytes of them.
-- The frames of an item have growing numbers or none has one; they are all summary frames or none is one.
-- Replies per item: 'frames', then per frame: 'ok', id, count, version of the summary or ''; or a failure.
-- Errors per item: those of fn.fenced. Errors per frame: those too, frame_conflict, stream_full, stale_summary_version.
CREATE FUNCTION fn.append_frames(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  b fn.batch;
  answers bytea[] := '{}';
BEGIN
  c := fn.lock_items(c, args, 9, false);
  FOR at IN 1 .. cardinality(args) BY 9 LOOP
    IF NOT fn.has_space(c, cardinality(answers)) THEN
      answers := answers || fn.failure('batch_full');
      CONTINUE;
    END IF;
    c.work := c.work - 4 - cardinality(fn.frames_of(args[at + 4])) - fn.weight(VARIADIC args[at : at + 8]);
    BEGIN
      b := fn.append(c, args, at);
    EXCEPTION WHEN data_exception THEN
      b.c := c; b.items := ARRAY[fn.set_aside(c, fn.id(args[at]), 'record')];
    END;
    c := b.c;
    answers := answers || b.items;
  END LOOP;
  c := fn.flush(c);
  RETURN fn.replies(VARIADIC answers);
END $$;

-- Reading -----------------------------------------------------------------------------------------------------------

-- Return the newest frame of a mode that was dropped from an attempt behind `first` and `begin`, and the first that is kept,
-- or ''; null if none was dropped.
CREATE FUNCTION fn.dropped(c fn.context, execution uuid, of_mode text, newest bytea, first bytea, begin_id bytea)
RETURNS bytea[] LANGUAGE plpgsql AS $$
DECLARE
  oldest record;
  oldest_id bytea;
  gone bytea;
  is_kept boolean;
BEGIN
  IF newest = '' THEN
    RETURN NULL;
  END IF;
  SELECT ms, n, before INTO oldest FROM db.frames
    WHERE p = c.p AND uuid = execution AND mode = of_mode AND mode <> 'durable' ORDER BY ms, n LIMIT 1;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  oldest_id := fn.bytes(oldest.ms || '-' || oldest.n);
  is_kept := NOT fn.is_older(newest, oldest_id);
  gone := CASE WHEN is_kept THEN coalesce(oldest.before, '0-0') ELSE newest END;
  IF fn.is_older(gone, first) OR fn.is_older(gone, begin_id) THEN
    RETURN NULL;
  END IF;
  RETURN ARRAY[gone, CASE WHEN is_kept THEN oldest_id ELSE '' END];
END $$;

-- What a read of frames found: the replies for the frames, whether there are more, the newest that was dropped, and the
-- first that is kept behind it.
CREATE FUNCTION fn.gap(c fn.context, execution uuid, s fn.stream, begin_id bytea, left_out bytea) RETURNS bytea[]
LANGUAGE plpgsql AS $$
DECLARE
  gone bytea := '';
  kept bytea := '';
  each bytea[];
BEGIN
  IF left_out <> 'summary' THEN
    each := fn.dropped(c, execution, 'summary', s.state[11], s.state[2], begin_id);
  END IF;
  IF each IS NOT NULL THEN
    gone := each[1]; kept := each[2];
  END IF;
  IF left_out <> 'best_effort' THEN
    each := fn.dropped(c, execution, 'best_effort', s.state[10], s.state[2], begin_id);
    IF each IS NOT NULL THEN
      gone := CASE WHEN gone = '' OR fn.is_older(gone, each[1]) THEN each[1] ELSE gone END;
      kept := CASE WHEN kept = '' OR each[2] <> '' AND fn.is_older(each[2], kept) THEN each[2] ELSE kept END;
    END IF;
  END IF;
  RETURN ARRAY[gone, kept];
END $$;

-- Return up to `most` frames between two ids, and whether there are more (in `count`).
CREATE FUNCTION fn.frames_between(
  c fn.context, execution uuid, begin_id bytea, end_id bytea, most bigint, left_out bytea
) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  f db.frames;
  size bigint := 0;
BEGIN
  b.items := '{}'; b.count := 0;
  FOR f IN
    SELECT * FROM db.frames WHERE p = c.p AND uuid = execution
      AND (ms, n) >= (fn.id_ms(begin_id), fn.id_n(begin_id)) AND (ms, n) <= (fn.id_ms(end_id), fn.id_n(end_id))
      AND mode <> fn.ascii(left_out) ORDER BY ms, n LIMIT most + 1
  LOOP
    IF cardinality(b.items) >= most OR size >= 524288 THEN
      b.count := 1;
      EXIT;
    END IF;
    size := size + octet_length(f.frame) + octet_length(f.payload);
    b.items := b.items || fn.answer(VARIADIC
      ARRAY[fn.bytes(f.ms || '-' || f.n), 'frame'::bytea, f.frame, 'payload', f.payload]
      || CASE WHEN f.before IS NULL THEN '{}'::bytea[] ELSE ARRAY['before'::bytea, f.before] END
      || CASE WHEN f.at IS NULL THEN '{}'::bytea[] ELSE ARRAY['at'::bytea, f.at] END);
  END LOOP;
  RETURN b;
END $$;

-- Register a process to be woken by the next frame or end. Return '1', or '' if too many processes are registered.
CREATE FUNCTION fn.wait_for_frames(c fn.context, execution uuid, topic bytea) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  parts bytea[] := coalesce(
    fn.unpack((SELECT readers FROM db.streams WHERE p = c.p AND uuid = execution)), '{}'
  );
  known bytea[] := ARRAY[topic, fn.bytes(c.now + fn.fallback() + 1000)];
BEGIN
  FOR i IN 1 .. cardinality(parts) - 1 BY 2 LOOP
    IF parts[i] <> topic AND fn.is_whole(parts[i + 1]) AND fn.num(parts[i + 1]) > c.now THEN
      known := known || parts[i : i + 1];
    END IF;
  END LOOP;
  IF cardinality(known) > 128 THEN
    RETURN '';
  END IF;
  INSERT INTO db.streams (p, uuid, readers) VALUES (c.p, execution, fn.pack(VARIADIC known))
    ON CONFLICT (p, uuid) DO UPDATE SET readers = excluded.readers;
  RETURN '1';
END $$;

-- read_stream: read frames of an attempt between two ids, both included, or wait for the next one.
-- Arguments: uuid, pack{namespace}, index of the attempt, first id, last id, limit, the mode to leave out or '', topic
-- to wake if there is nothing yet, or ''.
-- Replies: 'ok', now, when the stream was closed or '', the reason, index of the present attempt or '', '1' if the execution
-- has ended, the next due moment of the execution or '', '1' if there are more frames, the newest frame that was dropped
-- between the ids or '', the first that is kept behind it or '', '1' if the topic is registered, the frames. A frame is:
-- id, field, value, field, value.
-- Errors: execution_not_found.
CREATE FUNCTION fn.read_stream(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found := fn.load_now(c, fn.id(args[1]), args[2]);
  x db.executions := f.x;
  s fn.stream;
  b fn.batch;
  gap bytea[] := ARRAY[''::bytea, ''];
  closing text[];
  begin_id bytea;
  told text := '';
BEGIN
  IF f.failure IS NULL AND fn.damage_in_history(x) IS NOT NULL THEN
    f.failure := fn.set_aside(c, x.uuid, fn.damage_in_history(x));
  END IF;
  IF f.failure IS NOT NULL THEN
    RETURN f.failure;
  END IF;
  s := fn.load_stream(c, x, args[3]);
  IF s.failure IS NOT NULL THEN
    RETURN s.failure;
  END IF;
  closing := fn.why_attempt_closed(x, args[3]);
  b.items := '{}'; b.count := 0;
  IF s.state[2] <> '' THEN
    begin_id := CASE WHEN fn.is_older(args[4], s.state[2]) THEN s.state[2] ELSE args[4] END;
    gap := fn.gap(c, x.uuid, s, begin_id, args[7]);
    b := fn.frames_between(
      c, x.uuid, begin_id, CASE WHEN fn.is_older(s.state[3], args[5]) THEN s.state[3] ELSE args[5] END,
      least(fn.num(args[6]), 200), args[7]
    );
  END IF;
  IF cardinality(b.items) = 0 AND closing IS NULL AND gap[1] = '' AND args[8] <> '' THEN
    IF x.stream IS NULL THEN
      x.stream := '1';
      c := fn.put(f.c, f.was, x);
    END IF;
    told := fn.wait_for_frames(c, x.uuid, args[8]);
  END IF;
  x := fn.derive(x);
  RETURN fn.replies(
    fn.reply('ok'::text), fn.reply(c.now::text), fn.reply(coalesce(closing[2], '')), fn.reply(coalesce(closing[1], '')),
    fn.reply(coalesce(fn.of_attempt(x.attempt, 1), '')), fn.reply(CASE WHEN x.state LIKE 't%' THEN '1'::text ELSE '' END),
    fn.reply(CASE WHEN x.due_in IN ('d', 'y') THEN x.due::text ELSE '' END),
    fn.reply(CASE WHEN b.count > 0 THEN '1'::text ELSE '' END), fn.reply(gap[1]), fn.reply(gap[2]), fn.reply(told),
    fn.replies(VARIADIC b.items)
  );
END $$;

-- read_summary: read the summary document of an attempt.
-- Arguments: uuid, pack{namespace}, index of the attempt.
-- Replies: 'ok', version, when it was created, when it was changed, the document; or 'none'.
-- Errors: execution_not_found.
CREATE FUNCTION fn.read_summary(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found := fn.load_now(c, fn.id(args[1]), args[2]);
  s fn.stream;
  document bytea;
BEGIN
  IF f.failure IS NOT NULL THEN
    RETURN f.failure;
  END IF;
  s := fn.load_stream(c, f.x, args[3]);
  IF s.failure IS NOT NULL THEN
    RETURN s.failure;
  ELSIF s.state[12] = '0' THEN
    RETURN fn.answer('none');
  END IF;
  SELECT summary INTO document FROM db.stream_attempts WHERE p = c.p AND uuid = (f.x).uuid AND attempt = args[3];
  IF document IS NULL THEN
    RETURN fn.set_aside(c, (f.x).uuid, 'summary');
  END IF;
  RETURN fn.answer('ok', s.state[12], s.state[13], s.state[14], document);
END $$;
