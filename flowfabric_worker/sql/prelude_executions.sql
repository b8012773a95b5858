-- The record of an execution: how it is checked and loaded, what the indexes must say of it, and how it is written.

-- Checks ------------------------------------------------------------------------------------------------------------

-- Return whether a value has the form of a state.
CREATE FUNCTION fn.is_state(value bytea) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT octet_length(value) = 6 AND ltrim(value, 'abcdefghijklmnopqrstuvwxyz'::bytea) = ''
$$;

-- Return the first damaged field of a record, or null. It is one expression, which is evaluated in place. `sound_class` and
-- `sound_policy` need no check, because the same call found them sound in another record.
CREATE FUNCTION fn.damage_in(x db.executions, sound_class bytea DEFAULT NULL, sound_policy bytea DEFAULT NULL) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN NOT coalesce(fn.is_state(x.state), false) THEN 'state'
    WHEN x.class IS NULL THEN 'class'
    WHEN x.class IS DISTINCT FROM sound_class AND coalesce(cardinality(fn.unpack(x.class)) < 6, true) THEN 'class'
    WHEN NOT coalesce(fn.is_whole(x.priority), false) THEN 'priority'
    WHEN NOT coalesce(fn.is_whole(x.place), false) THEN 'place'
    WHEN x.policy IS DISTINCT FROM sound_policy AND NOT fn.is_policy(x.policy) THEN 'policy'
    ELSE CASE
      WHEN x.state NOT LIKE 'a%' AND x.fence IS NULL AND x.expires IS NULL AND x.attempt IS NULL THEN NULL
      WHEN coalesce(encode(x.fence, 'escape') !~ '^[^:]+:[0-9]{1,15}:[^:]*$', true) THEN 'fence'
      WHEN NOT coalesce(fn.is_whole(x.expires), false) THEN 'expires'
      WHEN coalesce(encode(x.attempt, 'escape') !~ '^[0-9]{1,9}[|][a-z]+[|][a-z]+[|][0-9]{0,15}[|][0-9]{0,15}$', true)
        THEN 'attempt' END
  END
$$;

-- Return the first damaged field beyond those that every execution has, or null.
CREATE FUNCTION fn.damage_behind_core(x db.executions) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN NOT fn.is_whole(nullif(x.timeout_at, '')) THEN 'timeout_at'
    WHEN NOT fn.is_whole(nullif(x.deadline, '')) THEN 'deadline'
    WHEN NOT fn.is_whole(nullif(x.delay_until, '')) THEN 'delay_until'
    WHEN x.idempotency_key IS NOT NULL AND fn.unpack(x.idempotency_key) IS NULL THEN 'idempotency_key'
    WHEN NOT fn.is_whole(nullif(x.dedup_until, '')) THEN 'dedup_until'
    WHEN NOT fn.is_whole(nullif(x.reserved_until, '')) THEN 'reserved_until'
    WHEN NOT fn.is_whole(x.ended) OR x.state LIKE 't%' AND x.ended IS NULL THEN 'ended'
    WHEN NOT fn.is_whole(x.retry_count) THEN 'retry_count'
    WHEN NOT fn.is_whole(x.reclaim_count) THEN 'reclaim_count'
    WHEN x.tags IS NOT NULL AND coalesce(cardinality(fn.unpack(x.tags)) % 2 = 1, true) THEN 'tags'
    WHEN x.watchers IS NOT NULL AND fn.unpack(x.watchers) IS NULL THEN 'watchers'
    WHEN NOT fn.is_whole(nullif(x.suspension, '')) THEN 'suspension'
    WHEN NOT fn.is_whole(nullif(x.suspended_at, '')) THEN 'suspended_at'
    WHEN NOT fn.is_whole(nullif(x.suspended_until, '')) THEN 'suspended_until'
    WHEN NOT fn.is_whole(nullif(x.timeout_left, '')) THEN 'timeout_left'
    WHEN x.budgets IS NOT NULL AND fn.unpack(x.budgets) IS NULL THEN 'budgets'
    WHEN NOT fn.is_whole(nullif(x.slot_until, '')) THEN 'slot_until'
  END
$$;

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
  IF x.gated THEN
    DELETE FROM db.slots WHERE p = c.p AND uuid = execution;
  END IF;
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
  x db.executions;
BEGIN
  c := fn.lock_flows(c, ARRAY[execution], false);
  SELECT * INTO x FROM db.executions WHERE p = c.p AND uuid = execution FOR UPDATE;
  RETURN fn.loaded(c, execution, x, with_history);
END $$;

-- Check a record that this call has locked; see fn.damage_in.
CREATE FUNCTION fn.loaded(
  c fn.context, execution uuid, x db.executions, with_history boolean, sound_class bytea DEFAULT NULL,
  sound_policy bytea DEFAULT NULL
) RETURNS fn.found LANGUAGE plpgsql AS $$
BEGIN
  IF x.ready IS NOT NULL THEN
    -- A claim passes over the locked row, and waits: wake it if this call leaves the work.
    c.wakes := c.wakes || x.class_id;
  END IF;
  RETURN fn.checked(c, execution, x, with_history, sound_class, sound_policy);
END $$;

-- Lock and return the records of some executions, null for one that does not exist. Rows are locked in the order of their ids. Their
-- places are looked up and not joined, see fn.lock_held.
CREATE FUNCTION fn.load_all(c fn.context, ids uuid[]) RETURNS db.executions[] LANGUAGE plpgsql AS $$
DECLARE
  records db.executions[] := array_fill(NULL::db.executions, ARRAY[cardinality(ids)]);
  each record;
BEGIN
  IF cardinality(ids) > 0 THEN
    FOR each IN
      SELECT array_position(ids, e.uuid) AS place, e AS record FROM db.executions AS e WHERE p = c.p AND uuid = ANY (ids)
        ORDER BY uuid FOR UPDATE
    LOOP
      records[each.place] := each.record;
    END LOOP;
  END IF;
  RETURN records;
END $$;

-- Check a record that was just read; see fn.damage_in.
CREATE FUNCTION fn.checked(
  c fn.context, execution uuid, x db.executions, with_history boolean, sound_class bytea DEFAULT NULL,
  sound_policy bytea DEFAULT NULL
) RETURNS fn.found LANGUAGE plpgsql AS $$
DECLARE
  f fn.found;
  damaged text;
BEGIN
  f.c := c;
  IF x.uuid IS NULL OR fn.is_bare(x) THEN
    f.failure := fn.failure('execution_not_found', fn.bytes(execution));
    RETURN f;
  END IF;
  damaged := coalesce(fn.damage_in(x, sound_class, sound_policy), fn.damage_behind_core(x));
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
  SELECT fn.kept_for(x.ended, x.policy, x.dedup_until)
$$;
CREATE FUNCTION fn.kept_for(ended bytea, policy bytea, dedup_until bytea) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT greatest(fn.num(ended) + coalesce(fn.of_policy(policy, 11)::bigint, fn.a_day()), coalesce(fn.num(dedup_until), 0))
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
  x.due := least(fn.num(x.reserved_until), fn.num(x.deadline), fn.num(x.slot_until));
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

-- Write how changes of executions change the depth counters, as one row per counter. Executions that were set aside are not
-- counted.
CREATE FUNCTION fn.count(c fn.context, befores db.executions[], afters db.executions[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO db.depths (p, lane_id, class_id, state, change)
    SELECT c.p, lane_id, class_id, public_state, sum(change) FROM (
      SELECT lane_id, class_id, fn.public_state(fn.ascii(state)) AS public_state, -1 AS change FROM unnest(befores)
      UNION ALL
      SELECT lane_id, class_id, fn.public_state(fn.ascii(state)), 1 FROM unnest(afters)
    ) AS changes WHERE lane_id IS NOT NULL GROUP BY lane_id, class_id, public_state HAVING sum(change) <> 0;
END $$;

-- Note what follows from a change of an execution: wake-ups, and the first due moment.
CREATE FUNCTION fn.follow(c fn.context, was db.executions, x db.executions) RETURNS fn.context
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  IF x.ready IS NOT NULL AND x.ready IS DISTINCT FROM was.ready THEN
    c.wakes := c.wakes || x.class_id;
  END IF;
  IF x.due_in IN ('d', 'y') AND (x.due IS DISTINCT FROM was.due OR x.due_in IS DISTINCT FROM was.due_in) THEN
    c := fn.note_moment(c, x.due, 1);
  END IF;
  RETURN c;
END $$;

-- Writing -----------------------------------------------------------------------------------------------------------

-- Write records that were loaded as `befores`, bring their indexes up to date, and announce those that ended.
CREATE FUNCTION fn.put_all(c fn.context, befores db.executions[], afters db.executions[]) RETURNS fn.context
LANGUAGE plpgsql AS $$
DECLARE
  ids uuid[] := '{}';
  is_ready boolean := false;
  moves boolean := false;
  was db.executions;
  x db.executions;
  passing fn.passing;
  left_gates fn.gate[] := '{}';
BEGIN
  IF cardinality(afters) = 0 THEN
    RETURN c;
  END IF;
  FOR i IN 1 .. cardinality(afters) LOOP
    was := befores[i]; x := fn.derive(afters[i]);
    IF x.flow_id IS NOT NULL THEN
      x := fn.derive(fn.follow_cancellation(c, was, x));
    END IF;
    IF was.gated AND fn.leaves(was, x) THEN
      passing := fn.leave_gates(c, was, x);
      c := passing.c; x := fn.derive(passing.x); left_gates := left_gates || passing.gates;
    END IF;
    IF x.state LIKE 't%' AND was.state NOT LIKE 't%' AND (x.flow_id IS NOT NULL OR x.children <> '') THEN
      c := fn.note_end(c, x);
    END IF;
    IF x.ready IS NOT NULL AND was.state LIKE 't%' THEN
      c := fn.register_class(c, x.class);
      SELECT id INTO x.class_id FROM db.classes WHERE p = c.p AND class = x.class;
    END IF;
    IF x.ready IS NOT NULL OR x.due <= c.now + fn.fallback() THEN
      c := fn.follow(c, was, x);
    END IF;
    is_ready := is_ready OR x.ready IS NOT NULL;
    moves := moves OR was.state IS DISTINCT FROM x.state OR was.class_id IS DISTINCT FROM x.class_id;
    afters[i] := x; ids := ids || x.uuid;
  END LOOP;
  UPDATE db.executions AS e SET (
    state, priority, place, mutated, tags, dedup_until, deadline, delay_until, fence, expires, timeout_at, timeout_left,
    holder, topic, attempt, attempts, started, closed, ended, result, error, error_class, error_detail, cancel_reason,
    cancelled_by, revoke_reason, retry_count, reclaim_count, replay_count, reserved_for, reserved_until, watchers, last,
    reported, answered, steps, journal_bytes, progress_percent, progress_message, progress_at,
    suspension, suspended_at, suspended_until, stream, budgets, slot_until, class, gated, class_id, ready, due, due_in,
    listed, suspended, flow, flow_id, member, is_root, children
  ) = (
    n.state, n.priority, n.place, n.mutated, n.tags, n.dedup_until, n.deadline, n.delay_until, n.fence, n.expires,
    n.timeout_at, n.timeout_left, n.holder, n.topic, n.attempt, n.attempts, n.started, n.closed, n.ended, n.result,
    n.error, n.error_class, n.error_detail, n.cancel_reason, n.cancelled_by, n.revoke_reason, n.retry_count,
    n.reclaim_count, n.replay_count, n.reserved_for, n.reserved_until, n.watchers, n.last, n.reported, n.answered,
    n.steps, n.journal_bytes, n.progress_percent, n.progress_message, n.progress_at,
    n.suspension, n.suspended_at, n.suspended_until, n.stream, n.budgets, n.slot_until, n.class, n.gated, n.class_id,
    n.ready, n.due, n.due_in, n.listed, n.suspended, n.flow, n.flow_id, n.member, n.is_root, n.children
  ) FROM unnest(afters) AS n WHERE e.p = c.p AND e.uuid = ANY (ids) AND e.uuid = n.uuid;
  IF is_ready THEN
    PERFORM fn.drop_bounds(c, afters);
  END IF;
  IF moves THEN
    PERFORM fn.count(c, befores, afters);
  END IF;
  IF cardinality(left_gates) > 0 THEN
    c := fn.give_back(c, left_gates);
  END IF;
  RETURN fn.announce_all(c, befores, afters);
END $$;

-- Write one record that was loaded as `was`.
CREATE FUNCTION fn.put(c fn.context, was db.executions, x db.executions) RETURNS fn.context LANGUAGE plpgsql AS $$
BEGIN
  RETURN fn.put_all(c, ARRAY[was], ARRAY[x]);
END $$;

-- Remove ended executions with all that belongs to them.
CREATE FUNCTION fn.remove_all(c fn.context, records db.executions[]) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  x db.executions;
  ids uuid[] := '{}';
  keys_held bytea[] := '{}';
BEGIN
  IF cardinality(records) = 0 THEN
    RETURN c;
  END IF;
  FOREACH x IN ARRAY records LOOP
    ids := ids || x.uuid;
    IF x.idempotency_key <> '' THEN
      keys_held := keys_held || x.idempotency_key;
    END IF;
    IF x.budgets IS NOT NULL THEN
      c := fn.end_shares(c, x, true);
    END IF;
  END LOOP;
  IF cardinality(keys_held) > 0 THEN
    DELETE FROM db.keys WHERE p = c.p AND key = ANY (keys_held) AND uuid = ANY (ids);
  END IF;
  DELETE FROM db.executions WHERE p = c.p AND uuid = ANY (ids);
  PERFORM fn.count(c, records, '{}');
  RETURN c;
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
  IF x.flow_id IS NOT NULL THEN
    UPDATE db.flows SET nodes = fn.bytes(fn.sound(nodes) - 1) WHERE p = c.p AND flow = x.flow_id;
    c := fn.enqueue(c, 'ended:' || x.flow_id || ':' || execution);
  END IF;
  x.lane_id := coalesce(x.lane_id, fn.lane_of_class(c, x.class));
  IF fn.ascii(x.state) ~ '^[a-z]{6}$' AND x.lane_id IS NOT NULL AND x.class_id IS NOT NULL THEN
    PERFORM fn.count(c, ARRAY[x], '{}');
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
