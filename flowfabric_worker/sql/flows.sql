-- How flows are built. Every operation names a flow of a namespace, and is refused with flow_not_found if there
-- is none, or if its graph is not complete yet.

-- Return the failure of an operation that changes the graph of a flow, or null.
CREATE FUNCTION fn.refuse_change(f db.flows) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN f.cancel_policy IS NOT NULL OR f.state IN ('completed', 'failed')
      THEN fn.failure('flow_already_terminal', fn.bytes(f.flow), f.state)
    WHEN f.sealed IS NOT NULL THEN fn.failure('flow_sealed', fn.bytes(f.flow))
  END
$$;

-- Return a flow that a call changes, which it holds, or null.
CREATE FUNCTION fn.open_flow(c fn.context, args bytea[]) RETURNS db.flows LANGUAGE sql AS $$
  SELECT * FROM db.flows WHERE p = c.p AND flow = fn.id(args[1]) AND namespace = args[2] AND building IS NULL
  FOR NO KEY UPDATE
$$;

-- Return the reply to a call on a flow that has nothing to do: the flow does not exist, or the call was answered before. Null
-- otherwise.
CREATE FUNCTION fn.early_reply(f db.flows, args bytea[]) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN f.flow IS NULL THEN fn.failure('flow_not_found', args[1]) ELSE fn.reply_before(f.answered, args[3]) END
$$;

-- Remember the answer of a call that changed a flow, and return the reply.
CREATE FUNCTION fn.answer_once(c fn.context, of_flow uuid, call_id bytea, VARIADIC answer bytea[]) RETURNS bytea
LANGUAGE plpgsql AS $$
BEGIN
  UPDATE db.flows SET answered = fn.remember(answered, call_id, VARIADIC answer) WHERE p = c.p AND flow = of_flow;
  RETURN fn.answer(VARIADIC answer);
END $$;

-- Return the row of a new flow.
CREATE FUNCTION fn.new_flow(c fn.context, of_flow uuid, namespace bytea, kind bytea, tags bytea) RETURNS db.flows
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  f db.flows;
BEGIN
  f.p := c.p; f.flow := of_flow; f.namespace := namespace; f.kind := kind; f.tags := tags;
  f.created := fn.bytes(c.now); f.mutated := fn.bytes(c.now); f.revision := '0'; f.nodes := '0'; f.edges := '0';
  f.state := 'open';
  RETURN f;
END $$;

-- create_flow: create a flow without members.
-- Arguments: flow, pack{namespace}, call id, kind, tags as pack{key, value, ...}.
-- Replies: 'created', or 'known' if the same flow was created before.
-- Errors: conflict, the flow exists with another kind or in another namespace.
CREATE FUNCTION fn.create_flow(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f db.flows := fn.new_flow(c, fn.id(args[1]), args[2], args[4], args[5]);
BEGIN
  f.answered := fn.remember(NULL, args[3], 'created');
  INSERT INTO db.flows SELECT (f).* ON CONFLICT DO NOTHING;
  IF FOUND THEN
    RETURN fn.answer('created');
  END IF;
  f := fn.flow(c, f.flow);
  IF f.namespace = args[2] AND f.kind = args[4] AND f.building IS NULL THEN
    RETURN coalesce(fn.reply_before(f.answered, args[3]), fn.answer('known'));
  END IF;
  RETURN fn.failure('conflict');
END $$;

-- add_execution_to_flow: make an execution a member of a flow.
-- Arguments: flow, pack{namespace}, call id, uuid.
-- Replies: 'added', or 'known' if it was a member before; the number of members.
-- Errors: flow_not_found, flow_already_terminal, flow_sealed, execution_not_found, execution_already_in_flow, corruption.
CREATE FUNCTION fn.add_execution_to_flow(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f db.flows := fn.open_flow(c, args);
  early bytea := fn.early_reply(f, args);
  refused bytea := fn.refuse_change(f);
  x fn.found;
  after db.executions;
BEGIN
  IF early IS NOT NULL THEN
    RETURN early;
  END IF;
  c.flows := ARRAY[f.flow];
  x := fn.load(c, fn.id(args[4]));
  c := x.c;
  IF x.failure IS NULL AND ((x.x).namespace <> args[2] OR fn.is_hidden(x.x)) THEN
    x.failure := fn.failure('execution_not_found', args[4]);
  END IF;
  IF x.failure IS NULL AND (x.x).flow_id = f.flow THEN
    RETURN fn.answer('known', f.nodes);
  ELSIF refused IS NOT NULL THEN
    RETURN refused;
  ELSIF x.failure IS NOT NULL THEN
    RETURN x.failure;
  ELSIF (x.x).flow_id IS NOT NULL THEN
    RETURN fn.failure('execution_already_in_flow', args[4], fn.bytes((x.x).flow_id));
  END IF;
  after := x.x;
  after.flow := fn.bytes(f.flow); after.flow_id := f.flow; after.mutated := fn.bytes(c.now);
  c := fn.put(c, x.was, after);
  f := fn.joined(fn.revised(c, f), after);
  PERFORM fn.put_flow(f);
  c := fn.flush(c);
  RETURN fn.answer_once(c, f.flow, args[3], 'added', f.nodes);
END $$;

-- set_edge_group_policy: set when the edges into a member let it run.
-- Arguments: flow, pack{namespace}, call id, uuid, policy, how many successes it wants, what becomes of the others.
-- Replies: 'set', or 'known' if the policy was the same before.
-- Errors: flow_not_found, flow_already_terminal, flow_sealed, execution_not_in_flow, edge_group_policy_fixed, corruption.
CREATE FUNCTION fn.set_edge_group_policy(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f db.flows := fn.open_flow(c, args);
  early bytea := fn.early_reply(f, args);
  refused bytea := fn.refuse_change(f);
  g db.groups;
  x fn.found;
BEGIN
  IF early IS NOT NULL THEN
    RETURN early;
  END IF;
  SELECT * INTO g FROM db.groups WHERE p = c.p AND flow = f.flow AND down = fn.id(args[4]);
  IF g.policy = fn.ascii(args[5]) AND g.k = fn.num(args[6]) AND g.others = fn.ascii(args[7]) THEN
    RETURN fn.answer('known');
  ELSIF refused IS NOT NULL THEN
    RETURN refused;
  END IF;
  x := fn.load(c, fn.id(args[4]));
  c := x.c;
  IF x.failure IS NOT NULL OR (x.x).flow_id IS DISTINCT FROM f.flow THEN
    RETURN fn.failure('execution_not_in_flow', args[4], args[1]);
  ELSIF g.down IS NOT NULL THEN
    RETURN fn.failure('edge_group_policy_fixed', args[4]);
  END IF;
  INSERT INTO db.groups (p, down, flow, policy, k, others)
    VALUES (c.p, fn.id(args[4]), f.flow, fn.ascii(args[5]), fn.num(args[6]), fn.ascii(args[7]));
  f.mutated := fn.bytes(c.now);
  PERFORM fn.put_flow(f);
  RETURN fn.answer_once(c, f.flow, args[3], 'set');
END $$;

-- seal_flow: end the building of a flow, which is over once all its members have ended.
-- Arguments: flow, pack{namespace}, call id.
-- Replies: 'ok', also if it was sealed before.
-- Errors: flow_not_found, flow_already_terminal, invalid_graph (a group wants more successes than it has edges).
CREATE FUNCTION fn.seal_flow(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f db.flows := fn.open_flow(c, args);
  refused bytea := fn.refuse_change(f);
BEGIN
  IF f.flow IS NULL THEN
    RETURN fn.failure('flow_not_found', args[1]);
  ELSIF f.sealed IS NOT NULL OR fn.reply_before(f.answered, args[3]) IS NOT NULL THEN
    RETURN fn.answer('ok');
  ELSIF refused IS NOT NULL THEN
    RETURN refused;
  ELSIF EXISTS (SELECT FROM db.groups WHERE p = c.p AND flow = f.flow AND k > n) THEN
    RETURN fn.failure('invalid_graph');
  END IF;
  f.sealed := '1'; f.mutated := fn.bytes(c.now);
  PERFORM fn.put_flow(f);
  PERFORM fn.settle_flow(c, f.flow);
  RETURN fn.answer_once(c, f.flow, args[3], 'ok');
END $$;

-- Whole graphs --------------------------------------------------------------------------------------------------------

-- Return how many items of a graph a call stores from argument 9 on: as many as its work budget allows, at least one. A node
-- is: 'n', a creation as fn.drafted reads it, its group as pack{policy, k, others, n} or ''. An edge is: 'e', id, upstream uuid,
-- downstream uuid, argument that receives the result or ''.
CREATE FUNCTION fn.graph_items(c fn.context, args bytea[]) RETURNS int[] LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  starts int[] := '{}';
  at int := 9;
  width int;
BEGIN
  WHILE at <= cardinality(args) AND (c.work > 0 OR at = 9) LOOP
    width := CASE args[at] WHEN 'n' THEN 10 ELSE 5 END;
    c.work := c.work - CASE args[at] WHEN 'n' THEN 5 ELSE 0.6 END - fn.weight(VARIADIC args[at : at + width - 1]);
    starts := starts || at;
    at := at + width;
  END LOOP;
  RETURN starts;
END $$;

-- Return the failure of the first node that cannot be created, or null.
CREATE FUNCTION fn.refuse_nodes(c fn.context, args bytea[], starts int[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  at int;
  of_class bytea;
BEGIN
  FOREACH at IN ARRAY starts LOOP
    CONTINUE WHEN args[at] <> 'n';
    of_class := fn.unpack_first(args[at + 2]);
    IF EXISTS (SELECT FROM db.executions WHERE p = c.p AND uuid = fn.id(args[at + 1])) THEN
      RETURN fn.failure('conflict');
    ELSIF NOT EXISTS (SELECT FROM db.classes WHERE p = c.p AND class = of_class) AND fn.is_full(c, of_class) THEN
      RETURN fn.failure('too_many_classes', (fn.unpack(of_class))[2], '1024');
    END IF;
  END LOOP;
  RETURN NULL;
END $$;

-- Store the nodes of a graph: members that wait until their flow lets them run.
CREATE FUNCTION fn.store_nodes(c fn.context, f db.flows, args bytea[], starts int[]) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  x db.executions;
  none db.executions;
  created db.executions[] := '{}';
  kind bytea[];
  home record;
  at int;
BEGIN
  FOREACH at IN ARRAY starts LOOP
    CONTINUE WHEN args[at] <> 'n';
    IF kind IS NULL OR args[at + 2] <> args[at - 8] THEN
      kind := fn.unpack(args[at + 2]);
      c := fn.register_class(c, kind[1]);
      SELECT classes.id AS class_id, lanes.id AS lane_id, nullif(gates IS NOT NULL OR held IS NOT NULL, false) AS gated
        INTO home FROM db.classes JOIN db.lanes USING (p, lane) WHERE classes.p = c.p AND class = kind[1];
    END IF;
    x := fn.drafted(c, args, at + 1, kind, fn.packed(fn.unpack_first(kind[1])));
    x.class_id := home.class_id; x.lane_id := home.lane_id; x.gated := home.gated;
    x.flow := fn.bytes(f.flow); x.flow_id := f.flow; x.state := 'rudhnf';
    x.is_root := CASE args[at + 9] WHEN '' THEN true END;
    x := fn.derive(x);
    INSERT INTO db.executions SELECT (x).*;
    IF x.idempotency_key IS NOT NULL THEN
      INSERT INTO db.keys (p, key, uuid) VALUES (c.p, x.idempotency_key, x.uuid)
        ON CONFLICT (p, key) DO UPDATE SET uuid = excluded.uuid;
    END IF;
    c := fn.follow(c, none, x);
    created := created || x;
    f := fn.joined(f, x);
  END LOOP;
  PERFORM fn.count(c, '{}', created);
  INSERT INTO db.groups (p, down, flow, policy, k, others, n, force)
    SELECT c.p, fn.id(args[node + 1]), f.flow, fn.ascii(parts[1]), fn.num(parts[2]), fn.ascii(parts[3]), fn.num(parts[4]), true
    FROM unnest(starts) AS node, fn.unpack(args[node + 9]) AS parts WHERE args[node] = 'n' AND args[node + 9] <> '';
  PERFORM fn.put_flow(f);
  RETURN c;
END $$;

-- Store the edges of a graph. All are in force.
CREATE FUNCTION fn.store_edges(c fn.context, of_flow uuid, args bytea[], starts int[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  f db.flows := fn.flow(c, of_flow);
  stored bigint := coalesce(fn.sound(f.edges), 0);
  added int;
BEGIN
  INSERT INTO db.edges (p, flow, id, up, down, ref, kind, created, ordinal, applied)
    SELECT c.p, f.flow, args[at + 1], fn.id(args[at + 2]), fn.id(args[at + 3]), nullif(args[at + 4], ''), 'success_only',
      fn.bytes(c.now), stored + row_number() OVER (ORDER BY nth) - 1, true
    FROM unnest(starts) WITH ORDINALITY AS each(at, nth) WHERE args[at] = 'e';
  GET DIAGNOSTICS added = ROW_COUNT;
  f.edges := fn.bytes(stored + added);
  PERFORM fn.put_flow(f);
END $$;

-- submit_flow: store a part of a graph; the flow begins when the last part is stored, and is hidden before.
-- Arguments: flow, pack{namespace}, kind, tags as pack{key, value, ...}, digest of the graph, call id, number of items, how many
-- of them are stored by the caller's knowledge, then items as fn.graph_items reads them: all nodes, then all edges.
-- Replies: 'more', how many items are stored; 'built'; or 'known' and the call id that built it.
-- Errors: conflict (another flow has that id, or an execution that of a node), too_many_classes.
CREATE FUNCTION fn.submit_flow(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f db.flows;
  starts int[];
  failure bytea;
  stored bigint;
BEGIN
  PERFORM fn.share_classes(c);
  SELECT * INTO f FROM db.flows WHERE p = c.p AND flow = fn.id(args[1]) FOR NO KEY UPDATE;
  IF f.flow IS NOT NULL AND (f.namespace <> args[2] OR f.digest IS DISTINCT FROM args[5]) THEN
    RETURN fn.failure('conflict');
  ELSIF f.flow IS NOT NULL AND f.building IS NULL THEN
    RETURN fn.answer('known', coalesce(f.submitted_by, ''));
  ELSIF coalesce(f.building, '0') <> args[8] THEN
    RETURN fn.answer('more', coalesce(f.building, '0'));
  END IF;
  starts := fn.graph_items(c, args);
  failure := fn.refuse_nodes(c, args, starts);
  IF failure IS NOT NULL THEN
    RETURN failure;
  ELSIF f.flow IS NULL THEN
    f := fn.new_flow(c, fn.id(args[1]), args[2], args[3], args[4]);
    f.building := '0'; f.digest := args[5]; f.total := args[7];
    INSERT INTO db.flows SELECT (f).* ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
      -- Another call has begun at the same moment.
      RETURN fn.answer('more', '0');
    END IF;
    PERFORM fn.note_entry(c, 'y', args[1], c.now + fn.an_hour());
  END IF;
  c.flows := ARRAY[f.flow];
  c := fn.store_nodes(c, f, args, starts);
  PERFORM fn.store_edges(c, f.flow, args, starts);
  stored := fn.num(args[8]) + cardinality(starts);
  IF stored = fn.num(args[7]) THEN
    UPDATE db.flows SET building = NULL, sealed = '1', revision = args[7], submitted_by = args[6] WHERE p = c.p AND flow = f.flow;
    PERFORM fn.drop_entry(c, 'y', args[1]);
    c := fn.enqueue(c, 'roots:' || f.flow);
  ELSE
    UPDATE db.flows SET building = fn.bytes(stored) WHERE p = c.p AND flow = f.flow;
  END IF;
  c := fn.flush(c);
  IF stored = fn.num(args[7]) THEN
    RETURN fn.answer('built');
  END IF;
  RETURN fn.answer('more', fn.bytes(stored));
END $$;

-- Children ------------------------------------------------------------------------------------------------------------

-- spawn: create a child of an execution, ready to run; the first child of a name stands.
-- Arguments: uuid, fence, call id, id of the flow of its children, name, '1' for a child that is not cancelled with its parent,
-- then a creation.
-- Replies: 'created', or 'known'.
-- Errors: those of fn.fenced, conflict (another execution has the child's id), too_many_classes.
CREATE FUNCTION fn.spawn(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found;
  x db.executions;
BEGIN
  PERFORM fn.share_classes(c);
  c := fn.lock_flows(c, ARRAY[fn.id(args[1])], true);
  f := fn.fenced(c, fn.id(args[1]), args[2], NULL, args[3]);
  x := f.x; c := f.c;
  IF f.failure IS NULL AND EXISTS (SELECT FROM db.edges WHERE p = c.p AND flow = fn.id(args[4]) AND id = args[5]) THEN
    f.failure := fn.answer('known');
  END IF;
  f.failure := coalesce(f.failure, fn.refuse_nodes(c, ARRAY['n'::bytea] || args[7:14], ARRAY[1]));
  IF f.failure IS NULL THEN
    c := fn.add_child(c, x, args, 7, fn.id(args[4]), args[5], args[6] = '1');
    x.children := args[4]; x.mutated := fn.bytes(c.now);
    x.reported := fn.remember(x.reported, args[3], 'created');
    c := fn.put(c, f.was, x);
  END IF;
  c := fn.flush(c);
  RETURN coalesce(f.failure, fn.answer('created'));
END $$;
