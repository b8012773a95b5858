-- Flows: their records, the order in which they are locked, and the state that follows from their members.
--
-- Whatever changes the graph of a flow, or ends or replays a member, holds the row of the flow. It is locked before the
-- executions, so two calls never wait for each other. A call that learns too late that it needs a flow takes it only if
-- it is free, and otherwise leaves the work to a due entry.

-- Locks -------------------------------------------------------------------------------------------------------------

-- Lock the flows of some executions, in the order of their ids, before these executions are locked. A call that does not
-- end executions needs only the flows of those that time may end.
CREATE FUNCTION fn.lock_flows(c fn.context, members uuid[], is_end boolean) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  ids uuid[] := ARRAY(
    SELECT unnest(ARRAY[flow_id, fn.children_of(x)]) FROM db.executions AS x
    WHERE p = c.p AND uuid = ANY (members) AND (flow_id IS NOT NULL OR children IS NOT NULL) AND (is_end OR due <= c.now)
  );
BEGIN
  IF cardinality(ids) > 0 THEN
    c.flows := c.flows || ARRAY(
      SELECT flow FROM (
        SELECT flow FROM db.flows WHERE p = c.p AND flow = ANY (ids) ORDER BY flow FOR NO KEY UPDATE
      ) AS locked
    );
  END IF;
  RETURN c;
END $$;

-- Return the flow of an execution's children, or null.
CREATE FUNCTION fn.children_of(x db.executions) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN fn.ascii(x.children) ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN fn.id(x.children) END
$$;

-- Take a flow if no other call has it. It is among c.flows afterwards if this call holds it.
CREATE FUNCTION fn.try_flow(c fn.context, of_flow uuid) RETURNS fn.context LANGUAGE plpgsql AS $$
BEGIN
  IF of_flow <> ALL (c.flows) THEN
    PERFORM FROM db.flows WHERE p = c.p AND flow = of_flow FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
      c.flows := c.flows || of_flow;
    END IF;
  END IF;
  RETURN c;
END $$;

CREATE FUNCTION fn.flow(c fn.context, of_flow uuid) RETURNS db.flows LANGUAGE sql AS $$
  SELECT * FROM db.flows WHERE p = c.p AND flow = of_flow
$$;

-- Return whether an execution is a member of a flow that is being built, which no reader sees before it is complete.
CREATE FUNCTION fn.is_hidden(x db.executions) RETURNS boolean LANGUAGE sql AS $$
  SELECT x.flow_id IS NOT NULL AND EXISTS (
    SELECT FROM db.flows WHERE p = x.p AND flow = x.flow_id AND building IS NOT NULL
  )
$$;

-- State -------------------------------------------------------------------------------------------------------------

-- Return a stored number, or null if it is absent or damaged.
CREATE FUNCTION fn.sound(value bytea) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN fn.is_whole(value) THEN fn.num(value) END
$$;

-- Return whether a flow has a member in one of some public states.
CREATE FUNCTION fn.has_member(f db.flows, VARIADIC states text[]) RETURNS boolean LANGUAGE sql AS $$
  SELECT EXISTS (SELECT FROM db.executions WHERE p = f.p AND flow_id = f.flow AND member = ANY (states))
$$;

-- Return whether a flow has a member that may still run.
CREATE FUNCTION fn.is_unfinished(f db.flows) RETURNS boolean LANGUAGE sql AS $$
  SELECT fn.has_member(f, 'waiting', 'delayed', 'rate_limited', 'waiting_children', 'active', 'suspended')
$$;

-- Return whether a flow was cancelled and takes along what waits.
CREATE FUNCTION fn.is_cancelling(f db.flows) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce(f.cancel_policy NOT IN ('', 'flow_only'), false)
$$;

-- Return the state of a flow: the one that was decided, or what its members say.
CREATE FUNCTION fn.flow_state(f db.flows) RETURNS bytea LANGUAGE sql AS $$
  SELECT CASE
    WHEN f.state <> 'open' OR f.state IS NULL THEN f.state
    WHEN fn.has_member(f, 'active') THEN 'running'::bytea
    WHEN fn.has_member(f, 'waiting') THEN CASE
      WHEN fn.has_member(f, 'completed', 'failed', 'cancelled', 'expired', 'skipped')
        OR EXISTS (SELECT FROM db.executions WHERE p = f.p AND flow_id = f.flow AND attempt IS NOT NULL)
        THEN 'running'::bytea ELSE 'open' END
    WHEN fn.is_unfinished(f) THEN 'blocked'
    ELSE 'open'
  END
$$;

-- Return how many members a flow has in each public state, joined by ','.
CREATE FUNCTION fn.member_counts(f db.flows) RETURNS bytea LANGUAGE sql AS $$
  SELECT fn.bytes(string_agg(coalesce(count, 0)::text, ',' ORDER BY nth)) FROM unnest(ARRAY[
    'waiting', 'delayed', 'rate_limited', 'waiting_children', 'active', 'suspended', 'completed', 'failed', 'cancelled',
    'expired', 'skipped'
  ]) WITH ORDINALITY AS states(state, nth)
  LEFT JOIN (
    SELECT member, count(*) FROM db.executions WHERE p = f.p AND flow_id = f.flow GROUP BY member
  ) AS counted ON member = state
$$;

-- Return whether a member of a flow that has ended ended badly without being covered: by other than the flow, and not only
-- for groups that enough others satisfied.
CREATE FUNCTION fn.has_failed(f db.flows) RETURNS boolean LANGUAGE sql AS $$
  SELECT EXISTS (
    SELECT FROM db.executions AS x
    WHERE p = f.p AND flow_id = f.flow AND member IN ('failed', 'expired', 'cancelled')
      AND NOT (member = 'cancelled' AND cancelled_by = 'flow') AND NOT coalesce((
        SELECT bool_and(g.state = 'satisfied' AND g.policy IN ('any_of', 'quorum'))
        FROM db.edges AS e, LATERAL (SELECT * FROM db.groups WHERE p = e.p AND flow = e.flow AND down = e.down LIMIT 1) AS g
        WHERE e.p = x.p AND e.flow = f.flow AND e.up = x.uuid
      ), false)
  )
$$;

-- Write what changed of a flow.
CREATE FUNCTION fn.put_flow(f db.flows) RETURNS void LANGUAGE sql AS $$
  UPDATE db.flows SET (
    mutated, revision, nodes, edges, sealed, building, state, ended, keep, keep_until, cancel_policy, cancel_reason,
    cancelled_at, answered
  ) = (
    f.mutated, f.revision, f.nodes, f.edges, f.sealed, f.building, f.state, f.ended, f.keep, f.keep_until,
    f.cancel_policy, f.cancel_reason, f.cancelled_at, f.answered
  ) WHERE p = f.p AND flow = f.flow
$$;

-- Return a flow whose graph has changed.
CREATE FUNCTION fn.revised(c fn.context, f db.flows) RETURNS db.flows LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  f.revision := fn.bytes(coalesce(fn.sound(f.revision), 0) + 1); f.mutated := fn.bytes(c.now);
  RETURN f;
END $$;

-- Return a flow that is kept as long as one more member.
CREATE FUNCTION fn.joined(f db.flows, x db.executions) RETURNS db.flows LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  f.nodes := fn.bytes(coalesce(fn.sound(f.nodes), 0) + 1);
  f.keep := fn.bytes(greatest(fn.sound(f.keep), coalesce(fn.of_policy(x.policy, 11)::bigint, fn.a_day())));
  f.keep_until := fn.bytes(greatest(fn.sound(f.keep_until), fn.num(x.dedup_until)));
  RETURN f;
END $$;

-- End a flow all of whose members have ended; or open it again if one of them may run.
CREATE FUNCTION fn.settle_flow(c fn.context, of_flow uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  f db.flows := fn.flow(c, of_flow);
  kept bigint;
BEGIN
  IF f.flow IS NULL OR f.building IS NOT NULL THEN
    RETURN;
  ELSIF fn.is_unfinished(f) OR f.sealed IS NULL AND f.cancel_policy IS NULL THEN
    IF f.ended IS NOT NULL THEN
      f.ended := NULL;
      f.state := CASE WHEN f.cancel_policy IS NULL THEN 'open'::bytea ELSE 'cancelled' END;
      PERFORM fn.drop_entry(c, 'y', fn.bytes(of_flow)), fn.put_flow(f);
    END IF;
  ELSIF f.ended IS NULL THEN
    f.state := CASE
      WHEN f.cancel_policy IS NOT NULL THEN 'cancelled'::bytea WHEN fn.has_failed(f) THEN 'failed' ELSE 'completed' END;
    f.ended := fn.bytes(c.now);
    kept := greatest(c.now + coalesce(fn.sound(f.keep), fn.a_day()), fn.sound(f.keep_until));
    PERFORM fn.note_entry(c, 'y', fn.bytes(of_flow), kept), fn.put_flow(f);
  END IF;
END $$;

-- Removal -----------------------------------------------------------------------------------------------------------

-- Remove up to `most` of what belongs to a flow whose retention is over, or that was not completed in time; the flow itself
-- last. Return whether everything is gone. The flow is held.
CREATE FUNCTION fn.remove_flow(c fn.context, of_flow uuid, most int) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  members db.executions[];
  left_over int := most;
  gone int;
BEGIN
  b.c := c; b.count := 0;
  -- What is being removed is not shown any more.
  UPDATE db.flows SET building = coalesce(building, '0') WHERE p = c.p AND flow = of_flow AND building IS NULL;
  members := ARRAY(
    SELECT x FROM db.executions AS x WHERE p = c.p AND flow_id = of_flow ORDER BY uuid LIMIT most FOR UPDATE SKIP LOCKED
  );
  b.c := fn.remove_all(c, members);
  left_over := left_over - cardinality(members);
  DELETE FROM db.edges WHERE p = c.p AND flow = of_flow AND id IN (
    SELECT id FROM db.edges WHERE p = c.p AND flow = of_flow ORDER BY id LIMIT left_over
  );
  GET DIAGNOSTICS gone = ROW_COUNT;
  left_over := left_over - gone;
  DELETE FROM db.groups WHERE p = c.p AND flow = of_flow AND down IN (
    SELECT down FROM db.groups WHERE p = c.p AND flow = of_flow ORDER BY down LIMIT left_over
  );
  GET DIAGNOSTICS gone = ROW_COUNT;
  left_over := left_over - gone;
  IF left_over > 0 AND NOT EXISTS (SELECT FROM db.executions WHERE p = c.p AND flow_id = of_flow) THEN
    DELETE FROM db.acknowledged WHERE p = c.p AND flow = of_flow;
    DELETE FROM db.flows WHERE p = c.p AND flow = of_flow;
    b.count := 1;
  END IF;
  RETURN b;
END $$;

-- Handle the entry of a flow whose retention is over.
CREATE FUNCTION fn.retire_flow(c fn.context, of_flow uuid) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  f db.flows;
BEGIN
  c := fn.try_flow(c, of_flow);
  IF of_flow <> ALL (c.flows) THEN
    IF EXISTS (SELECT FROM db.flows WHERE p = c.p AND flow = of_flow) THEN
      PERFORM fn.note_entry(c, 'y', fn.bytes(of_flow), c.now);
    END IF;
    RETURN c;
  END IF;
  f := fn.flow(c, of_flow);
  IF f.ended IS NULL AND f.building IS NULL THEN
    RETURN c;
  END IF;
  b := fn.remove_flow(c, of_flow, 32);
  IF b.count = 0 THEN
    PERFORM fn.note_entry(c, 'y', fn.bytes(of_flow), c.now);
  END IF;
  RETURN b.c;
END $$;
