-- How what is due is handled: executions first, then delays in equal shares per lane, then removals with a budget of their
-- own. Rows that another call has locked are that call's.

-- Handle executions that a due index names; each alone if the call is made carefully, see damage.sql.
CREATE FUNCTION fn.handle_executions(c fn.context, records db.executions[]) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  x db.executions;
BEGIN
  IF NOT fn.is_careful() THEN
    RETURN fn.handle_together(c, records);
  END IF;
  FOREACH x IN ARRAY records LOOP
    BEGIN
      c := fn.handle_together(c, ARRAY[x]);
    EXCEPTION WHEN data_exception OR cardinality_violation OR not_null_violation THEN
      PERFORM fn.set_aside(c, x.uuid, 'record');
    END;
  END LOOP;
  RETURN c;
END $$;

-- Handle executions that a due index names. An entry may be older than its record, so it is corrected first; what only a newer
-- release can handle is postponed.
CREATE FUNCTION fn.handle_together(c fn.context, records db.executions[]) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  f fn.found;
  x db.executions;
  befores db.executions[] := '{}';
  afters db.executions[] := '{}';
  removed db.executions[] := '{}';
  postponed uuid[] := '{}';
BEGIN
  FOREACH x IN ARRAY records LOOP
    IF fn.is_bare(x) THEN
      DELETE FROM db.executions WHERE p = c.p AND uuid = x.uuid;
      CONTINUE;
    END IF;
    f := fn.checked(c, x.uuid, x, false, (f.x).class, (f.x).policy);
    IF f.failure IS NOT NULL THEN
      CONTINUE;
    END IF;
    x := fn.caught_up(c, x);
    IF x IS NULL THEN
      CONTINUE;
    ELSIF x.p IS NULL AND (f.was).state LIKE 't%' THEN
      removed := removed || f.was;
      CONTINUE;
    ELSIF x.p IS NULL THEN
      c := fn.put_caught_up(c, f.was, x);
      CONTINUE;
    END IF;
    x := fn.derive(x);
    IF x IS DISTINCT FROM f.was THEN
      befores := befores || f.was; afters := afters || x;
    END IF;
    IF x.due <= c.now THEN
      postponed := postponed || x.uuid;
    END IF;
  END LOOP;
  c := fn.put_all(c, befores, afters);
  IF cardinality(postponed) > 0 THEN
    UPDATE db.executions SET due = c.now + fn.postponed() WHERE p = c.p AND uuid = ANY (postponed);
  END IF;
  RETURN fn.remove_all(c, removed);
END $$;

-- Return a record after everything of it that is due was handled; null if its suspension is damaged, and it was set aside.
CREATE FUNCTION fn.caught_up(c fn.context, x db.executions) RETURNS db.executions LANGUAGE plpgsql AS $$
BEGIN
  IF x.state NOT LIKE 's%' THEN
    RETURN fn.catch_up(c, x);
  END IF;
  BEGIN
    RETURN fn.catch_up(c, x);
  EXCEPTION WHEN data_exception THEN
    PERFORM fn.set_aside(c, x.uuid, 'record');
    RETURN NULL;
  END;
END $$;

-- Remove an entry of something other than an execution, and do what it asks for.
CREATE FUNCTION fn.perform(c fn.context, entry db.entries) RETURNS fn.context LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM db.entries
    WHERE p = c.p AND due_in = entry.due_in AND kind = entry.kind AND member = entry.member;
  CASE entry.kind
    WHEN 'b' THEN c := fn.reset_due_budget(c, entry.member);
    WHEN 'c' THEN PERFORM fn.forget_class(c, entry.member);
    WHEN 'f' THEN PERFORM fn.trim_feed(c);
    WHEN 'g' THEN c := fn.handle_gate(c, entry.member);
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

-- Handle an entry of something other than an execution. A damaged one is postponed, as one that only a newer release knows is; so
-- is, for a moment, one of a budget that another call holds, because that call may wait for the entry.
CREATE FUNCTION fn.handle_entry(c fn.context, entry db.entries) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  pause bigint;
BEGIN
  BEGIN
    IF entry.kind IN ('b', 'h', 'u') THEN
      PERFORM FROM db.budgets WHERE p = c.p AND budget = CASE entry.kind WHEN 'h' THEN fn.unpack_first(entry.member) ELSE entry.member END
        FOR UPDATE NOWAIT;
    END IF;
    RETURN fn.perform(c, entry);
  EXCEPTION
    WHEN lock_not_available THEN pause := 50;
    WHEN data_exception OR integrity_constraint_violation THEN pause := fn.postponed();
  END;
  UPDATE db.entries SET due = c.now + pause
    WHERE p = c.p AND due_in = entry.due_in AND kind = entry.kind AND member = entry.member;
  RETURN c;
END $$;

-- Return the lanes of the delays that were over first, and some lanes with delays that follow a random one, in a circle. So the
-- first delay is always found, one lane does not hide the others, and many lanes cost no more than some.
CREATE FUNCTION fn.delayed_lanes(c fn.context) RETURNS int[] LANGUAGE plpgsql AS $$
DECLARE
  lanes int[] := '{}';
  lane int := trunc(random() * (SELECT max(id) FROM db.lanes));
BEGIN
  FOR turn IN 1 .. 64 LOOP
    lane := coalesce(
      (SELECT lane_id FROM db.executions WHERE p = c.p AND due_in = 'y' AND lane_id > lane ORDER BY lane_id, due LIMIT 1),
      (SELECT lane_id FROM db.executions WHERE p = c.p AND due_in = 'y' ORDER BY lane_id, due LIMIT 1)
    );
    EXIT WHEN lane IS NULL OR lane = ANY (lanes);
    lanes := lanes || lane;
  END LOOP;
  RETURN lanes || ARRAY(
    SELECT lane_id FROM db.executions WHERE p = c.p AND due_in = 'y' AND due <= c.now ORDER BY due LIMIT 64
  );
END $$;

-- Handle up to `most` delays that are over, in equal shares per lane; lanes take turns.
CREATE FUNCTION fn.run_delays(c fn.context, most bigint) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  records db.executions[];
BEGIN
  records := ARRAY(
    WITH overdue AS MATERIALIZED (
      SELECT id FROM (SELECT DISTINCT unnest(fn.delayed_lanes(c))) AS lanes(id), LATERAL (
        SELECT due FROM db.executions WHERE p = c.p AND due_in = 'y' AND lane_id = id AND due <= c.now ORDER BY due LIMIT 1
      ) AS first ORDER BY due, random() LIMIT least(most, 32)
    ), heads AS MATERIALIZED (
      SELECT head.uuid, head.due, row_number() OVER (PARTITION BY overdue.id ORDER BY head.due, head.uuid) AS turn
      FROM overdue, LATERAL (
        SELECT uuid, due FROM db.executions WHERE p = c.p AND due_in = 'y' AND lane_id = overdue.id AND due <= c.now
          ORDER BY due, uuid LIMIT most
      ) AS head ORDER BY turn, head.due, head.uuid LIMIT most
    )
    SELECT e FROM db.executions AS e JOIN heads ON heads.uuid = e.uuid
      WHERE p = c.p AND e.uuid = ANY (ARRAY(SELECT uuid FROM heads)) AND due_in = 'y'
      ORDER BY heads.turn, heads.due, heads.uuid FOR UPDATE OF e SKIP LOCKED
  );
  b.c := fn.handle_executions(c, records); b.count := cardinality(records);
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
  records db.executions[];
  entry db.entries;
BEGIN
  most := fn.allowed(c, most, 4, share);
  records := ARRAY(
    SELECT e FROM db.executions AS e WHERE p = c.p AND due_in = 'd' AND due <= c.now ORDER BY due, uuid LIMIT most
      FOR UPDATE SKIP LOCKED
  );
  b.c := fn.handle_executions(c, records); b.count := cardinality(records);
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

-- Handle up to `most` removals that are due by a moment; return how many. Entries of other things are few, and come first, so a
-- lane is looked at while it still counts what is removed in this call. A quarter is kept for them, and the rest for executions,
-- so neither hides the other.
CREATE FUNCTION fn.run_removals(c fn.context, by bigint, most bigint) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  records db.executions[];
  entry db.entries;
BEGIN
  b.c := c; b.count := 0;
  FOR entry IN
    SELECT * FROM db.entries WHERE p = c.p AND due_in = 'r' AND due <= by ORDER BY due
      LIMIT most - (SELECT count(*) FROM (
        SELECT FROM db.executions WHERE p = c.p AND due_in = 'r' AND due <= by LIMIT greatest(most - greatest(most / 4, 1), 0)) AS many)
      FOR UPDATE SKIP LOCKED
  LOOP
    b.c := fn.handle_entry(b.c, entry);
    b.count := b.count + 1;
  END LOOP;
  records := ARRAY(
    SELECT e FROM db.executions AS e WHERE p = c.p AND due_in = 'r' AND due <= by ORDER BY due, uuid LIMIT most - b.count
      FOR UPDATE SKIP LOCKED
  );
  c := fn.handle_executions(b.c, records);
  b.count := b.count + cardinality(records);
  c.work := c.work - 4 * b.count;
  b.c := c;
  RETURN b;
END $$;

-- Return whether something is due or has to be removed.
CREATE FUNCTION fn.is_anything_due(c fn.context) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  RETURN EXISTS (SELECT FROM db.executions WHERE p = c.p AND due_in = 'd' AND due <= c.now)
    OR EXISTS (SELECT FROM db.executions WHERE p = c.p AND due_in = 'y' AND due <= c.now)
    OR EXISTS (SELECT FROM db.executions WHERE p = c.p AND due_in = 'r' AND due <= c.now)
    OR EXISTS (SELECT FROM db.entries WHERE p = c.p AND due_in = 'd' AND due <= c.now)
    OR EXISTS (SELECT FROM db.entries WHERE p = c.p AND due_in = 'r' AND due <= c.now);
END $$;

-- Handle twice as many removals as this call ended executions, so removal keeps pace. What ended in this millisecond is
-- left for a later call, so that this call can be repeated.
CREATE FUNCTION fn.keep_pace(c fn.context) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
BEGIN
  IF fn.next_removal(c) < c.now THEN
    b := fn.run_removals(c, c.now - 1, 2 * c.ended);
    c := b.c;
  END IF;
  c.ended := 0;
  RETURN c;
END $$;

-- Return how many commands one end takes, with the removals that keep pace with it if some are due.
CREATE FUNCTION fn.cost_of_end(c fn.context) RETURNS int LANGUAGE sql AS $$
  SELECT CASE WHEN fn.next_removal(c) < c.now THEN 9 ELSE 3 END
$$;
