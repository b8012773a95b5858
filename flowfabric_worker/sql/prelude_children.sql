-- Children: executions that a running execution spawns. They are members of a flow that the parent's record names in its field
-- `children`, each with an edge that leads to the parent; see the table of groups. The life of an edge that no wait has counted
-- is -1.

-- Add a child to the flow of its parent's children, which begins with the first child. `detached` children are not cancelled
-- with their parent, and no wait counts them unless it names them. The creation begins at argument `at`.
CREATE FUNCTION fn.add_child(c fn.context, x db.executions, args bytea[], at int, of_flow uuid, name bytea, detached boolean)
RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  f db.flows := fn.new_flow(c, of_flow, fn.pack(fn.unpack_first(x.class)), 'children', '');
  child db.executions;
  was db.executions;
BEGIN
  INSERT INTO db.flows SELECT (f).* ON CONFLICT DO NOTHING;
  INSERT INTO db.groups (p, flow, down, policy, k, others) VALUES (c.p, of_flow, x.uuid, 'children', 0, 'let_run')
    ON CONFLICT DO NOTHING;
  SELECT * INTO f FROM db.flows WHERE p = c.p AND flow = of_flow FOR NO KEY UPDATE;
  c.flows := c.flows || of_flow;
  c := fn.store_nodes(c, f, ARRAY['n'::bytea] || args[at : at + 7] || ''::bytea, ARRAY[1]);
  SELECT * INTO was FROM db.executions WHERE p = c.p AND uuid = fn.id(args[at]);
  child := fn.let_run(c, was);
  c := fn.put(c, was, child);
  f := fn.revised(c, fn.flow(c, of_flow));
  INSERT INTO db.edges (p, flow, id, up, down, kind, created, ordinal, applied, life)
    VALUES (c.p, of_flow, name, child.uuid, x.uuid, 'success_only', fn.bytes(c.now), fn.sound(f.edges), false, -1);
  f.edges := fn.bytes(fn.sound(f.edges) + 1);
  PERFORM fn.put_flow(f);
  IF detached THEN
    INSERT INTO db.acknowledged (p, flow, uuid) VALUES (c.p, of_flow, child.uuid) ON CONFLICT DO NOTHING;
  END IF;
  RETURN c;
END $$;

-- Begin a wait of an execution for its children, and return whether it is over at once. `need` is how many of them must
-- succeed, or end if `settles`; null for all. Without `names` it counts all children that are not detached, at most 1000.
CREATE FUNCTION fn.await_children(c fn.context, x db.executions, need bigint, settles boolean, names bytea[]) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  of_flow uuid := fn.children_of(x);
  ids bytea[] := ARRAY(
    SELECT id FROM db.edges AS e WHERE p = c.p AND flow = of_flow AND down = x.uuid AND (
      id = ANY (names) OR cardinality(names) = 0 AND NOT EXISTS (
        SELECT FROM db.acknowledged AS a WHERE a.p = c.p AND a.flow = of_flow AND a.uuid = e.up
      )
    ) ORDER BY id LIMIT 1000
  );
  count int := cardinality(ids);
  g db.groups;
BEGIN
  IF count = 0 THEN
    RETURN true;
  END IF;
  UPDATE db.groups SET life = life + 1, policy = CASE WHEN settles THEN 'children_ended' ELSE 'children' END, n = count,
    k = least(coalesce(need, count), count), force = true, state = 'pending', decided = NULL
    WHERE p = c.p AND flow = of_flow AND down = x.uuid RETURNING * INTO g;
  UPDATE db.edges SET life = g.life WHERE p = c.p AND flow = of_flow AND id = ANY (ids);
  SELECT count(*) FILTER (WHERE result = 's'), count(*) FILTER (WHERE result = 'f'), count(*) FILTER (WHERE result = 'k')
    INTO g.ok, g.bad, g.skip FROM db.edges WHERE p = c.p AND flow = of_flow AND id = ANY (ids);
  g.state := fn.decided_state(g.policy, g.k, g.n, g.ok, g.bad, g.skip, false);
  UPDATE db.groups SET ok = g.ok, bad = g.bad, skip = g.skip, state = g.state
    WHERE p = c.p AND flow = of_flow AND down = x.uuid;
  RETURN g.state = 'satisfied';
END $$;

-- parent: note that the parent of a flow of children has ended. It spawns no more children, and those that are attached go with
-- it if it was cancelled or expired.
CREATE FUNCTION fn.run_parent(c fn.context, f db.flows, about uuid) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  how text := (SELECT fn.public_state(fn.ascii(state)) FROM db.executions WHERE p = c.p AND uuid = about AND state LIKE 't%');
BEGIN
  IF how IS NOT NULL THEN
    f.sealed := '1';
    IF how IN ('cancelled', 'expired') AND f.cancel_policy IS NULL THEN
      f.cancel_policy := 'cancel_all'; f.cancel_reason := fn.bytes('parent_' || how); f.cancelled_at := fn.bytes(c.now);
      f.mutated := fn.bytes(c.now); f.state := 'cancelled';
    END IF;
    PERFORM fn.put_flow(f);
    IF how IN ('cancelled', 'expired') THEN
      c := fn.enqueue(c, 'cancel:' || f.flow);
    END IF;
  END IF;
  b.c := c; b.count := 0;
  RETURN b;
END $$;

-- Let an execution that is replayed spawn children again.
CREATE FUNCTION fn.reopen_children(c fn.context, x db.executions) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  of_flow uuid := fn.children_of(x);
BEGIN
  IF of_flow IS NOT NULL THEN
    UPDATE db.flows SET sealed = NULL, cancel_policy = NULL, cancel_reason = NULL, cancelled_at = NULL, state = 'open'
      WHERE p = c.p AND flow = of_flow;
    c.settles := c.settles || of_flow;
  END IF;
  RETURN c;
END $$;
