-- How frames are appended: the state of a stream, the numbers that make an append repeatable, and how many frames are kept.
--
-- The state of the stream of an attempt, packed in this order: 1 the id of the attempt; 2 the first and 3 the newest id of a
-- frame; 4 the number of frames; 5 the number of durable frames and 6 their bytes; 7 the highest number of a frame; 8 the
-- rate of live frames in Hz, and 9 when it was measured; the newest ids 10 of live frames and 11 of summary frames; 12 the
-- version of the summary, and when it was 13 created and 14 changed.

-- State -------------------------------------------------------------------------------------------------------------

-- Return whether the state of an attempt's stream can be used.
CREATE FUNCTION fn.is_stream_state(parts bytea[]) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce(
    cardinality(parts) >= 14 AND fn.is_whole(parts[4]) AND fn.is_whole(parts[5]) AND fn.is_whole(parts[6])
    AND fn.is_whole(parts[12]) AND fn.ascii(parts[7]) ~ '^[0-9]{0,18}$'
    AND fn.ascii(parts[8]) ~ '^([0-9.]+(e[+-]?[0-9]+)?)?$' AND fn.ascii(parts[9]) ~ '^[0-9]{0,15}$'
    AND (SELECT bool_and(fn.ascii(id) ~ '^([0-9]{1,18}-[0-9]{1,18})?$')
      FROM unnest(ARRAY[parts[2], parts[3], parts[10], parts[11]]) AS id),
    false
  )
$$;

-- Lock and return the stream of an attempt as it is stored. Its failure is set if it is damaged.
CREATE FUNCTION fn.load_stream(c fn.context, x db.executions, of_attempt bytea) RETURNS fn.stream LANGUAGE plpgsql AS $$
DECLARE
  s fn.stream;
  known db.streams;
  packed bytea;
BEGIN
  IF x.stream IS NOT NULL THEN
    SELECT * INTO known FROM db.streams WHERE p = c.p AND uuid = x.uuid;
    SELECT state INTO packed FROM db.stream_attempts WHERE p = c.p AND uuid = x.uuid AND attempt = of_attempt;
  END IF;
  s.attempt := of_attempt; s.is_changed := false;
  s.state := CASE WHEN packed IS NULL
    THEN ARRAY['', '', '', '0', '0', '0', '', '', '', '', '', '0', '', '']::bytea[] ELSE fn.unpack(packed) END;
  s.last := coalesce(known.last, '0-0'); s.live := coalesce(known.live, '0-0'); s.deltas := coalesce(known.deltas, '0-0');
  s.calls := known.calls; s.live_count := coalesce(known.live_count, 0); s.delta_count := coalesce(known.delta_count, 0);
  IF NOT fn.is_stream_state(s.state)
    OR NOT (SELECT bool_and(fn.ascii(id) ~ '^[0-9]{1,18}-[0-9]{1,18}$') FROM unnest(ARRAY[s.last, s.live, s.deltas]) AS id) THEN
    s.failure := fn.set_aside(c, x.uuid, 'stream');
  END IF;
  RETURN s;
END $$;

-- Return the frames of an item.
CREATE FUNCTION fn.frames_of(packed bytea) RETURNS fn.frame[] LANGUAGE sql IMMUTABLE AS $$
  SELECT ARRAY(
    SELECT ROW(parts[i], parts[i + 1], parts[i + 2], parts[i + 3], parts[i + 4], parts[i + 5])::fn.frame
    FROM generate_series(1, cardinality(parts), 6) AS i ORDER BY i
  ) FROM fn.unpack(packed) AS parts
$$;

-- Repeats -----------------------------------------------------------------------------------------------------------

-- Return under which name the reply to a numbered frame is kept. Of frames that are not durable the newest 1024 are.
CREATE FUNCTION fn.place_of_reply(of_attempt bytea, frame fn.frame) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT of_attempt || CASE frame.mode WHEN 'durable' THEN '.'::bytea || frame.seq
    ELSE '~'::bytea || fn.bytes(fn.num(frame.seq) % 1024) END
$$;

-- Return the reply to a frame that was appended before under its number; null if it is new. The id is '' in a reply that is
-- no longer kept.
CREATE FUNCTION fn.recall_numbered(c fn.context, x db.executions, s fn.stream, frame fn.frame) RETURNS bytea
LANGUAGE plpgsql AS $$
DECLARE
  kept text[];
BEGIN
  IF frame.seq = '' OR s.state[7] = '' OR fn.num(frame.seq) > fn.num(s.state[7]) THEN
    RETURN NULL;
  END IF;
  SELECT string_to_array(fn.ascii(reply), '|') INTO kept FROM db.stream_replies
    WHERE p = c.p AND uuid = x.uuid AND place = fn.place_of_reply(s.attempt, frame);
  IF kept[2] = fn.ascii(frame.seq) AND kept[1] = fn.ascii(frame.digest) THEN
    RETURN fn.answer('ok', fn.bytes(kept[3]), fn.bytes(kept[4]), fn.bytes(kept[5]));
  ELSIF kept[2] ~ '^[0-9]{1,18}$' AND kept[2]::bigint > fn.num(frame.seq) THEN
    RETURN fn.answer('ok', '', '', '');
  END IF;
  RETURN fn.failure('frame_conflict', fn.bytes(x.uuid), frame.seq);
END $$;

-- Return the replies of an earlier call to frames without numbers, null for those that it did not append.
CREATE FUNCTION fn.recall_call(s fn.stream, call_id bytea, count int) RETURNS bytea[] LANGUAGE plpgsql AS $$
DECLARE
  before bytea[] := fn.recall(s.calls, call_id);
  answers bytea[] := array_fill(NULL::bytea, ARRAY[count]);
  taken int := 0;
BEGIN
  FOR i IN 1 .. least(count, coalesce(octet_length(before[5]), 0)) LOOP
    IF substring(before[5] FROM i FOR 1) = '1' THEN
      answers[i] := fn.answer(
        'ok', before[1] || '-'::bytea || fn.bytes(fn.num(before[2]) + taken), fn.bytes(fn.num(before[3]) + taken),
        CASE WHEN before[4] = '' THEN '' ELSE fn.bytes(fn.num(before[4]) + taken) END
      );
      taken := taken + 1;
    END IF;
  END LOOP;
  RETURN answers;
END $$;

-- Return the replies to those frames of an item that its attempt appended before, null for the others.
CREATE FUNCTION fn.recall_frames(c fn.context, x db.executions, s fn.stream, frames fn.frame[], call_id bytea, of_fence bytea)
RETURNS bytea[] LANGUAGE plpgsql AS $$
DECLARE
  answers bytea[] := array_fill(NULL::bytea, ARRAY[cardinality(frames)]);
BEGIN
  IF s.state[1] <> fn.bytes(fn.attempt_of(of_fence)) THEN
    RETURN answers;
  ELSIF (frames[1]).seq = '' THEN
    RETURN fn.recall_call(s, call_id, cardinality(frames));
  END IF;
  FOR i IN 1 .. cardinality(frames) LOOP
    answers[i] := fn.recall_numbered(c, x, s, frames[i]);
  END LOOP;
  RETURN answers;
END $$;

-- Appending ---------------------------------------------------------------------------------------------------------

-- Return the id of the next frame. Ids grow also when the clock is set back.
CREATE FUNCTION fn.next_id(c fn.context, last bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN fn.id_ms(last) >= c.now THEN fn.bytes(fn.id_ms(last) || '-' || (fn.id_n(last) + 1))
    ELSE fn.bytes(c.now || '-0') END
$$;

-- Return a stream that knows how many live frames are kept after one more was appended: twice as many as arrive in `ttl` at
-- the present rate, within the bounds of the frame. The rate is a moving average in which the newest frame has the weight
-- alpha.
CREATE FUNCTION fn.with_live_bound(c fn.context, s fn.stream, packed bytea) RETURNS fn.stream LANGUAGE plpgsql AS $$
DECLARE
  config bytea[] := fn.unpack(packed);
  seconds double precision := greatest(fn.num(config[1]), 1) / 1000.0::double precision;
  least_kept bigint := fn.num(config[2]);
  alpha double precision := fn.ascii(config[4])::double precision;
  rate double precision := least_kept / (2 * seconds);
BEGIN
  IF s.state[8] <> '' THEN
    rate := alpha * 1000 / greatest(c.now - fn.num(s.state[9]), 1) + (1 - alpha) * fn.ascii(s.state[8])::double precision;
  END IF;
  s.state[8] := fn.bytes(rate::text); s.state[9] := fn.bytes(c.now);
  s.bound := greatest(least_kept, least(fn.num(config[3]), ceil(rate * seconds * 2)::bigint));
  RETURN s;
END $$;

-- Append one frame, and return the stream that has it.
CREATE FUNCTION fn.append_one(c fn.context, execution uuid, s fn.stream, frame fn.frame) RETURNS fn.stream
LANGUAGE plpgsql AS $$
DECLARE
  id bytea := fn.next_id(c, s.last);
BEGIN
  INSERT INTO db.frames (p, uuid, ms, n, mode, frame, payload, before, at) VALUES (
    c.p, execution, fn.id_ms(id), fn.id_n(id), fn.ascii(frame.mode), frame.head, frame.payload,
    CASE frame.mode WHEN 'summary' THEN s.deltas WHEN 'best_effort' THEN s.live END,
    CASE WHEN fn.id_ms(id) <> c.now THEN fn.bytes(c.now) END
  ) ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN
    PERFORM fn.damaged();
  END IF;
  s.last := id; s.state[3] := id;
  s.state[2] := coalesce(nullif(s.state[2], ''), id);
  s.state[4] := fn.bytes(fn.num(s.state[4]) + 1);
  IF frame.mode = 'summary' THEN
    s.deltas := id; s.state[11] := id; s.delta_count := s.delta_count + 1;
    s.state[12] := fn.bytes(fn.num(s.state[12]) + 1);
  ELSIF frame.mode = 'best_effort' THEN
    s.live := id; s.state[10] := id; s.live_count := s.live_count + 1;
    s := fn.with_live_bound(c, s, frame.live);
  ELSE
    s.state[5] := fn.bytes(fn.num(s.state[5]) + 1);
    s.state[6] := fn.bytes(fn.num(s.state[6]) + octet_length(frame.payload));
  END IF;
  IF frame.seq <> '' THEN
    s.state[7] := frame.seq;
    INSERT INTO db.stream_replies (p, uuid, place, reply) VALUES (
      c.p, execution, fn.place_of_reply(s.attempt, frame), fn.bytes(concat_ws('|',
        fn.ascii(frame.digest), fn.ascii(frame.seq), fn.ascii(id), fn.ascii(s.state[4]),
        CASE frame.mode WHEN 'summary' THEN fn.ascii(s.state[12]) ELSE '' END))
    ) ON CONFLICT (p, uuid, place) DO UPDATE SET reply = excluded.reply;
  END IF;
  s.is_changed := true;
  RETURN s;
END $$;

-- Return the failure of a frame that cannot be appended, or null.
CREATE FUNCTION fn.frame_refused(execution uuid, s fn.stream, frame fn.frame, most_frames bytea, most_bytes bytea)
RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN frame.mode <> 'durable' THEN NULL
    WHEN fn.num(s.state[5]) >= fn.num(most_frames)
      THEN fn.failure('stream_full', fn.bytes(execution), most_frames, 'frames')
    WHEN fn.num(s.state[6]) + octet_length(frame.payload) > fn.num(most_bytes)
      THEN fn.failure('stream_full', fn.bytes(execution), most_bytes, 'bytes')
  END
$$;

-- Drop the oldest frames of a mode beyond a number, at most 200; return how many.
CREATE FUNCTION fn.trim_frames(c fn.context, execution uuid, of_mode text, excess bigint) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  gone int := 0;
BEGIN
  IF excess > 0 THEN
    DELETE FROM db.frames WHERE p = c.p AND uuid = execution AND (ms, n) IN (
      SELECT ms, n FROM db.frames WHERE p = c.p AND uuid = execution AND mode = of_mode AND mode <> 'durable'
        ORDER BY ms, n LIMIT least(excess, 200)
    );
    GET DIAGNOSTICS gone = ROW_COUNT;
  END IF;
  RETURN gone;
END $$;

-- Write the state of a stream after an append, drop frames beyond its bounds, and wake its readers.
CREATE FUNCTION fn.close_append(c fn.context, x db.executions, s fn.stream) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  s.live_count := s.live_count - fn.trim_frames(c, x.uuid, 'best_effort', s.live_count - s.bound);
  s.delta_count := s.delta_count - fn.trim_frames(c, x.uuid, 'summary', s.delta_count - 256);
  IF s.document IS NOT NULL THEN
    s.state[13] := coalesce(nullif(s.state[13], ''), fn.bytes(c.now));
    s.state[14] := fn.bytes(c.now);
  END IF;
  PERFORM fn.wake_tails(c, x);
  INSERT INTO db.streams AS known (p, uuid, last, live, deltas, calls, live_count, delta_count)
    VALUES (c.p, x.uuid, s.last, s.live, s.deltas, s.calls, s.live_count, s.delta_count)
    ON CONFLICT (p, uuid) DO UPDATE SET last = excluded.last, live = excluded.live, deltas = excluded.deltas,
      calls = excluded.calls, live_count = excluded.live_count, delta_count = excluded.delta_count;
  INSERT INTO db.stream_attempts AS known (p, uuid, attempt, state, summary)
    VALUES (c.p, x.uuid, s.attempt, fn.pack(VARIADIC s.state), s.document)
    ON CONFLICT (p, uuid, attempt) DO UPDATE SET state = excluded.state,
      summary = coalesce(excluded.summary, known.summary);
END $$;
