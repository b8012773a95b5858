-- Edges and groups: how the end of a member resolves the edges that leave it, and what the groups that this decides cause.

-- Return the state of a group: pending until its edges decide it.
CREATE FUNCTION fn.decided_state(
  policy text, k int, n int, ok int, bad int, skip int, is_sealed boolean
) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN policy = 'all_of' AND bad + skip > 0 THEN 'impossible'
    WHEN policy = 'all_of' AND ok = n THEN 'satisfied'
    WHEN policy = 'all_ended' AND ok + bad + skip = n THEN 'satisfied'
    WHEN policy = 'children_ended' AND ok + bad + skip >= k THEN 'satisfied'
    WHEN policy = 'children' AND (ok >= k OR bad + skip > n - k) THEN 'satisfied'
    WHEN policy IN ('any_of', 'quorum') AND ok >= k THEN 'satisfied'
    WHEN policy IN ('any_of', 'quorum') AND (k <= n OR is_sealed) AND bad + skip > n - k THEN 'impossible'
    ELSE 'pending'
  END
$$;

-- Return whether the numbers of a group can be counted with; a larger or a negative one was damaged.
CREATE FUNCTION fn.are_counts(VARIADIC numbers int[]) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT 0 <= ALL (numbers) AND 500000000 > ALL (numbers)
$$;

-- Return whether a group is that of an execution and its children.
CREATE FUNCTION fn.is_of_children(policy text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT policy IN ('children', 'children_ended')
$$;

-- Return the result of an edge that stands: s, f, k, or '' while it is unresolved.
CREATE FUNCTION fn.effective(result "char", life int, policy text, of_group int) RETURNS "char" LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN result = 's' OR life = of_group OR fn.is_of_children(policy) THEN result ELSE '' END
$$;

-- Return the result that the end of an execution gives to the edges that leave it.
CREATE FUNCTION fn.result_of(state bytea) RETURNS "char" LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN state LIKE '____s%' THEN 's'::"char" WHEN state LIKE '____k%' THEN 'k' ELSE 'f' END
$$;

-- Resolve up to `most` of the edges that leave some members of a flow, after an edge of the first one. Only members that
-- have ended resolve edges, and an edge that has its result already counts nothing. The flow is held.
CREATE FUNCTION fn.resolve(c fn.context, f db.flows, ups uuid[], after bytea, most bigint) RETURNS fn.resolved
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  r fn.resolved;
BEGIN
  WITH page AS MATERIALIZED (
    -- A member that was removed because it was damaged has no state, and has failed.
    SELECT u.nth, u.up, e.id, e.down, fn.effective(e.result, e.life, g.policy, g.life) AS old, fn.result_of(x.state) AS new,
      CASE WHEN fn.is_of_children(g.policy) THEN e.life ELSE g.life END AS life,
      e.life = g.life OR NOT fn.is_of_children(g.policy) AS counts,
      fn.are_counts(g.k, g.n, g.ok, g.bad, g.skip, g.life) AS is_sound
    FROM unnest(ups) WITH ORDINALITY AS u(up, nth)
    LEFT JOIN LATERAL (SELECT uuid, state FROM db.executions WHERE p = c.p AND uuid = u.up LIMIT 1) AS x ON true
    CROSS JOIN LATERAL (
      SELECT * FROM db.edges WHERE p = c.p AND flow = f.flow AND up = u.up AND id > CASE u.nth WHEN 1 THEN after ELSE '' END
        ORDER BY id LIMIT most
    ) AS e
    CROSS JOIN LATERAL (SELECT * FROM db.groups WHERE p = c.p AND flow = f.flow AND down = e.down LIMIT 1) AS g
    WHERE x.uuid IS NULL OR x.state LIKE 't%'
    ORDER BY u.nth, e.id LIMIT most
  ), changed AS MATERIALIZED (
    SELECT * FROM page WHERE old <> 's' AND old <> new AND is_sound
  ), written AS (
    UPDATE db.edges AS e SET result = changed.new, life = changed.life FROM changed
    WHERE e.p = c.p AND e.flow = f.flow AND e.id = ANY (ARRAY(SELECT id FROM changed)) AND e.id = changed.id
  ), counted AS MATERIALIZED (
    SELECT down, count(*) FILTER (WHERE new = 's') AS ok,
      count(*) FILTER (WHERE new = 'f') - count(*) FILTER (WHERE old = 'f') AS bad,
      count(*) FILTER (WHERE new = 'k') - count(*) FILTER (WHERE old = 'k') AS skip,
      array_agg(up ORDER BY nth, id) FILTER (WHERE new = 's') AS oks,
      array_agg(up ORDER BY nth, id) FILTER (WHERE new <> 's') AS bads,
      array_agg(up ORDER BY nth, id) AS ups, (array_agg(ROW(nth, id)::fn.link ORDER BY nth, id))[1] AS place
    FROM changed WHERE counts GROUP BY down
  ), decided AS MATERIALIZED (
    SELECT d.*, g.state AS was, CASE WHEN g.state <> 'satisfied' AND g.force THEN fn.decided_state(
      g.policy, g.k, g.n, (g.ok + d.ok)::int, (g.bad + d.bad)::int, (g.skip + d.skip)::int, f.sealed IS NOT NULL
    ) ELSE g.state END AS state
    FROM counted AS d
    CROSS JOIN LATERAL (SELECT * FROM db.groups WHERE p = c.p AND flow = f.flow AND down = d.down LIMIT 1) AS g
  ), noted AS (
    UPDATE db.groups AS g SET ok = g.ok + d.ok, bad = g.bad + d.bad, skip = g.skip + d.skip, state = d.state,
      decided = CASE
        WHEN d.state = d.was THEN g.decided
        WHEN g.policy IN ('any_of', 'quorum') AND d.state = 'satisfied' THEN d.oks[g.k - g.ok]
        WHEN g.policy IN ('any_of', 'quorum') AND d.state = 'impossible' THEN d.bads[greatest(g.n - g.k - g.bad - g.skip + 1, 1)]
        WHEN d.state = 'impossible' THEN d.bads[1]
        WHEN d.state = 'satisfied' THEN d.ups[cardinality(d.ups)] END
    FROM decided AS d
    WHERE g.p = c.p AND g.flow = f.flow AND g.down = ANY (ARRAY(SELECT down FROM counted)) AND g.down = d.down
    RETURNING d.was, d.place, g.*
  )
  SELECT (SELECT count(*) FROM page), last.nth, last.id, fired.downs, fired.states, fired.deciders, fired.cancels,
    ARRAY(SELECT DISTINCT down FROM page WHERE NOT is_sound ORDER BY down)
    INTO r
  FROM (
    SELECT coalesce(array_agg(down ORDER BY place), '{}') AS downs, array_agg(state ORDER BY place) AS states,
      array_agg(decided ORDER BY place) AS deciders,
      array_agg(fn.cancels_others(others, policy, state, n - ok - bad - skip) ORDER BY place) AS cancels
    FROM noted WHERE was <> state
  ) AS fired LEFT JOIN (SELECT nth, id FROM page ORDER BY nth DESC, id DESC LIMIT 1) AS last ON true;
  RETURN r;
END $$;

-- Make up to `most` edges that leave a member unresolved, after one of them, unless their result is a success: the member
-- runs or waits again. Groups that were impossible are pending again. The flow is held.
CREATE FUNCTION fn.unresolve(c fn.context, f db.flows, of_up uuid, after bytea, most bigint) RETURNS fn.resolved
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  r fn.resolved;
BEGIN
  WITH page AS MATERIALIZED (
    SELECT e.id, e.down, fn.effective(e.result, e.life, g.policy, g.life) AS old,
      e.life = g.life OR NOT fn.is_of_children(g.policy) AS counts,
      fn.are_counts(g.k, g.n, g.ok, g.bad, g.skip, g.life) AS is_sound
    FROM (
      SELECT * FROM db.edges WHERE p = c.p AND flow = f.flow AND up = of_up AND id > after ORDER BY id LIMIT most
    ) AS e CROSS JOIN LATERAL (SELECT * FROM db.groups WHERE p = c.p AND flow = f.flow AND down = e.down LIMIT 1) AS g
  ), written AS (
    UPDATE db.edges AS e SET result = '' FROM page
    WHERE e.p = c.p AND e.flow = f.flow AND e.id = ANY (ARRAY(SELECT id FROM page)) AND e.id = page.id AND old IN ('f', 'k')
      AND is_sound
  ), counted AS MATERIALIZED (
    SELECT down, count(*) FILTER (WHERE old = 'f') AS bad, count(*) FILTER (WHERE old = 'k') AS skip, min(id) AS place
    FROM page WHERE old IN ('f', 'k') AND counts AND is_sound GROUP BY down
  ), noted AS (
    UPDATE db.groups AS g SET bad = g.bad - d.bad, skip = g.skip - d.skip,
      state = CASE g.state WHEN 'impossible' THEN 'pending' ELSE g.state END,
      decided = CASE g.state WHEN 'impossible' THEN NULL ELSE g.decided END
    FROM counted AS d CROSS JOIN LATERAL (
      SELECT state FROM db.groups WHERE p = c.p AND flow = f.flow AND down = d.down LIMIT 1
    ) AS before
    WHERE g.p = c.p AND g.flow = f.flow AND g.down = ANY (ARRAY(SELECT down FROM counted)) AND g.down = d.down
    RETURNING g.down, d.place, before.state AS was, g.state
  )
  SELECT (SELECT count(*) FROM page), 1, (SELECT id FROM page ORDER BY id DESC LIMIT 1), opened.downs, opened.states,
    array_fill(NULL::uuid, ARRAY[cardinality(opened.downs)]), array_fill(false, ARRAY[cardinality(opened.downs)]),
    ARRAY(SELECT DISTINCT down FROM page WHERE NOT is_sound ORDER BY down)
    INTO r
  FROM (
    SELECT coalesce(array_agg(down ORDER BY place), '{}') AS downs, array_agg(state ORDER BY place) AS states
    FROM noted WHERE was <> state
  ) AS opened;
  RETURN r;
END $$;

-- Decide the group of a member whose edges have changed otherwise than by an end, as fn.resolve does.
CREATE FUNCTION fn.decide_group(c fn.context, f db.flows, of_down uuid, by_up uuid) RETURNS fn.resolved LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  r fn.resolved;
BEGIN
  WITH noted AS (
    UPDATE db.groups AS g SET
      state = fn.decided_state(g.policy, g.k, g.n, g.ok, g.bad, g.skip, f.sealed IS NOT NULL), decided = by_up
    WHERE p = c.p AND flow = f.flow AND down = of_down AND state = 'pending' AND force
      AND fn.decided_state(g.policy, g.k, g.n, g.ok, g.bad, g.skip, f.sealed IS NOT NULL) <> 'pending'
    RETURNING g.*
  )
  SELECT count(*), NULL::bigint, NULL::bytea, coalesce(array_agg(down), '{}'), array_agg(state), array_agg(decided),
    array_agg(fn.cancels_others(others, policy, state, n - ok - bad - skip)), '{}'
    INTO r
  FROM noted;
  RETURN r;
END $$;

-- Return whether a group that was decided cancels the upstream executions of its unresolved edges.
CREATE FUNCTION fn.cancels_others(others text, policy text, state text, unresolved int) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
  SELECT others = 'cancel_remaining' AND state <> 'pending' AND (policy <> 'all_of' OR state = 'impossible') AND unresolved > 0
$$;
