-- How what is due is handled: executions first, then delays in equal shares per lane, then removals with a budget of their
-- own. Rows that another call has locked are that call's.

-- Handle an execution that a due index names. The entry may be older than the record, so it is corrected first; what only
-- a newer release can handle is postponed.
CREATE FUNCTION fn.handle_execution(c fn.context, x db.executions) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  f fn.found;
BEGIN
  IF fn.is_bare(x) THEN
    DELETE FROM db.executions WHERE p = c.p AND uuid = x.uuid;
    RETURN c;
  END IF;
  f := fn.checked(c, x.uuid, x, false);
  IF f.failure IS NOT NULL THEN
    RETURN c;
  END IF;
  IF x.state LIKE 's%' THEN
    BEGIN
      x := fn.catch_up(c, x);
    EXCEPTION WHEN data_exception THEN
      -- The suspension is damaged.
      PERFORM fn.set_aside(c, x.uuid, 'record');
      RETURN c;
    END;
  ELSE
    x := fn.catch_up(c, x);
  END IF;
  IF x.p IS NOT NULL THEN
    x := fn.derive(x);
  END IF;
  c := fn.put_caught_up(c, f.was, x);
  IF x.p IS NOT NULL AND x.due <= c.now THEN
    UPDATE db.executions SET due = c.now + fn.postponed() WHERE p = c.p AND uuid = x.uuid;
  END IF;
  RETURN c;
END $$;

-- Handle an entry of something other than an execution. One that only a newer release knows is postponed.
CREATE FUNCTION fn.handle_entry(c fn.context, entry db.entries) RETURNS fn.context LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM db.entries
    WHERE p = c.p AND due_in = entry.due_in AND kind = entry.kind AND member = entry.member;
  CASE entry.kind
    WHEN 'b' THEN c := fn.reset_due_budget(c, entry.member);
    WHEN 'c' THEN PERFORM fn.forget_class(c, entry.member);
    WHEN 'f' THEN PERFORM fn.trim_feed(c);
    WHEN 'h' THEN c := fn.expire_reservations(c, entry.member);
    WHEN 'k' THEN PERFORM fn.forget_claims(c, entry.member);
    WHEN 'l' THEN PERFORM fn.forget_lane(c, entry.member);
    WHEN 'q' THEN
      c := fn.unwait(c, fn.ascii(entry.member));
      PERFORM fn.end_stand_by(c, fn.ascii(entry.member));
    WHEN 't' THEN PERFORM fn.forget_task(c, entry.member);
    WHEN 'u' THEN PERFORM fn.forget_reports(c, entry.member);
    WHEN 'w' THEN PERFORM fn.forget_worker(c, entry.member);
    WHEN 'y' THEN c := fn.retire_flow(c, fn.id(entry.member));
    ELSE
      IF entry.kind = 'j' AND fn.is_job(fn.ascii(entry.member)) THEN
        RETURN fn.enqueue(c, fn.ascii(entry.member), coalesce(entry.place, ''));
      END IF;
      INSERT INTO db.entries (p, kind, member, due, due_in, place)
        VALUES (c.p, entry.kind, entry.member, c.now + fn.postponed(), entry.due_in, entry.place);
  END CASE;
  RETURN c;
END $$;

-- Handle up to `most` delays that are over, in equal shares per lane; lanes take turns.
CREATE FUNCTION fn.run_delays(c fn.context, most bigint) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  x db.executions;
BEGIN
  b.c := c; b.count := 0;
  FOR x IN
    WITH RECURSIVE lanes(id, due, turn) AS (
      (SELECT lane_id, due, 1 FROM db.executions WHERE p = c.p AND due_in = 'y' ORDER BY lane_id, due LIMIT 1)
      UNION ALL
      (SELECT next.lane_id, next.due, lanes.turn + 1 FROM lanes, LATERAL (
        SELECT lane_id, due FROM db.executions WHERE p = c.p AND due_in = 'y' AND lane_id > lanes.id
          ORDER BY lane_id, due LIMIT 1
      ) AS next WHERE lanes.turn < 1000)
    ), overdue AS MATERIALIZED (
      SELECT id FROM lanes WHERE due <= c.now ORDER BY due, random() LIMIT least(most, 32)
    ), heads AS MATERIALIZED (
      SELECT head.uuid, head.due, row_number() OVER (PARTITION BY overdue.id ORDER BY head.due, head.uuid) AS turn
      FROM overdue, LATERAL (
        SELECT uuid, due FROM db.executions WHERE p = c.p AND due_in = 'y' AND lane_id = overdue.id AND due <= c.now
          ORDER BY due, uuid LIMIT most
      ) AS head ORDER BY turn, head.due, head.uuid LIMIT most
    )
    SELECT e.* FROM db.executions AS e JOIN heads ON e.p = c.p AND e.uuid = heads.uuid
      WHERE e.due_in = 'y' ORDER BY heads.turn, heads.due, heads.uuid FOR UPDATE OF e SKIP LOCKED
  LOOP
    b.c := fn.handle_execution(b.c, x);
    b.count := b.count + 1;
  END LOOP;
  RETURN b;
END $$;

-- Return what the first of two parts leaves of a budget, but never less than a quarter, so the second part always
-- progresses.
CREATE FUNCTION fn.rest_of(most bigint, used bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT greatest(most - used, most / 4)
$$;

-- Handle up to `most` entries that are due, within a share of the call's budget: leases, deadlines and reservations first,
-- then delays. Return how many.
CREATE FUNCTION fn.run_due(c fn.context, most bigint, share double precision) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  delays fn.batch;
  x db.executions;
  entry db.entries;
BEGIN
  most := fn.allowed(c, most, 4, share);
  b.c := c; b.count := 0;
  FOR x IN
    SELECT * FROM db.executions WHERE p = c.p AND due_in = 'd' AND due <= c.now ORDER BY due, uuid LIMIT most
      FOR UPDATE SKIP LOCKED
  LOOP
    b.c := fn.handle_execution(b.c, x);
    b.count := b.count + 1;
  END LOOP;
  FOR entry IN
    SELECT * FROM db.entries WHERE p = c.p AND due_in = 'd' AND due <= c.now ORDER BY due LIMIT most - b.count
      FOR UPDATE SKIP LOCKED
  LOOP
    b.c := fn.handle_entry(b.c, entry);
    b.count := b.count + 1;
  END LOOP;
  IF EXISTS (SELECT FROM db.executions WHERE p = c.p AND due_in = 'y' AND due <= c.now) THEN
    delays := fn.run_delays(b.c, fn.rest_of(most, b.count));
    b.c := delays.c; b.count := b.count + delays.count;
  END IF;
  c := fn.run_jobs(b.c);
  c.work := c.work - 4 * b.count;
  c.is_cut_short := b.count >= most;
  b.c := c;
  RETURN b;
END $$;

-- Handle up to `most` removals that are due by a moment; return how many.
CREATE FUNCTION fn.run_removals(c fn.context, by bigint, most bigint) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  x db.executions;
  entry db.entries;
  first_entry bigint;
BEGIN
  b.c := c; b.count := 0;
  -- Entries of other things are few; each is handled when it is older than the oldest execution, so neither hides the other.
  FOR x IN
    SELECT * FROM db.executions WHERE p = c.p AND due_in = 'r' AND due <= by ORDER BY due, uuid
      LIMIT greatest(most - (SELECT count(*) FROM (
        SELECT FROM db.entries WHERE p = c.p AND due_in = 'r' AND due <= by LIMIT greatest(most / 4, 1)) AS few), 0)
      FOR UPDATE SKIP LOCKED
  LOOP
    b.c := fn.handle_execution(b.c, x);
    b.count := b.count + 1;
  END LOOP;
  FOR entry IN
    SELECT * FROM db.entries WHERE p = c.p AND due_in = 'r' AND due <= by ORDER BY due LIMIT most - b.count
      FOR UPDATE SKIP LOCKED
  LOOP
    b.c := fn.handle_entry(b.c, entry);
    b.count := b.count + 1;
  END LOOP;
  c := b.c;
  c.work := c.work - 4 * b.count;
  b.c := c;
  RETURN b;
END $$;

-- Handle twice as many removals as this call ended executions, so removal keeps pace. What ended in this millisecond is
-- left for a later call, so that this call can be repeated.
CREATE FUNCTION fn.keep_pace(c fn.context) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
BEGIN
  IF c.ended > 0 THEN
    b := fn.run_removals(c, c.now - 1, 2 * c.ended);
    c := b.c;
    c.ended := 0;
  END IF;
  RETURN c;
END $$;

-- Return how many commands one end takes, with the removals that keep pace with it if some are due.
CREATE FUNCTION fn.cost_of_end(c fn.context) RETURNS int LANGUAGE sql AS $$
  SELECT CASE WHEN fn.next_removal(c) < c.now THEN 9 ELSE 3 END
$$;
