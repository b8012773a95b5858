-- Schedules: work that submits itself. The callers compute when; here a tick is a moment that is submitted once. A
-- schedule is pack{namespace} and its name, and lies in the partition that its name gives.
--
-- The parts of an entry: 1 last tick, 2 last submitted tick, 3 paused since, 4 first seen, 5 next tick (moments, '' for
-- none), 6 pack{spec, task, lane}, 7 remembered calls, 8 number of missed ticks. Further parts, which a newer release wrote,
-- are kept.

-- Return the entry of a schedule as its parts, or null if it is damaged.
CREATE FUNCTION fn.schedule_parts(entry bytea) RETURNS bytea[] LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN cardinality(parts) >= 8 AND fn.is_whole(parts[1]) AND fn.is_whole(parts[4]) THEN parts END
  FROM fn.unpack(entry) AS parts
$$;

CREATE FUNCTION fn.damaged_schedule(of_schedule bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.failure('corruption', '', 'schedule '::bytea || fn.behind_first(of_schedule))
$$;

CREATE FUNCTION fn.write_schedule(c fn.context, of_schedule bytea, parts bytea[]) RETURNS void LANGUAGE sql AS $$
  INSERT INTO db.schedules (p, schedule, entry) VALUES (c.p, of_schedule, fn.pack(VARIADIC parts))
  ON CONFLICT (p, schedule) DO UPDATE SET entry = excluded.entry
$$;

-- Return the reply that tells how far a schedule is.
CREATE FUNCTION fn.how_far(parts bytea[]) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN parts[3] <> '' THEN fn.answer('paused', parts[3]) ELSE fn.answer('already', parts[1]) END
$$;

-- Return the reply that names the executions of an item whose arguments begin at `at`.
CREATE FUNCTION fn.ticked(args bytea[], at int) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.replies(fn.reply('ticked'::text), fn.answer(VARIADIC ARRAY(
    SELECT args[at + 8 + 8 * i] FROM generate_series(0, fn.num(args[at + 7])::int - 1) AS i ORDER BY i
  )))
$$;

-- Create the executions of an item's ticks, and move the schedule's last tick. All executions have one class, so if any is
-- refused, the first one is, before anything is written.
CREATE FUNCTION fn.submit_ticks(c fn.context, args bytea[], at int, parts bytea[]) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch := fn.create_all(c, args[at + 8 : at + 7 + 8 * fn.num(args[at + 7])], false);
  reply bytea;
BEGIN
  FOREACH reply IN ARRAY b.items LOOP
    IF position('$5\015\012error'::bytea IN reply) = 5 THEN
      b.items := ARRAY[reply];
      RETURN b;
    END IF;
  END LOOP;
  parts[1] := args[at + 2]; parts[5] := args[at + 3]; parts[6] := args[at + 4];
  parts[2] := CASE WHEN args[at + 7] <> '0' THEN args[at + 2] ELSE parts[2] END;
  parts[8] := fn.bytes(fn.num(parts[8]) + fn.num(args[at + 6]));
  parts[7] := fn.remember(parts[7], args[at + 5], 'ticked');
  PERFORM fn.write_schedule(c, args[at], parts);
  b.items := ARRAY[fn.ticked(args, at)];
  RETURN b;
END $$;

-- Handle one item whose arguments begin at `at`.
CREATE FUNCTION fn.tick(c fn.context, args bytea[], at int) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  known db.schedules;
  parts bytea[];
  before bytea[];
  now bytea := fn.bytes(c.now);
BEGIN
  b.c := c;
  SELECT * INTO known FROM db.schedules WHERE p = c.p AND schedule = args[at] FOR UPDATE;
  parts := fn.schedule_parts(known.entry);
  before := fn.recall(parts[7], args[at + 5]);
  IF known.p IS NOT NULL AND parts IS NULL THEN
    b.items := ARRAY[fn.damaged_schedule(args[at])];
  ELSIF before IS NOT NULL THEN
    b.items := ARRAY[CASE WHEN before[1] = 'ticked' THEN fn.ticked(args, at) ELSE fn.answer(VARIADIC before) END];
  ELSIF args[at + 2] <> '' AND fn.num(args[at + 2]) > c.now THEN
    b.items := ARRAY[fn.failure('tick_not_due', fn.behind_first(args[at]), args[at + 2])];
  ELSIF parts IS NULL THEN
    PERFORM fn.write_schedule(c, args[at], ARRAY[
      now, '', '', now, args[at + 3], args[at + 4], fn.remember(NULL, args[at + 5], 'registered', now), '0'
    ]);
    b.items := ARRAY[fn.answer('registered', now)];
  ELSIF args[at + 2] = '' THEN
    parts[5] := args[at + 3]; parts[6] := args[at + 4];
    PERFORM fn.write_schedule(c, args[at], parts);
    b.items := ARRAY[fn.how_far(parts)];
  ELSIF parts[3] <> '' OR parts[1] <> args[at + 1] THEN
    b.items := ARRAY[fn.how_far(parts)];
  ELSE
    b := fn.submit_ticks(c, args, at, parts);
  END IF;
  RETURN b;
END $$;

-- tick_schedules: per schedule compare the last tick, move it, and create the executions of the new ticks. An item without
-- a new last tick only asks.
-- Arguments per item: schedule, expected last tick, new last tick or '', next tick or '', pack{spec, task, lane}, call id,
-- number of missed ticks, number of executions; then per execution the arguments of one creation, see fn.create_all.
-- Replies per item: 'registered' and the last tick of a schedule that was unknown; 'ticked' and the uuids; 'already' and
-- the last tick; or 'paused' and since when.
-- Errors per item: tick_not_due, corruption, batch_full, those of create_executions.
CREATE FUNCTION fn.tick_schedules(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  b fn.batch;
  answers bytea[] := '{}';
  at int := 1;
  behind int;
  handled int := 0;
  size double precision := 0;
  is_full boolean := false;
BEGIN
  PERFORM fn.share_classes(c);
  PERFORM pg_advisory_xact_lock('db.schedules'::regclass::oid::int, c.p);
  WHILE at <= cardinality(args) LOOP
    behind := at + 8 + 8 * fn.num(args[at + 7]);
    handled := handled + 1 + fn.num(args[at + 7]);
    size := size + fn.weight(VARIADIC args[at : behind - 1]);
    is_full := is_full OR at > 1 AND (handled > 100 OR size > 300);
    IF is_full THEN
      answers := answers || fn.failure('batch_full');
    ELSE
      b := fn.tick(c, args, at);
      c := b.c;
      answers := answers || b.items;
    END IF;
    at := behind;
  END LOOP;
  c := fn.flush(c);
  RETURN fn.replies(VARIADIC answers);
END $$;

-- Pause or resume a schedule. Return 'ok', or 'already' if nothing changed.
CREATE FUNCTION fn.operate_schedule(c fn.context, of_schedule bytea, call_id bytea, is_paused boolean) RETURNS bytea
LANGUAGE plpgsql AS $$
DECLARE
  known db.schedules;
  parts bytea[];
  before bytea[];
BEGIN
  SELECT * INTO known FROM db.schedules WHERE p = c.p AND schedule = of_schedule FOR UPDATE;
  IF known.p IS NULL THEN
    RETURN fn.failure('schedule_not_found', fn.behind_first(of_schedule));
  END IF;
  parts := fn.schedule_parts(known.entry);
  IF parts IS NULL THEN
    RETURN fn.damaged_schedule(of_schedule);
  END IF;
  before := fn.recall(parts[7], call_id);
  IF before IS NOT NULL OR (parts[3] <> '') = is_paused THEN
    RETURN fn.answer(VARIADIC coalesce(before, ARRAY['already'::bytea]));
  END IF;
  parts[3] := CASE WHEN is_paused THEN fn.bytes(c.now) ELSE '' END;
  IF NOT is_paused THEN
    -- Ticks that passed during the pause are not submitted later.
    parts[1] := fn.bytes(greatest(fn.num(parts[1]), c.now));
  END IF;
  parts[7] := fn.remember(parts[7], call_id, 'ok');
  PERFORM fn.write_schedule(c, of_schedule, parts);
  RETURN fn.answer('ok');
END $$;

-- pause_schedule: stop submitting a schedule's ticks.
-- Arguments: schedule, call id.
-- Replies: 'ok', or 'already' if it was paused before.
-- Errors: schedule_not_found, corruption.
CREATE FUNCTION fn.pause_schedule(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
BEGIN
  RETURN fn.operate_schedule(fn.begin(partition), args[1], args[2], true);
END $$;

-- resume_schedule: submit a paused schedule's ticks again, from now on.
-- Arguments: schedule, call id.
-- Replies: 'ok', or 'already' if it was not paused.
-- Errors: schedule_not_found, corruption.
CREATE FUNCTION fn.resume_schedule(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
BEGIN
  RETURN fn.operate_schedule(fn.begin(partition), args[1], args[2], false);
END $$;

-- remove_schedule: remove a schedule, also a damaged one.
-- Arguments: schedule, call id.
-- Replies: 'removed'.
-- Errors: schedule_not_found.
CREATE FUNCTION fn.remove_schedule(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
BEGIN
  IF fn.was_removed(c, args[2]) THEN
    RETURN fn.answer('removed');
  END IF;
  DELETE FROM db.schedules WHERE p = c.p AND schedule = args[1];
  IF NOT FOUND THEN
    RETURN fn.failure('schedule_not_found', fn.behind_first(args[1]));
  END IF;
  PERFORM fn.remember_removal(c, args[2]);
  RETURN fn.answer('removed');
END $$;

-- list_schedules: read a page of a namespace's schedules in this partition.
-- Arguments: pack{namespace}, after (a schedule) or '', limit.
-- Replies: '1' if there may be more schedules, else '0'; then per schedule: schedule, the parts of its entry in order. A
-- damaged schedule is its name alone.
CREATE FUNCTION fn.list_schedules(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  found db.schedules;
  parts bytea[];
  rows bytea[] := '{}';
  more boolean := false;
BEGIN
  FOR found IN
    SELECT * FROM db.schedules WHERE p = c.p AND schedule >= args[1] AND schedule > args[2]
      AND schedule < args[1] || '\xff'::bytea ORDER BY schedule LIMIT fn.num(args[3])
  LOOP
    more := c.work <= 0 AND cardinality(rows) > 0;
    EXIT WHEN more;
    parts := coalesce(fn.schedule_parts(found.entry), '{}');
    c.work := c.work - 1 - fn.weight(found.schedule, coalesce(found.entry, ''));
    rows := rows || fn.answer(VARIADIC found.schedule || parts[:8]);
  END LOOP;
  RETURN fn.replies(VARIADIC
    fn.reply(CASE WHEN more OR cardinality(rows) = fn.num(args[3]) THEN '1'::text ELSE '0' END) || rows);
END $$;

-- Leaders. Of the processes that have the same schedules one submits their ticks, and the others stand by. A group is
-- pack{namespace} and a digest of its schedules. Each tick is submitted once even with several leaders.

-- lead_schedules: make a process the leader of a group for some time, unless another process is the leader.
-- Arguments: group, process, time in ms.
-- Replies: 'leader' or 'follower', until when the group has a leader, now.
CREATE FUNCTION fn.lead_schedules(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  leader db.leaders;
BEGIN
  INSERT INTO db.leaders AS known (p, schedule_group, process, until)
    VALUES (c.p, args[1], args[2], c.now + fn.num(args[3]))
    ON CONFLICT (p, schedule_group) DO UPDATE SET process = excluded.process, until = excluded.until
      WHERE known.until <= c.now OR known.process = excluded.process;
  SELECT * INTO leader FROM db.leaders WHERE p = c.p AND schedule_group = args[1];
  IF leader.process <> args[2] THEN
    RETURN fn.answer('follower', fn.bytes(leader.until), fn.bytes(c.now));
  END IF;
  DELETE FROM db.leaders WHERE p = c.p AND schedule_group IN (
    SELECT schedule_group FROM db.leaders WHERE p = c.p AND until <= c.now - fn.an_hour() LIMIT 8 FOR UPDATE SKIP LOCKED
  );
  RETURN fn.answer('leader', fn.bytes(leader.until), fn.bytes(c.now));
END $$;

-- resign_schedules: end a process's leadership of a group.
-- Arguments: group, process.
-- Replies: 'ok', also if another process is the leader.
CREATE FUNCTION fn.resign_schedules(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM db.leaders WHERE p = partition AND schedule_group = args[1] AND process = args[2];
  RETURN fn.answer('ok');
END $$;
