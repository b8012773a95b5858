-- How the edges of a flow are staged and put into force, one by one.

-- Return the failure of an edge that would close a cycle, or null. The descendants of its downstream execution and the
-- ancestors of its upstream execution are followed in turn, until those of one side are all known.
CREATE FUNCTION fn.closes_cycle(c fn.context, of_flow uuid, id bytea, of_up uuid, of_down uuid) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  downs uuid[] := ARRAY[of_down];
  ups uuid[] := ARRAY[of_up];
  found uuid[];
  left_over int := 500;
  at int := 1;
BEGIN
  WHILE left_over > 0 LOOP
    IF at > cardinality(downs) THEN
      RETURN NULL;
    END IF;
    found := ARRAY(SELECT e.down FROM db.edges AS e WHERE p = c.p AND flow = of_flow AND e.up = downs[at] ORDER BY e.id LIMIT left_over + 1);
    left_over := greatest(left_over - cardinality(found), 0);
    downs := downs || ARRAY(SELECT DISTINCT each FROM unnest(found) AS each WHERE each <> ALL (downs));
    EXIT WHEN of_up = ANY (found);
    IF at > cardinality(ups) THEN
      RETURN NULL;
    END IF;
    found := ARRAY(SELECT e.up FROM db.edges AS e WHERE p = c.p AND flow = of_flow AND e.down = ups[at] ORDER BY e.id LIMIT left_over + 1);
    left_over := greatest(left_over - cardinality(found), 0);
    ups := ups || ARRAY(SELECT DISTINCT each FROM unnest(found) AS each WHERE each <> ALL (ups));
    EXIT WHEN of_down = ANY (found);
    at := at + 1;
  END LOOP;
  IF of_up = ANY (downs) OR of_down = ANY (ups) THEN
    RETURN fn.failure('cycle_detected', id);
  END IF;
  RETURN fn.failure('cycle_search_limit', id);
END $$;

-- Return the failure of an edge that cannot be staged, or null. `x` is its downstream execution, `g` its group or null.
CREATE FUNCTION fn.refuse_edge(c fn.context, f db.flows, args bytea[], x db.executions, g db.groups) RETURNS bytea
LANGUAGE plpgsql AS $$
DECLARE
  failure bytea := fn.refuse_change(f);
BEGIN
  IF failure IS NOT NULL THEN
    RETURN failure;
  ELSIF args[9] <> '' AND args[9] <> f.revision THEN
    RETURN fn.failure('stale_graph_revision', args[1], f.revision);
  ELSIF NOT EXISTS (SELECT FROM db.executions WHERE p = c.p AND uuid = fn.id(args[5]) AND flow_id = f.flow) THEN
    RETURN fn.failure('execution_not_in_flow', args[5], args[1]);
  ELSIF x.flow_id IS DISTINCT FROM f.flow THEN
    RETURN fn.failure('execution_not_in_flow', args[6], args[1]);
  END IF;
  failure := fn.closes_cycle(c, f.flow, args[4], fn.id(args[5]), fn.id(args[6]));
  IF failure IS NOT NULL THEN
    RETURN failure;
  ELSIF EXISTS (SELECT FROM db.edges WHERE p = c.p AND flow = f.flow AND id = args[4]) THEN
    RETURN fn.failure('dependency_already_exists', args[4]);
  ELSIF x.state NOT LIKE 'r%' OR g.state <> 'pending' THEN
    RETURN fn.failure('edge_group_fired', args[6]);
  END IF;
  RETURN NULL;
END $$;

-- Stage a new edge, with the result of its upstream execution if that has ended. Return the flow.
CREATE FUNCTION fn.stage_edge(c fn.context, f db.flows, args bytea[]) RETURNS db.flows LANGUAGE plpgsql AS $$
DECLARE
  of_result "char" := '';
  of_life int;
BEGIN
  SELECT fn.result_of(state) INTO of_result FROM db.executions
    WHERE p = c.p AND uuid = fn.id(args[5]) AND state LIKE 't%';
  of_result := coalesce(of_result, '');
  INSERT INTO db.groups AS g (p, down, flow, policy, k, others, n, ok, bad, skip) VALUES (
    c.p, fn.id(args[6]), f.flow, 'all_of', 0, 'let_run', 1,
    (of_result = 's')::int, (of_result = 'f')::int, (of_result = 'k')::int
  ) ON CONFLICT (p, flow, down) DO UPDATE SET n = g.n + 1, ok = g.ok + excluded.ok, bad = g.bad + excluded.bad,
    skip = g.skip + excluded.skip RETURNING life INTO of_life;
  INSERT INTO db.edges (p, flow, id, up, down, ref, kind, created, ordinal, applied, result, life) VALUES (
    c.p, f.flow, args[4], fn.id(args[5]), fn.id(args[6]), nullif(args[7], ''), args[8], fn.bytes(c.now),
    coalesce(fn.sound(f.edges), 0), false, of_result, of_life
  );
  f.edges := fn.bytes(coalesce(fn.sound(f.edges), 0) + 1);
  f := fn.revised(c, f);
  PERFORM fn.put_flow(f);
  RETURN f;
END $$;

-- Put a group into force by one of its edges, and let its member wait for it. `x` is the member as it was loaded.
CREATE FUNCTION fn.apply_edge(c fn.context, f db.flows, e db.edges, g db.groups, x db.executions) RETURNS fn.context
LANGUAGE plpgsql AS $$
DECLARE
  after db.executions := x;
BEGIN
  UPDATE db.edges SET applied = true WHERE p = c.p AND flow = f.flow AND id = e.id;
  IF NOT g.force THEN
    UPDATE db.groups SET force = true WHERE p = c.p AND flow = f.flow AND down = e.down;
    IF x.state NOT LIKE 'r_d%' THEN
      after.state := 'rudhn'::bytea || substring(x.state FROM 6); after.mutated := fn.bytes(c.now);
      c := fn.put(c, x, after);
    END IF;
  END IF;
  RETURN fn.carry_out(c, f, fn.decide_group(c, f, e.down, e.up));
END $$;

-- Return the state of an edge as readers see it.
CREATE FUNCTION fn.edge_word(e db.edges, g db.groups) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE fn.effective(e.result, e.life, g.policy, g.life) WHEN 's' THEN 'satisfied' WHEN 'f' THEN 'impossible' WHEN 'k' THEN 'impossible'
    ELSE CASE WHEN e.applied THEN 'applied' ELSE 'staged' END END
$$;

-- Return how many edges a group still waits for.
CREATE FUNCTION fn.unresolved(g db.groups) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.bytes((g.n - g.ok - g.bad - g.skip)::bigint)
$$;

CREATE FUNCTION fn.edge_in(c fn.context, of_flow uuid, of_id bytea) RETURNS db.edges LANGUAGE sql AS $$
  SELECT * FROM db.edges WHERE p = c.p AND flow = of_flow AND id = of_id
$$;

CREATE FUNCTION fn.group_of(c fn.context, of_flow uuid, of_down uuid) RETURNS db.groups LANGUAGE sql AS $$
  SELECT * FROM db.groups WHERE p = c.p AND flow = of_flow AND down = of_down
$$;

-- stage_dependency_edge: record an edge, and put it into force if the caller links it.
-- Arguments: flow, pack{namespace}, call id, edge, upstream uuid, downstream uuid, argument that receives the result or '', kind,
-- revision that the caller expects or '', '1' to put it into force.
-- Replies: 'staged', or 'known' if the same edge was staged before; revision; state of the edge; number of edges for which
-- the downstream execution still waits; '1' if this call put the edge into force.
-- Errors: flow_not_found, flow_already_terminal, flow_sealed, stale_graph_revision, execution_not_in_flow, cycle_detected,
-- cycle_search_limit, dependency_already_exists, edge_group_fired, corruption.
CREATE FUNCTION fn.stage_dependency_edge(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f db.flows := fn.open_flow(c, args);
  early bytea := fn.early_reply(f, args);
  e db.edges;
  g db.groups;
  x fn.found;
  failure bytea;
  answer bytea[];
  is_known boolean;
  applies boolean;
BEGIN
  IF early IS NOT NULL THEN
    RETURN early;
  END IF;
  c.flows := ARRAY[f.flow];
  e := fn.edge_in(c, f.flow, args[4]); g := fn.group_of(c, f.flow, fn.id(args[6]));
  x := fn.load(c, fn.id(args[6]));
  c := x.c;
  IF e.id IS NOT NULL AND g.down IS NULL AND e.down = fn.id(args[6]) THEN
    RETURN fn.failure('corruption', args[6], 'group');
  END IF;
  is_known := coalesce(e.up = fn.id(args[5]) AND e.down = fn.id(args[6]) AND coalesce(e.ref, '') = args[7] AND e.kind = args[8], false);
  IF NOT is_known THEN
    failure := fn.refuse_edge(c, f, args, x.x, g);
    IF failure IS NOT NULL THEN
      RETURN failure;
    END IF;
    f := fn.stage_edge(c, f, args);
    e := fn.edge_in(c, f.flow, args[4]); g := fn.group_of(c, f.flow, e.down);
  END IF;
  applies := args[10] = '1' AND NOT e.applied;
  IF applies AND ((x.x).flow_id IS DISTINCT FROM f.flow OR NOT g.force AND (x.x).state NOT LIKE 'r%') THEN
    RETURN fn.failure('edge_group_fired', args[6]);
  ELSIF applies THEN
    c := fn.apply_edge(c, f, e, g, x.x);
  ELSIF NOT is_known THEN
    c := fn.carry_out(c, f, fn.decide_group(c, f, e.down, e.up));
  END IF;
  c := fn.flush(c);
  e := fn.edge_in(c, f.flow, args[4]); g := fn.group_of(c, f.flow, e.down);
  answer := ARRAY[
    CASE WHEN is_known THEN 'known'::bytea ELSE 'staged' END, f.revision, fn.bytes(fn.edge_word(e, g)), fn.unresolved(g),
    CASE WHEN applies THEN '1'::bytea ELSE '' END
  ];
  IF is_known THEN
    RETURN fn.answer(VARIADIC answer);
  END IF;
  RETURN fn.answer_once(c, f.flow, args[3], VARIADIC answer);
END $$;

-- apply_dependency_to_child: put a staged edge into force.
-- Arguments: flow, pack{namespace}, call id, edge.
-- Replies: 'applied', or 'known' if it was applied before; number of edges for which the downstream execution still waits.
-- Errors: flow_not_found, edge_not_found, execution_not_found, edge_group_fired, corruption.
CREATE FUNCTION fn.apply_dependency_to_child(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f db.flows := fn.open_flow(c, args);
  early bytea := fn.early_reply(f, args);
  e db.edges;
  g db.groups;
  x fn.found;
BEGIN
  IF early IS NOT NULL THEN
    RETURN early;
  END IF;
  c.flows := ARRAY[f.flow];
  e := fn.edge_in(c, f.flow, args[4]); g := fn.group_of(c, f.flow, e.down);
  IF e.id IS NULL THEN
    RETURN fn.failure('edge_not_found', args[4]);
  ELSIF g.down IS NULL THEN
    RETURN fn.failure('corruption', fn.bytes(e.down), 'group');
  ELSIF e.applied THEN
    RETURN fn.answer('known', fn.unresolved(g));
  END IF;
  x := fn.load(c, e.down);
  c := x.c;
  IF x.failure IS NOT NULL THEN
    RETURN x.failure;
  ELSIF NOT g.force AND (x.x).state NOT LIKE 'r%' THEN
    RETURN fn.failure('edge_group_fired', fn.bytes(e.down));
  END IF;
  c := fn.apply_edge(c, f, e, g, x.x);
  c := fn.flush(c);
  RETURN fn.answer_once(c, f.flow, args[3], 'applied', fn.unresolved(fn.group_of(c, f.flow, e.down)));
END $$;
