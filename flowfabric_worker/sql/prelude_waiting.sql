-- The waiters for work and for ends, which of them a call wakes, and the end of a call.
--
-- A waiter is a topic on which one thread listens. Waiters take turns: the one that has waited longest is woken. A second
-- waiter stands by and looks if the first does not, as when its process is frozen.
--
-- A claim that found nothing takes the advisory lock of the waiters alone, looks once more, and registers. A call that makes
-- work ready shares that lock when it looks for waiters, as its last step. So one of the two sees the other.

CREATE FUNCTION fn.share_waiters(c fn.context) RETURNS void LANGUAGE sql AS $$
  SELECT pg_advisory_xact_lock_shared('db.waiters'::regclass::oid::int, c.p)
$$;

CREATE FUNCTION fn.lock_waiters(c fn.context) RETURNS void LANGUAGE sql AS $$
  SELECT pg_advisory_xact_lock('db.waiters'::regclass::oid::int, c.p)
$$;

-- Return the next moment at which a worker has to call, or null. Removals are handled in passing and do not count.
CREATE FUNCTION fn.next_due(c fn.context) RETURNS bigint LANGUAGE sql AS $$
  SELECT least(
    (SELECT due FROM db.executions WHERE p = c.p AND due_in = 'd' ORDER BY p, due LIMIT 1),
    (SELECT due FROM db.executions WHERE p = c.p AND due_in = 'y' ORDER BY p, due LIMIT 1),
    (SELECT due FROM db.entries WHERE p = c.p AND due_in = 'd' ORDER BY p, due_in, due LIMIT 1)
  )
$$;

-- Return the first moment at which something has to be removed, or null.
CREATE FUNCTION fn.next_removal(c fn.context) RETURNS bigint LANGUAGE sql AS $$
  SELECT least(
    (SELECT due FROM db.executions WHERE p = c.p AND due_in = 'r' ORDER BY p, due LIMIT 1),
    (SELECT due FROM db.entries WHERE p = c.p AND due_in = 'r' ORDER BY p, due_in, due LIMIT 1)
  )
$$;

-- Register a waiter. The advisory lock of the waiters is held.
CREATE FUNCTION fn.register_waiter(
  c fn.context, of_waiter text, of_set text, wait_ms bigint, of_lanes bytea[], of_classes int[], is_watching boolean,
  is_counted boolean
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM db.waiters WHERE p = c.p AND waiter = of_waiter;
  INSERT INTO db.waiters (p, waiter, set_name, until, lanes, class_ids, watches, counted)
    VALUES (c.p, of_waiter, of_set, c.now + wait_ms + 1000, of_lanes, of_classes, is_watching, is_counted);
  PERFORM fn.note_entry(c, 'q', fn.bytes(of_waiter), c.now + wait_ms + 1000);
END $$;

-- Deregister a waiter.
CREATE FUNCTION fn.unwait(c fn.context, of_waiter text) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  watched boolean;
BEGIN
  WITH gone AS (
    DELETE FROM db.waiters WHERE p = c.p AND waiter = of_waiter RETURNING watches
  ), dropped AS (
    DELETE FROM db.entries WHERE p = c.p AND due_in = 'r' AND kind = 'q' AND member = fn.bytes(of_waiter)
      AND EXISTS (SELECT FROM gone)
  )
  SELECT watches INTO watched FROM gone;
  IF watched THEN
    c.watch_ended := true;
  END IF;
  RETURN c;
END $$;

-- Tell the waiter that stands by for a woken waiter that it need not look.
CREATE FUNCTION fn.end_stand_by(c fn.context, of_waiter text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  other text;
BEGIN
  DELETE FROM db.woken WHERE p = c.p AND waiter = of_waiter RETURNING stands_by INTO other;
  IF FOUND THEN
    PERFORM fn.drop_entry(c, 'q', fn.bytes(of_waiter));
    PERFORM fn.tell(other, format('taken %s %s', c.p, of_waiter));
  END IF;
END $$;

-- Wake up to `wanted` of the waiters that fit, and let the waiter that registered last stand by for them. Those fit that
-- wait for a class, for a lane, for ends ('feed'), or, if all three are null, for any work.
CREATE FUNCTION fn.wake_some(c fn.context, of_class int, of_lane bytea, of_feed boolean, wanted bigint) RETURNS fn.context
LANGUAGE plpgsql AS $$
DECLARE
  found db.waiters;
  woken text[] := '{}';
  other text;
BEGIN
  FOR found IN
    SELECT * FROM db.waiters WHERE p = c.p AND (set_name = 'feed') = of_feed
      AND (of_class IS NULL OR of_class = ANY (class_ids)) AND (of_lane IS NULL OR of_lane = ANY (lanes))
      ORDER BY turn LIMIT 1000 FOR UPDATE SKIP LOCKED
  LOOP
    EXIT WHEN cardinality(woken) >= wanted;
    c := fn.unwait(c, found.waiter);
    IF found.until >= c.now AND (NOT found.counted OR fn.is_heard(found.waiter)) THEN
      PERFORM fn.tell(found.waiter, format('wake %s', c.p));
      woken := woken || found.waiter;
    END IF;
  END LOOP;
  IF cardinality(woken) > 0 THEN
    SELECT waiter INTO other FROM db.waiters WHERE p = c.p AND (set_name = 'feed') = of_feed
      AND (of_class IS NULL OR of_class = ANY (class_ids)) AND (of_lane IS NULL OR of_lane = ANY (lanes))
      ORDER BY turn DESC LIMIT 1;
  END IF;
  IF other IS NOT NULL AND cardinality(woken) >= wanted THEN
    PERFORM fn.stand_by(c, each, other) FROM unnest(woken) AS each;
  END IF;
  RETURN c;
END $$;

-- Let a waiter stand by for a woken one: it looks after 50 ms, unless the other has called.
CREATE FUNCTION fn.stand_by(c fn.context, of_waiter text, other text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO db.woken (p, waiter, stands_by) VALUES (c.p, of_waiter, other)
    ON CONFLICT (p, waiter) DO UPDATE SET stands_by = excluded.stands_by;
  PERFORM fn.note_entry(c, 'q', fn.bytes(of_waiter), c.now + fn.fallback());
  PERFORM fn.tell(other, format('standby %s 50 %s', c.p, of_waiter));
END $$;

-- Return how many executions of a class are ready, up to `most` if it is not null.
CREATE FUNCTION fn.ready_count(c fn.context, of_class int, most bigint) RETURNS bigint LANGUAGE sql AS $$
  SELECT count(*) FROM (
    -- The order lets a plan that was made for an empty table use the index of what is ready.
    SELECT FROM db.executions WHERE p = c.p AND class_id = of_class AND ready IS NOT NULL ORDER BY ready, uuid LIMIT most
  ) AS ready
$$;

-- Return whether an entry that this call noted is the next one that is due.
CREATE FUNCTION fn.is_sooner(c fn.context) RETURNS boolean LANGUAGE sql AS $$
  SELECT count(*) <= c.first_count AND count(*) > 0 FROM (
    (SELECT FROM db.executions WHERE p = c.p AND due_in = 'd' AND due <= c.first_due LIMIT c.first_count + 1)
    UNION ALL
    (SELECT FROM db.executions WHERE p = c.p AND due_in = 'y' AND due <= c.first_due LIMIT c.first_count + 1)
    UNION ALL
    (SELECT FROM db.entries WHERE p = c.p AND due_in = 'd' AND due <= c.first_due LIMIT c.first_count + 1)
    UNION ALL
    (SELECT FROM db.entries WHERE p = c.p AND due_in = 'd' AND due <= c.first_due LIMIT c.first_count + 1)
  ) AS entries
$$;

-- Wake the waiters that a call concerns, and one more if the next due moment came nearer or lost the waiter that watched it.
CREATE FUNCTION fn.wake_all(c fn.context) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  lane bytea;
  wake record;
  sooner boolean := c.first_due IS NOT NULL AND fn.is_sooner(c);
BEGIN
  FOREACH lane IN ARRAY c.new_in LOOP
    c := fn.wake_some(c, NULL, lane, false, 1000);
  END LOOP;
  FOR wake IN SELECT id, count(*) AS wanted FROM unnest(c.wakes) AS id GROUP BY id LOOP
    c := fn.wake_some(
      c, wake.id, NULL, false, fn.ready_count(c, wake.id, least(wake.wanted, fn.class_allowance(c, wake.id)))
    );
  END LOOP;
  IF c.announced THEN
    c := fn.wake_some(c, NULL, NULL, true, 1000);
  END IF;
  IF NOT sooner AND c.watch_ended AND NOT EXISTS (SELECT FROM db.waiters WHERE p = c.p AND watches) THEN
    sooner := coalesce(fn.next_due(c) <= c.now + fn.fallback(), false);
  END IF;
  IF sooner THEN
    c := fn.wake_some(c, NULL, NULL, false, 1);
  END IF;
  RETURN c;
END $$;

-- Wake the waiters of other partitions that a call concerns.
CREATE FUNCTION fn.wake_elsewhere(c fn.context) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  other record;
  there fn.context;
BEGIN
  FOR other IN
    SELECT k.p, array_agg(k.id) AS ids FROM unnest(c.wakes_elsewhere) AS each JOIN db.classes AS k ON k.id = each
    GROUP BY k.p ORDER BY k.p
  LOOP
    there := fn.begin(other.p);
    there.wakes := other.ids;
    PERFORM fn.wake(there);
  END LOOP;
  c.wakes_elsewhere := '{}';
  RETURN c;
END $$;

-- Wake the waiters that a call concerns, if it noted any reason.
CREATE FUNCTION fn.wake(c fn.context) RETURNS fn.context LANGUAGE plpgsql AS $$
BEGIN
  IF cardinality(c.wakes_elsewhere) > 0 THEN
    c := fn.wake_elsewhere(c);
  END IF;
  IF cardinality(c.wakes) > 0 OR cardinality(c.new_in) > 0 OR c.announced OR c.watch_ended OR c.first_due IS NOT NULL THEN
    PERFORM fn.share_waiters(c);
    IF EXISTS (SELECT FROM db.waiters WHERE p = c.p) THEN
      c := fn.wake_all(c);
    END IF;
  END IF;
  c.wakes := '{}'; c.new_in := '{}'; c.announced := false; c.watch_ended := false;
  c.first_due := NULL; c.first_count := 0;
  RETURN c;
END $$;

-- Bring everything up to date that a call noted, and wake the waiters that it concerns.
CREATE FUNCTION fn.flush(c fn.context) RETURNS fn.context LANGUAGE plpgsql AS $$
BEGIN
  IF cardinality(c.jobs) > 0 OR cardinality(c.settles) > 0 THEN
    c := fn.run_jobs(c);
  END IF;
  IF c.ended > 0 THEN
    c := fn.keep_pace(c);
  END IF;
  RETURN fn.wake(c);
END $$;
