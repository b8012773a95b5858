-- Plain executions: those in their first attempt that have nothing which needs a look of its own, such as a gate, a flow, a
-- reservation or a stream. One statement takes or completes many of them. The rules are those of single executions, and a
-- record with anything unusual in it, damage too, is left to these.

-- The conditions are few and cheap, and what they leave out is never wrong: it is only handled one by one.

-- Return whether a ready execution is plain. `of_class` and `of_policy` were found sound in another execution of its class.
CREATE FUNCTION fn.is_plain_ready(x db.executions, of_class bytea, of_policy bytea) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN x.state IS DISTINCT FROM 'ruewnf' OR x.lane_id IS NULL OR x.gated OR x.flow_id IS NOT NULL THEN false
    WHEN coalesce(
      x.fence, x.expires, x.attempt, x.attempts, x.timeout_at, x.timeout_left, x.deadline, x.reserved_for, x.reserved_until,
      x.slot_until, x.retry_count, x.reclaim_count, x.steps, x.journal_bytes, x.suspension, x.suspended_at, x.flow
    ) IS NOT NULL THEN false
    WHEN coalesce(x.class <> of_class, true) OR x.policy IS DISTINCT FROM of_policy THEN false
    WHEN NOT coalesce(fn.is_whole(x.priority) AND fn.is_whole(x.place) AND fn.is_whole(x.created), false) THEN false
    WHEN x.payload <> '' AND substring(x.payload FROM 1 FOR 1) <> '=' THEN false
    ELSE coalesce(x.delay_until, x.idempotency_key, x.dedup_until, x.tags, x.watchers, x.budgets, x.ended, x.suspended_until)
      IS NULL OR fn.is_sound(x)
  END
$$;

-- Return whether an execution is plain that the holder of a fence may complete.
CREATE FUNCTION fn.is_plain_held(x db.executions, of_fence bytea, now bigint, of_class bytea, of_policy bytea) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN x.state IS DISTINCT FROM 'alnnnr' OR x.lane_id IS NULL OR x.gated OR x.flow_id IS NOT NULL OR x.ready IS NOT NULL
      THEN false
    WHEN coalesce(
      x.last, x.watchers, x.budgets, x.children, x.stream, x.suspension, x.suspended_at, x.reserved_for, x.reserved_until,
      x.slot_until, x.retry_count, x.reclaim_count, x.timeout_left
    ) IS NOT NULL THEN false
    WHEN coalesce(x.class <> of_class, true) OR x.policy IS DISTINCT FROM of_policy THEN false
    WHEN coalesce(x.fence <> of_fence OR position(':1:'::bytea IN x.fence) <> octet_length(x.fence) - 2, true) THEN false
    WHEN position(':'::bytea IN x.fence) NOT BETWEEN 2 AND octet_length(x.fence) - 2 THEN false
    WHEN coalesce(substring(x.attempt FROM 1 FOR 16) <> '0|initial|fresh|', true) THEN false
    WHEN octet_length(x.attempt) > 32 OR ltrim(substring(x.attempt FROM 17), '0123456789'::bytea) <> '|' THEN false
    WHEN NOT coalesce(fn.is_whole(x.priority) AND fn.is_whole(x.place) AND fn.is_whole(x.expires), false) THEN false
    WHEN coalesce(x.delay_until, x.idempotency_key, x.dedup_until, x.tags, x.ended, x.suspended_until, x.timeout_at, x.deadline)
      IS NOT NULL AND NOT fn.is_sound(x) THEN false
    ELSE fn.num(x.expires) > now AND coalesce(least(fn.num(x.timeout_at), fn.num(x.deadline)) > now, true)
  END
$$;

-- Return whether the fields are sound that few executions have. The expression behind it is long, so it is evaluated here and not
-- in place, where it would have to be prepared for each call.
CREATE FUNCTION fn.is_sound(x db.executions) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  RETURN fn.damage_behind_core(x) IS NULL;
END $$;

-- Return whether a plain execution may have a policy: a sound one, under which a key is not free once a run begins.
CREATE FUNCTION fn.is_plain_policy(policy bytea) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT policy IS NULL OR fn.is_policy(policy) AND fn.of_policy(policy, 14) IS DISTINCT FROM 's'
$$;

-- Return whether a class is sound.
CREATE FUNCTION fn.is_class(class bytea) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce(cardinality(fn.unpack(class)) >= 6, false)
$$;

-- Lock executions in the order of their ids, and return whether each is plain and held under its fence. Places are looked up and not
-- joined, because the planner takes the arrays for short and would compare every pair.
CREATE FUNCTION fn.lock_held(c fn.context, ids uuid[], fences bytea[]) RETURNS boolean[] LANGUAGE plpgsql AS $$
DECLARE
  is_plain boolean[] := array_fill(false, ARRAY[cardinality(ids)]);
  places int[];
  place int;
BEGIN
  places := ARRAY(
    WITH kind AS MATERIALIZED (
      SELECT class_id, class, policy FROM (
        SELECT DISTINCT ON (class_id) class_id, class, policy FROM db.executions WHERE p = c.p AND uuid = ANY (ids) ORDER BY class_id
      ) AS first WHERE fn.is_class(class) AND fn.is_plain_policy(policy)
    ), locked AS MATERIALIZED (
      SELECT at.place, fn.is_plain_held(e, fences[at.place], c.now, kind.class, kind.policy) AS is_plain
        FROM db.executions AS e LEFT JOIN kind USING (class_id),
        LATERAL (SELECT array_position(ids, e.uuid) AS place OFFSET 0) AS at
        WHERE e.p = c.p AND e.uuid = ANY (ids) ORDER BY e.uuid FOR UPDATE OF e
    )
    SELECT locked.place FROM locked WHERE locked.is_plain
  );
  FOREACH place IN ARRAY places LOOP
    is_plain[place] := true;
  END LOOP;
  RETURN is_plain;
END $$;

-- Return the fence and the attempt that the lease of a plain execution begins with.
CREATE FUNCTION fn.first_fence(lease fn.lease) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$ SELECT lease.id || ':1:'::bytea $$;
CREATE FUNCTION fn.first_attempt(c fn.context) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.attempt_text('0', 'initial', 'fresh', c.now::text)
$$;

-- Return when the lease or the attempt of a plain execution ends, whichever is first.
CREATE FUNCTION fn.first_end(c fn.context, lease fn.lease, policy bytea) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT c.now + least(lease.ttl, fn.policy_timeout(policy))
$$;

-- Put plain executions under a lease.
CREATE FUNCTION fn.take_plain(c fn.context, ids uuid[], lease fn.lease) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  of_fence bytea := fn.first_fence(lease);
  of_attempt bytea := fn.first_attempt(c);
  until bytea := fn.bytes(c.now + lease.ttl);
  soonest bigint;
  count int;
BEGIN
  WITH taken AS (
    UPDATE db.executions AS e SET state = 'alnnnr', fence = of_fence, attempt = of_attempt, expires = until,
        holder = lease.holder, topic = lease.topic, timeout_at = fn.bytes(c.now + fn.policy_timeout(policy)),
        ready = NULL, due = fn.first_end(c, lease, policy), due_in = 'd', listed = 'active'
      WHERE p = c.p AND uuid = ANY (ids) RETURNING lane_id, class_id, due
  ), counted AS (
    INSERT INTO db.depths (p, lane_id, class_id, state, change)
      SELECT c.p, lane_id, class_id, state, sum(change) FROM taken, (VALUES ('waiting', -1), ('active', 1)) AS of_state(state, change)
        GROUP BY lane_id, class_id, state
  )
  SELECT due, count(*) INTO soonest, count FROM taken GROUP BY due ORDER BY due LIMIT 1;
  RETURN fn.note_moment(c, soonest, count);
END $$;

-- Complete plain executions with their results.
CREATE FUNCTION fn.complete_plain(c fn.context, ids uuid[], results bytea[]) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  moment bytea := fn.bytes(c.now);
BEGIN
  IF cardinality(ids) = 0 THEN
    RETURN c;
  END IF;
  WITH done AS (
    UPDATE db.executions SET state = 'tunnsz', ended = moment, result = results[array_position(ids, uuid)], due_in = 'r',
        listed = NULL, due = fn.kept_for(moment, policy, dedup_until)
      WHERE p = c.p AND uuid = ANY (ids) RETURNING array_position(ids, uuid) AS place, uuid, class, tags, lane_id, class_id
  ), counted AS (
    INSERT INTO db.depths (p, lane_id, class_id, state, change)
      SELECT c.p, lane_id, class_id, state, sum(change) FROM done, (VALUES ('active', -1), ('completed', 1)) AS of_state(state, change)
        GROUP BY lane_id, class_id, state
  )
  INSERT INTO db.feed (p, ended, uuid, outcome, class, tags)
    SELECT c.p, c.now, uuid, 'success', class, nullif(tags, '') FROM done ORDER BY place;
  RETURN fn.note_ends(c, cardinality(ids));
END $$;
