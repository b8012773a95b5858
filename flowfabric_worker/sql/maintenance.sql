-- How what is due is handled without a claim, and how a store is set up and erased.

-- Fold the changes of depth counters into one row per counter, for the classes of a few pages chosen at random: the more changes
-- a class has, the more of the pages are its own.
CREATE FUNCTION fn.fold_depths(c fn.context) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  share real := least(100, 4 * 100 * 8192.0 / greatest(pg_relation_size('db.depths'), 1));
  of_class int;
BEGIN
  FOR of_class IN
    SELECT class_id FROM db.depths TABLESAMPLE SYSTEM (share) WHERE p = c.p GROUP BY class_id ORDER BY count(*) DESC LIMIT 8
  LOOP
    WITH old AS MATERIALIZED (
      SELECT ctid FROM db.depths WHERE p = c.p AND class_id = of_class LIMIT 2000 FOR UPDATE SKIP LOCKED
    ), gone AS (
      DELETE FROM db.depths USING old WHERE depths.ctid = old.ctid RETURNING lane_id, state, change
    )
    INSERT INTO db.depths (p, lane_id, class_id, state, change)
      SELECT c.p, lane_id, of_class, state, sum(change) FROM gone GROUP BY lane_id, state HAVING sum(change) <> 0;
  END LOOP;
END $$;

-- run_upkeep: handle what is due.
-- Arguments: most entries to handle, call id.
-- Replies: how many were handled; now; next due moment or null; the lanes that other partitions have to follow, as
-- fn.lanes_following returns them; and what this partition owes to others, as fn.owed returns it.
CREATE FUNCTION fn.run_upkeep(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  most bigint := fn.num(args[1]);
  before bytea[] := (SELECT fn.recall(upkeep, args[2]) FROM db.partitions WHERE p = partition);
  due fn.batch;
  removed fn.batch;
  handled bigint;
BEGIN
  IF before IS NOT NULL THEN
    RETURN fn.upkeep_reply(c, fn.num(before[1]));
  END IF;
  due := fn.run_due(c, most, 0.75);
  removed := fn.run_removals(due.c, c.now, fn.allowed(due.c, fn.rest_of(most, due.count), 3, 1));
  c := removed.c;
  handled := due.count + removed.count;
  PERFORM fn.fold_depths(c);
  PERFORM fn.forget_bounds(c);
  c := fn.flush(c);
  IF handled > 0 THEN
    UPDATE db.partitions SET upkeep = fn.remember(upkeep, args[2], fn.bytes(handled)) WHERE p = c.p;
  END IF;
  IF c.is_real THEN
    -- The latest time is stored, so a clock that is set back is noticed.
    UPDATE db.partitions SET latest = c.now WHERE p = c.p AND latest <> c.now;
  END IF;
  RETURN fn.upkeep_reply(c, handled);
END $$;

CREATE FUNCTION fn.upkeep_reply(c fn.context, handled bigint) RETURNS bytea LANGUAGE sql AS $$
  SELECT fn.replies(
    fn.reply(handled), fn.reply(c.now), fn.reply(least(fn.next_due(c), fn.next_removal(c))), fn.lanes_following(c),
    fn.owed(c, 100)
  )
$$;

-- prepare: set a partition up, or return how it was set up.
-- Arguments: contract major, partitions, '1' for a store for tests, call id, how long ends stay in the feed in ms or ''
-- to keep the present time; kid, secret and fingerprint of the first secret for waitpoint tokens, which are stored unless
-- there is one.
-- Replies: 'prepared' or 'known', then the stored major, partitions, '1' for tests, kid, secret, fingerprint.
CREATE FUNCTION fn.prepare(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  part db.partitions;
  known bytea[];
BEGIN
  INSERT INTO db.partitions (p, major, partitions, testing, created, prepared)
    VALUES (partition, args[1], args[2], args[3], c.now, fn.remember(NULL, args[4], 'prepared')) ON CONFLICT DO NOTHING;
  PERFORM fn.first_secret(c, args[6], args[7], args[8]);
  IF args[5] <> '' THEN
    UPDATE db.partitions SET feed_age = fn.num(args[5]) WHERE p = partition AND feed_age IS DISTINCT FROM fn.num(args[5]);
  END IF;
  SELECT * INTO part FROM db.partitions WHERE p = partition;
  known := fn.secret_of(c, part.kid);
  RETURN fn.answer(
    CASE WHEN fn.recall(part.prepared, args[4]) IS NULL THEN 'known'::bytea ELSE 'prepared' END,
    part.major, part.partitions, part.testing, part.kid, known[1], known[2]
  );
END $$;

-- set_clock: stop the clock of a store for tests at a moment.
-- Arguments: the moment in ms, or '' for the real clock.
-- Replies: 'ok'.
-- Errors: clock_not_settable.
CREATE FUNCTION fn.set_clock(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
BEGIN
  UPDATE db.partitions SET clock = fn.num(args[1]) WHERE p = partition AND testing = '1';
  IF NOT FOUND THEN
    RETURN fn.failure('clock_not_settable');
  END IF;
  RETURN fn.answer('ok');
END $$;

-- erase: remove everything that a partition of a store for tests holds.
-- Arguments: most entries to remove in this call.
-- Replies: 'erased', or 'more' if the call has to be repeated.
-- Errors: configuration_mismatch.
CREATE FUNCTION fn.erase(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM db.partitions WHERE p = partition AND testing <> '1') THEN
    RETURN fn.failure('configuration_mismatch', 'testing', '0', '1');
  END IF;
  DELETE FROM db.executions WHERE p = partition AND uuid IN (
    SELECT uuid FROM db.executions WHERE p = partition ORDER BY uuid LIMIT fn.num(args[1])
  );
  IF EXISTS (SELECT FROM db.executions WHERE p = partition) THEN
    RETURN fn.answer('more');
  END IF;
  DELETE FROM db.edges WHERE p = partition;
  DELETE FROM db.groups WHERE p = partition;
  DELETE FROM db.acknowledged WHERE p = partition;
  DELETE FROM db.flows WHERE p = partition;
  DELETE FROM db.keys WHERE p = partition;
  DELETE FROM db.lanes WHERE p = partition;
  DELETE FROM db.classes WHERE p = partition;
  DELETE FROM db.quotas WHERE p = partition;
  DELETE FROM db.slots WHERE p = partition;
  DELETE FROM db.began WHERE p = partition;
  DELETE FROM db.depths WHERE p = partition;
  DELETE FROM db.entries WHERE p = partition;
  DELETE FROM db.waiters WHERE p = partition;
  DELETE FROM db.woken WHERE p = partition;
  DELETE FROM db.claims WHERE p = partition;
  DELETE FROM db.damaged WHERE p = partition;
  DELETE FROM db.feed WHERE p = partition;
  DELETE FROM db.workers WHERE p = partition;
  DELETE FROM db.deaths WHERE p = partition;
  DELETE FROM db.tasks WHERE p = partition;
  DELETE FROM db.budgets WHERE p = partition;
  DELETE FROM db.owed WHERE p = partition;
  DELETE FROM db.budget_news WHERE p = partition;
  DELETE FROM db.schedules WHERE p = partition;
  DELETE FROM db.leaders WHERE p = partition;
  DELETE FROM db.secrets WHERE p = partition;
  DELETE FROM db.partitions WHERE p = partition;
  RETURN fn.answer('erased');
END $$;
