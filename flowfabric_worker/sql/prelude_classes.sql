-- The registry of the claim classes that hold work, and the lanes.
--
-- A class is forgotten when it holds nothing. Calls that may create work in a class share an advisory lock until they
-- commit; forgetting takes the lock alone, or is put off.

CREATE FUNCTION fn.share_classes(c fn.context) RETURNS void LANGUAGE sql AS $$
  SELECT pg_advisory_xact_lock_shared('db.classes'::regclass::oid::int, c.p)
$$;

-- Add a class to the registry and its lane to the list of lanes.
CREATE FUNCTION fn.register_class(c fn.context, of_class bytea) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  parts bytea[];
  of_lane bytea;
BEGIN
  IF EXISTS (SELECT FROM db.classes WHERE p = c.p AND class = of_class) THEN
    RETURN c;
  END IF;
  parts := fn.unpack(of_class);
  of_lane := fn.pack(parts[1], parts[2]);
  PERFORM fn.register_lane(c, of_lane);
  INSERT INTO db.classes (p, class, lane, gates, held)
    VALUES (c.p, of_class, of_lane, fn.gates_in(parts), fn.held_in(parts)) ON CONFLICT DO NOTHING;
  UPDATE db.lanes SET revision = fn.next_turn(revision, c.now) WHERE p = c.p AND lane = of_lane;
  PERFORM fn.note_entry(c, 'c', of_class, c.now + fn.an_hour());
  -- As many commands as this takes on Valkey.
  c.work := c.work - 8;
  c.new_in := c.new_in || of_lane;
  RETURN c;
END $$;

-- Return whether a lane has as many classes as it may.
CREATE FUNCTION fn.is_full(c fn.context, of_class bytea) RETURNS boolean LANGUAGE sql AS $$
  SELECT count(*) >= 1024 FROM db.classes, fn.unpack(of_class) AS parts WHERE p = c.p AND lane = fn.pack(parts[1], parts[2])
$$;

-- Add a lane to the list of lanes.
CREATE FUNCTION fn.register_lane(c fn.context, of_lane bytea) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO db.lanes (p, lane, listed)
    VALUES (c.p, of_lane, fn.pack(fn.unpack_first(of_lane)) || (fn.unpack(of_lane))[2]) ON CONFLICT DO NOTHING;
  IF FOUND THEN
    PERFORM fn.note_entry(c, 'l', of_lane, c.now + fn.a_day());
  END IF;
END $$;

-- Return how many executions are counted under some states of a lane or a class.
CREATE FUNCTION fn.held(c fn.context, of_class int) RETURNS bigint LANGUAGE sql AS $$
  SELECT coalesce(sum(change), 0)::bigint FROM db.depths
  WHERE p = c.p AND class_id = of_class AND state NOT IN ('completed', 'failed', 'cancelled', 'expired', 'skipped')
$$;

-- Remove an empty class from the registry; it is looked at every hour.
CREATE FUNCTION fn.forget_class(c fn.context, of_class bytea) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  known db.classes;
BEGIN
  SELECT * INTO known FROM db.classes WHERE p = c.p AND class = of_class;
  IF known.id IS NULL THEN
    RETURN;
  END IF;
  IF NOT pg_try_advisory_xact_lock('db.classes'::regclass::oid::int, c.p) OR fn.held(c, known.id) > 0
    OR fn.ready_count(c, known.id, 1) > 0 THEN
    PERFORM fn.note_entry(c, 'c', of_class, c.now + fn.an_hour());
    RETURN;
  END IF;
  DELETE FROM db.classes WHERE id = known.id;
  UPDATE db.lanes SET revision = fn.next_turn(revision, c.now) WHERE p = c.p AND lane = known.lane;
END $$;

-- Remove a lane that holds nothing, is not paused, has no classes, and whose last turn all partitions have followed; it is
-- looked at once a day.
CREATE FUNCTION fn.forget_lane(c fn.context, of_lane bytea) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  known db.lanes;
BEGIN
  SELECT * INTO known FROM db.lanes WHERE p = c.p AND lane = of_lane;
  IF known.id IS NULL THEN
    RETURN;
  END IF;
  IF NOT pg_try_advisory_xact_lock('db.classes'::regclass::oid::int, c.p) OR known.paused IS NOT NULL
    OR NOT known.is_followed OR EXISTS (SELECT FROM db.classes WHERE p = c.p AND lane = of_lane)
    OR EXISTS (SELECT FROM db.depths WHERE p = c.p AND lane_id = known.id GROUP BY state HAVING sum(change) <> 0) THEN
    PERFORM fn.note_entry(c, 'l', of_lane, c.now + fn.a_day());
    RETURN;
  END IF;
  DELETE FROM db.depths WHERE p = c.p AND lane_id = known.id;
  DELETE FROM db.lanes WHERE id = known.id;
END $$;

-- Lanes that a call asks for ----------------------------------------------------------------------------------------

-- Return the lanes that a call asks for, from argument `at` on. Each lane is: pack{namespace, lane}, limit, revision of the
-- classes that the caller knows or '' for any, number of classes, the classes.
CREATE FUNCTION fn.lanes_of(c fn.context, args bytea[], at int) RETURNS fn.lane[] LANGUAGE plpgsql AS $$
DECLARE
  lanes fn.lane[] := '{}';
  each fn.lane;
  of_revision bytea;
  count int;
BEGIN
  WHILE at <= cardinality(args) LOOP
    each.name := args[at];
    each.most := fn.num(args[at + 1]);
    count := fn.num(args[at + 3]);
    SELECT known.ids, known.gated, paused IS NOT NULL, fn.bytes(revision)
      INTO each.classes, each.gated, each.paused, of_revision FROM (
        SELECT coalesce(array_agg(id), '{}') AS ids, coalesce(bool_or(gates IS NOT NULL), false) AS gated
        FROM db.classes WHERE p = c.p AND class = ANY (args[at + 4 : at + 3 + count])
      ) AS known LEFT JOIN db.lanes ON p = c.p AND lane = each.name;
    each.stale := args[at + 2] <> '' AND args[at + 2] <> coalesce(of_revision, '0');
    lanes := lanes || each;
    at := at + 4 + count;
  END LOOP;
  RETURN lanes;
END $$;

-- Return the highest value of `ready` of work that may be handed out now. An entry that only a newer release can handle gets
-- this value of a later moment, and is read again from then on.
CREATE FUNCTION fn.last_ready(c fn.context) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT 1000000000000000 + c.now
$$;

-- Return the classes of some lanes that still hold work which may be handed out.
CREATE FUNCTION fn.classes_left(c fn.context, lanes fn.lane[]) RETURNS int[] LANGUAGE sql AS $$
  SELECT ARRAY(
    SELECT class.id FROM unnest(lanes) AS lane, LATERAL unnest(lane.classes) AS class(id)
    WHERE NOT lane.paused AND (
      SELECT true FROM db.executions WHERE p = c.p AND class_id = class.id AND ready IS NOT NULL
        AND substring(state FROM 1 FOR 1) IN ('r', 'a') ORDER BY ready, uuid LIMIT 1
    ) AND (NOT lane.gated OR fn.class_allowance(c, class.id) > 0) LIMIT 64
  )
$$;

-- Return whether one of some classes holds work that no other call holds at this moment.
CREATE FUNCTION fn.is_work_left(c fn.context, classes int[]) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  of_class int;
BEGIN
  FOREACH of_class IN ARRAY classes LOOP
    PERFORM FROM db.executions WHERE p = c.p AND class_id = of_class AND ready IS NOT NULL
      AND substring(state FROM 1 FOR 1) IN ('r', 'a') ORDER BY ready, uuid LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
      RETURN true;
    END IF;
  END LOOP;
  RETURN false;
END $$;
