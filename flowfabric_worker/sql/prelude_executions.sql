-- The record of an execution: how it is checked and loaded, what the indexes must say of it, and how it is written.

-- Checks ------------------------------------------------------------------------------------------------------------

-- Return the first damaged field of a record, or null.
CREATE FUNCTION fn.damage_in(x db.executions) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  has_lease boolean := x.fence IS NOT NULL OR x.expires IS NOT NULL OR x.attempt IS NOT NULL;
BEGIN
  IF coalesce(fn.ascii(x.state) !~ '^[a-z]{6}$', true) THEN RETURN 'state'; END IF;
  IF coalesce(cardinality(fn.unpack(x.class)) < 6, true) THEN RETURN 'class'; END IF;
  IF NOT coalesce(fn.is_whole(x.priority), false) THEN RETURN 'priority'; END IF;
  IF NOT coalesce(fn.is_whole(x.place), false) THEN RETURN 'place'; END IF;
  IF NOT fn.is_policy(x.policy) THEN RETURN 'policy'; END IF;
  IF has_lease OR x.state LIKE 'a%' THEN
    IF coalesce(fn.ascii(x.fence) !~ '^[^:]+:[0-9]{1,15}:[^:]*$', true) THEN RETURN 'fence'; END IF;
    IF NOT coalesce(fn.is_whole(x.expires), false) THEN RETURN 'expires'; END IF;
    IF coalesce(fn.ascii(x.attempt) !~ '^[0-9]{1,9}[|][a-z]+[|][a-z]+[|][0-9]{0,15}[|][0-9]{0,15}$', true) THEN
      RETURN 'attempt';
    END IF;
  END IF;
  RETURN fn.damage_behind_core(x);
END $$;

-- Return the first damaged field beyond those that every execution has, or null.
CREATE FUNCTION fn.damage_behind_core(x db.executions) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  IF NOT fn.is_whole(nullif(x.timeout_at, '')) THEN RETURN 'timeout_at'; END IF;
  IF NOT fn.is_whole(nullif(x.deadline, '')) THEN RETURN 'deadline'; END IF;
  IF NOT fn.is_whole(nullif(x.delay_until, '')) THEN RETURN 'delay_until'; END IF;
  IF fn.unpack(x.idempotency_key) IS NULL AND x.idempotency_key IS NOT NULL THEN RETURN 'idempotency_key'; END IF;
  IF NOT fn.is_whole(nullif(x.dedup_until, '')) THEN RETURN 'dedup_until'; END IF;
  IF NOT fn.is_whole(nullif(x.reserved_until, '')) THEN RETURN 'reserved_until'; END IF;
  IF NOT fn.is_whole(x.ended) OR x.state LIKE 't%' AND x.ended IS NULL THEN RETURN 'ended'; END IF;
  IF NOT fn.is_whole(x.retry_count) THEN RETURN 'retry_count'; END IF;
  IF NOT fn.is_whole(x.reclaim_count) THEN RETURN 'reclaim_count'; END IF;
  IF x.tags IS NOT NULL AND coalesce(cardinality(fn.unpack(x.tags)) % 2 = 1, true) THEN RETURN 'tags'; END IF;
  IF x.watchers IS NOT NULL AND fn.unpack(x.watchers) IS NULL THEN RETURN 'watchers'; END IF;
  IF NOT fn.is_whole(nullif(x.suspension, '')) THEN RETURN 'suspension'; END IF;
  IF NOT fn.is_whole(nullif(x.suspended_at, '')) THEN RETURN 'suspended_at'; END IF;
  IF NOT fn.is_whole(nullif(x.suspended_until, '')) THEN RETURN 'suspended_until'; END IF;
  IF NOT fn.is_whole(nullif(x.timeout_left, '')) THEN RETURN 'timeout_left'; END IF;
  IF x.budgets IS NOT NULL AND fn.unpack(x.budgets) IS NULL THEN RETURN 'budgets'; END IF;
  RETURN NULL;
END $$;

-- Return the first damaged field among those that a claim, an operator's call or a report reads beyond these, or null.
CREATE FUNCTION fn.damage_in_history(x db.executions) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  past bytea;
BEGIN
  FOREACH past IN ARRAY coalesce(fn.unpack(coalesce(x.attempts, '')), ARRAY[NULL::bytea]) LOOP
    IF coalesce(cardinality(fn.unpack(past)) < 8, true) THEN RETURN 'attempts'; END IF;
  END LOOP;
  IF x.holder IS NOT NULL AND coalesce(cardinality(fn.unpack(x.holder)) < 2, true) THEN RETURN 'holder'; END IF;
  IF NOT fn.is_whole(x.started) THEN RETURN 'started'; END IF;
  IF NOT fn.is_whole(x.replay_count) THEN RETURN 'replay_count'; END IF;
  IF NOT fn.is_whole(x.steps) THEN RETURN 'steps'; END IF;
  IF NOT fn.is_whole(x.journal_bytes) THEN RETURN 'journal_bytes'; END IF;
  RETURN NULL;
END $$;

-- Setting aside -----------------------------------------------------------------------------------------------------

-- Take a damaged execution out of the indexes that work is found by, list it, and return the failure. It stays counted
-- under its state until it is purged.
CREATE FUNCTION fn.set_aside(c fn.context, execution uuid, field text) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  x db.executions;
BEGIN
  UPDATE db.executions SET ready = NULL, due = NULL, due_in = NULL, listed = NULL, lane_id = NULL, is_root = NULL
    WHERE p = c.p AND uuid = execution RETURNING * INTO x;
  IF x.uuid IS NOT NULL AND (SELECT count(*) FROM db.damaged WHERE p = c.p) < 1000 THEN
    INSERT INTO db.damaged (p, uuid, damage) VALUES (
      c.p, execution::text,
      fn.pack(fn.bytes(field), CASE WHEN cardinality(fn.unpack(x.class)) >= 6
        THEN fn.pack(fn.unpack_first(x.class)) ELSE '' END)
    ) ON CONFLICT DO NOTHING;
  END IF;
  RETURN fn.failure('corruption', fn.bytes(execution), fn.bytes(field));
END $$;

CREATE FUNCTION fn.is_set_aside(c fn.context, execution uuid) RETURNS boolean LANGUAGE sql AS $$
  SELECT EXISTS (SELECT FROM db.damaged WHERE p = c.p AND uuid = execution::text)
$$;

-- Loading -----------------------------------------------------------------------------------------------------------

-- Return whether a row has no record: something removed what the indexes still name.
CREATE FUNCTION fn.is_bare(x db.executions) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT x.state IS NULL AND x.class IS NULL AND x.created IS NULL AND x.place IS NULL AND x.priority IS NULL
$$;

-- Lock, load and check the record of an execution.
CREATE FUNCTION fn.load(c fn.context, execution uuid, with_history boolean DEFAULT false) RETURNS fn.found
LANGUAGE plpgsql AS $$
DECLARE
  f fn.found;
  x db.executions;
BEGIN
  c := fn.lock_flows(c, ARRAY[execution], false);
  SELECT * INTO x FROM db.executions WHERE p = c.p AND uuid = execution FOR UPDATE;
  IF x.ready IS NOT NULL THEN
    -- A claim passes over the locked row, and waits: wake it if this call leaves the work.
    c.wakes := c.wakes || x.class_id;
  END IF;
  f := fn.checked(c, execution, x, with_history);
  RETURN f;
END $$;

-- Check a record that was just read.
CREATE FUNCTION fn.checked(c fn.context, execution uuid, x db.executions, with_history boolean) RETURNS fn.found
LANGUAGE plpgsql AS $$
DECLARE
  f fn.found;
  damaged text;
BEGIN
  f.c := c;
  IF x.uuid IS NULL OR fn.is_bare(x) THEN
    f.failure := fn.failure('execution_not_found', fn.bytes(execution));
    RETURN f;
  END IF;
  damaged := fn.damage_in(x);
  IF damaged IS NULL AND with_history THEN
    damaged := fn.damage_in_history(x);
  END IF;
  IF damaged IS NOT NULL THEN
    f.failure := fn.set_aside(c, execution, damaged);
    RETURN f;
  END IF;
  f.was := x;
  f.x := x;
  RETURN f;
END $$;

-- Indexes -----------------------------------------------------------------------------------------------------------

-- Return until when an ended execution is kept: its retention and the window of its idempotency key, whichever is longer.
CREATE FUNCTION fn.kept_until(x db.executions) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT greatest(
    fn.num(x.ended) + coalesce(fn.of_policy(x.policy, 11)::bigint, fn.a_day()), coalesce(fn.num(x.dedup_until), 0)
  )
$$;

-- Return a record with what the indexes must say of it.
CREATE FUNCTION fn.derive(x db.executions) RETURNS db.executions LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  state text := fn.ascii(x.state);
  delay bigint;
BEGIN
  x.ready := NULL; x.due_in := NULL;
  x.suspended := fn.num(x.suspended_at);
  x.listed := fn.public_state(state);
  IF x.listed IN ('waiting', 'completed') THEN
    x.listed := NULL;
  END IF;
  x.member := CASE WHEN x.flow_id IS NOT NULL THEN fn.public_state(state) END;
  IF state NOT LIKE 'r_d%' THEN
    x.is_root := NULL;
  END IF;
  IF state LIKE 't%' THEN
    -- A member of a flow is kept as long as the flow.
    x.due := CASE WHEN x.flow_id IS NULL THEN fn.kept_until(x) END;
    x.due_in := CASE WHEN x.flow_id IS NULL THEN 'r'::"char" END;
    RETURN x;
  END IF;
  IF fn.is_claimable(state) AND fn.num(x.reserved_until) IS NULL THEN
    x.ready := fn.num(x.place) - fn.num(x.priority) * 1000000000000;
  END IF;
  x.due := least(fn.num(x.reserved_until), fn.num(x.deadline));
  IF fn.is_leased(state) THEN
    x.due := least(x.due, fn.num(x.expires), fn.num(x.timeout_at));
  ELSIF state LIKE 's%' THEN
    x.due := least(x.due, fn.num(x.suspended_until));
  ELSIF state LIKE '__t%' THEN
    delay := fn.num(x.delay_until);
    IF delay < coalesce(x.due, delay + 1) THEN
      x.due := delay; x.due_in := 'y';
      RETURN x;
    END IF;
  END IF;
  IF x.due IS NOT NULL THEN
    x.due_in := 'd';
  END IF;
  RETURN x;
END $$;

-- Note a change of a depth counter.
CREATE FUNCTION fn.count(c fn.context, x db.executions, state text, change int) RETURNS fn.context
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  c.count_lanes := c.count_lanes || x.lane_id;
  c.count_classes := c.count_classes || x.class_id;
  c.count_states := c.count_states || state;
  c.counts := c.counts || change;
  RETURN c;
END $$;

-- Note what follows from a change of an execution: counters, wake-ups, the first due moment.
CREATE FUNCTION fn.follow(c fn.context, was db.executions, x db.executions) RETURNS fn.context
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  before text := CASE WHEN was.uuid IS NOT NULL THEN fn.public_state(fn.ascii(was.state)) END;
  after text := CASE WHEN x.uuid IS NOT NULL THEN fn.public_state(fn.ascii(x.state)) END;
BEGIN
  IF before IS DISTINCT FROM after OR was.class_id <> x.class_id THEN
    IF was.uuid IS NOT NULL THEN c := fn.count(c, was, before, -1); END IF;
    IF x.uuid IS NOT NULL THEN c := fn.count(c, x, after, 1); END IF;
  END IF;
  IF x.ready IS NOT NULL AND x.ready IS DISTINCT FROM was.ready THEN
    c.wakes := c.wakes || x.class_id;
  END IF;
  IF x.due_in IN ('d', 'y') AND (x.due IS DISTINCT FROM was.due OR x.due_in IS DISTINCT FROM was.due_in)
    AND x.due <= c.now + fn.fallback() AND x.due <= coalesce(c.first_due, x.due) THEN
    c.first_count := CASE WHEN x.due = c.first_due THEN c.first_count + 1 ELSE 1 END;
    c.first_due := x.due;
  END IF;
  RETURN c;
END $$;

-- Writing -----------------------------------------------------------------------------------------------------------

-- Write a record that was loaded as `was`, bring its indexes up to date, and announce its end if it ended.
CREATE FUNCTION fn.put(c fn.context, was db.executions, x db.executions) RETURNS fn.context LANGUAGE plpgsql AS $$
BEGIN
  x := fn.derive(x);
  IF x.flow_id IS NOT NULL THEN
    x := fn.derive(fn.follow_cancellation(c, was, x));
  END IF;
  IF x.state LIKE 't%' AND was.state NOT LIKE 't%' AND (x.flow_id IS NOT NULL OR x.children <> '') THEN
    c := fn.note_end(c, x);
  END IF;
  IF x.ready IS NOT NULL AND was.state LIKE 't%' THEN
    c := fn.register_class(c, x.class);
    SELECT id INTO x.class_id FROM db.classes WHERE p = c.p AND class = x.class;
  END IF;
  UPDATE db.executions SET (
    state, priority, place, mutated, tags, dedup_until, deadline, delay_until, fence, expires, timeout_at, timeout_left,
    holder, topic, attempt, attempts, started, closed, ended, result, error, error_class, error_detail, cancel_reason,
    cancelled_by, revoke_reason, retry_count, reclaim_count, replay_count, reserved_for, reserved_until, watchers, last,
    reported, answered, steps, journal_bytes, progress_percent, progress_message, progress_at,
    suspension, suspended_at, suspended_until, stream, budgets, class_id, ready, due, due_in, listed, suspended,
    flow, flow_id, member, is_root, children
  ) = (
    x.state, x.priority, x.place, x.mutated, x.tags, x.dedup_until, x.deadline, x.delay_until, x.fence, x.expires,
    x.timeout_at, x.timeout_left, x.holder, x.topic, x.attempt, x.attempts, x.started, x.closed, x.ended, x.result,
    x.error, x.error_class, x.error_detail, x.cancel_reason, x.cancelled_by, x.revoke_reason, x.retry_count,
    x.reclaim_count, x.replay_count, x.reserved_for, x.reserved_until, x.watchers, x.last, x.reported, x.answered,
    x.steps, x.journal_bytes, x.progress_percent, x.progress_message, x.progress_at,
    x.suspension, x.suspended_at, x.suspended_until, x.stream, x.budgets, x.class_id, x.ready, x.due, x.due_in, x.listed,
    x.suspended, x.flow,
    x.flow_id, x.member, x.is_root, x.children
  ) WHERE p = was.p AND uuid = was.uuid;
  c := fn.follow(c, was, x);
  IF x.state LIKE 't%' AND was.state NOT LIKE 't%' THEN
    c := fn.announce(c, was, x);
    IF x.budgets IS NOT NULL THEN
      c := fn.end_shares(c, x, false);
    END IF;
  END IF;
  RETURN c;
END $$;

-- Remove an ended execution with all that belongs to it.
CREATE FUNCTION fn.remove(c fn.context, x db.executions) RETURNS fn.context LANGUAGE plpgsql AS $$
BEGIN
  IF x.idempotency_key <> '' THEN
    DELETE FROM db.keys WHERE p = c.p AND key = x.idempotency_key AND uuid = x.uuid;
  END IF;
  IF x.budgets IS NOT NULL THEN
    c := fn.end_shares(c, x, true);
  END IF;
  DELETE FROM db.executions WHERE p = c.p AND uuid = x.uuid;
  RETURN fn.count(c, x, fn.public_state(fn.ascii(x.state)), -1);
END $$;

-- Remove a damaged execution with everything that is still known of it.
CREATE FUNCTION fn.remove_damaged(c fn.context, execution uuid) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  x db.executions;
BEGIN
  SELECT * INTO x FROM db.executions WHERE p = c.p AND uuid = execution FOR UPDATE;
  DELETE FROM db.keys WHERE p = c.p AND key = x.idempotency_key AND uuid = execution;
  c := fn.end_shares(c, x, true);
  DELETE FROM db.executions WHERE p = c.p AND uuid = execution;
  DELETE FROM db.damaged WHERE p = c.p AND uuid = execution::text;
  x.lane_id := coalesce(x.lane_id, fn.lane_of_class(c, x.class));
  IF fn.ascii(x.state) ~ '^[a-z]{6}$' AND x.lane_id IS NOT NULL AND x.class_id IS NOT NULL THEN
    c := fn.count(c, x, fn.public_state(fn.ascii(x.state)), -1);
  END IF;
  RETURN c;
END $$;

-- Return the id of the lane of a class, or null if the class is damaged.
CREATE FUNCTION fn.lane_of_class(c fn.context, of_class bytea) RETURNS int LANGUAGE sql AS $$
  SELECT id FROM db.lanes, fn.unpack(of_class) AS parts
  WHERE cardinality(parts) >= 6 AND p = c.p AND lane = fn.pack(parts[1], parts[2])
$$;

-- Return the value of a field of a record by its name.
CREATE FUNCTION fn.field(x db.executions, name text) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE name
    WHEN 'state' THEN x.state WHEN 'class' THEN x.class WHEN 'priority' THEN x.priority WHEN 'place' THEN x.place
    WHEN 'created' THEN x.created WHEN 'mutated' THEN x.mutated WHEN 'policy' THEN x.policy WHEN 'payload' THEN x.payload
    WHEN 'codec' THEN x.codec WHEN 'tags' THEN x.tags WHEN 'headers' THEN x.headers WHEN 'creator' THEN x.creator
    WHEN 'idempotency_key' THEN x.idempotency_key WHEN 'dedup_until' THEN x.dedup_until WHEN 'deadline' THEN x.deadline
    WHEN 'delay_until' THEN x.delay_until WHEN 'fence' THEN x.fence WHEN 'expires' THEN x.expires
    WHEN 'timeout_at' THEN x.timeout_at WHEN 'holder' THEN x.holder WHEN 'attempt' THEN x.attempt
    WHEN 'attempts' THEN x.attempts WHEN 'started' THEN x.started WHEN 'ended' THEN x.ended WHEN 'result' THEN x.result
    WHEN 'error' THEN x.error WHEN 'error_class' THEN x.error_class WHEN 'error_detail' THEN x.error_detail
    WHEN 'cancel_reason' THEN x.cancel_reason WHEN 'cancelled_by' THEN x.cancelled_by
    WHEN 'retry_count' THEN x.retry_count WHEN 'reclaim_count' THEN x.reclaim_count
    WHEN 'replay_count' THEN x.replay_count WHEN 'reserved_for' THEN x.reserved_for WHEN 'steps' THEN x.steps
    WHEN 'progress_percent' THEN x.progress_percent WHEN 'progress_message' THEN x.progress_message
    WHEN 'suspension' THEN x.suspension WHEN 'stream' THEN x.stream WHEN 'max_signals' THEN x.max_signals
    WHEN 'suspended_at' THEN x.suspended_at WHEN 'suspended_until' THEN x.suspended_until WHEN 'flow' THEN x.flow
  END
$$;
