-- How flows, their edges and their groups are read. Python decodes what is stored strictly.

-- Return the value of a field of a flow by its name, as it is stored on Valkey.
CREATE FUNCTION fn.flow_field(f db.flows, name text) RETURNS bytea LANGUAGE sql AS $$
  SELECT CASE name
    WHEN 'ns' THEN f.namespace WHEN 'kind' THEN f.kind WHEN 'tags' THEN f.tags WHEN 'created' THEN f.created
    WHEN 'mutated' THEN f.mutated WHEN 'revision' THEN f.revision WHEN 'nodes' THEN f.nodes WHEN 'edges' THEN f.edges
    WHEN 'sealed' THEN f.sealed WHEN 'state' THEN fn.flow_state(f) WHEN 'counts' THEN fn.member_counts(f)
    WHEN 'ended' THEN f.ended WHEN 'keep' THEN f.keep WHEN 'keep_until' THEN f.keep_until
    WHEN 'cancel_policy' THEN f.cancel_policy WHEN 'cancel_reason' THEN f.cancel_reason
    WHEN 'cancelled_at' THEN f.cancelled_at WHEN 'parent' THEN f.parent
  END
$$;

CREATE FUNCTION fn.flow_values(f db.flows, names text[]) RETURNS bytea LANGUAGE sql AS $$
  SELECT fn.answer(VARIADIC ARRAY(
    SELECT fn.flow_field(f, name) FROM unnest(names) WITH ORDINALITY AS each(name, nth) ORDER BY nth
  ))
$$;

-- Return a group as it is stored on Valkey: policy, how many successes it wants, what becomes of the others, numbers of edges,
-- successes, failures and skips, state, life, '1' if it is in force, and the upstream execution that decided it.
CREATE FUNCTION fn.packed_group(g db.groups) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.pack(VARIADIC ARRAY(SELECT fn.bytes(part) FROM unnest(ARRAY[
    g.policy, g.k::text, g.others, g.n::text, g.ok::text, g.bad::text, g.skip::text, g.state, g.life::text,
    CASE WHEN g.force THEN '1' ELSE '' END, coalesce(g.decided::text, '')
  ]) WITH ORDINALITY AS each(part, nth) ORDER BY nth))
$$;

-- Return an edge as it is stored on Valkey: both ends, the argument that receives the result or '', kind, when it was staged, its
-- place in the order of staging, '1' if it was applied, its result, and the life of the group at the time of the result.
CREATE FUNCTION fn.packed_edge(e db.edges) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.pack(
    fn.bytes(e.up), fn.bytes(e.down), coalesce(e.ref, ''), coalesce(e.kind, ''), coalesce(e.created, ''),
    fn.bytes(e.ordinal::bigint), CASE WHEN e.applied THEN '1'::bytea ELSE '' END, fn.bytes(e.result::text),
    CASE WHEN e.life < 0 THEN '-'::bytea ELSE fn.bytes(e.life::bigint) END
  )
$$;

-- Return what readers are told of an edge: its place in a listing, id, stored edge, life of its group.
CREATE FUNCTION fn.edge_row(place bytea, e db.edges) RETURNS bytea LANGUAGE sql AS $$
  SELECT fn.answer(
    place, e.id, fn.packed_edge(e), fn.bytes((SELECT life FROM db.groups WHERE p = e.p AND flow = e.flow AND down = e.down)::bigint)
  )
$$;

CREATE FUNCTION fn.read_flow(c fn.context, args bytea[]) RETURNS db.flows LANGUAGE sql AS $$
  SELECT * FROM db.flows WHERE p = c.p AND flow = fn.id(args[1]) AND namespace = args[2] AND building IS NULL
$$;

-- describe_flow: read a flow.
-- Arguments: flow, pack{namespace}, the fields to read.
-- Replies: the values of the fields; the first members that ended badly; '1' if there are more groups; and per group: uuid,
-- stored group.
-- Errors: flow_not_found.
CREATE FUNCTION fn.describe_flow(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f db.flows := fn.read_flow(c, args);
  groups bytea[];
BEGIN
  IF f.flow IS NULL THEN
    RETURN fn.failure('flow_not_found', args[1]);
  END IF;
  groups := ARRAY(
    SELECT part FROM (
      SELECT down, fn.packed_group(g) AS packed FROM db.groups AS g WHERE p = c.p AND flow = f.flow AND n > 0
        ORDER BY down LIMIT 1001
    ) AS page, LATERAL unnest(ARRAY[fn.bytes(down), packed]) WITH ORDINALITY AS parts(part, nth) ORDER BY down, nth
  );
  RETURN fn.replies(
    fn.flow_values(f, fn.texts(args[3:])),
    fn.answer(VARIADIC ARRAY(
      SELECT fn.bytes(uuid) FROM db.executions WHERE p = c.p AND flow_id = f.flow
        AND member IN ('failed', 'expired', 'cancelled') AND NOT (member = 'cancelled' AND cancelled_by = 'flow')
        ORDER BY uuid LIMIT 10
    )),
    fn.reply(CASE WHEN cardinality(groups) > 2000 THEN '1'::text ELSE '' END), fn.answer(VARIADIC groups[1:2000])
  );
END $$;

-- describe_edge: read one edge.
-- Arguments: flow, pack{namespace}, edge.
-- Replies: '', id, stored edge or null, life of its group or null.
-- Errors: flow_not_found.
CREATE FUNCTION fn.describe_edge(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f db.flows := fn.read_flow(c, args);
  e db.edges;
BEGIN
  IF f.flow IS NULL THEN
    RETURN fn.failure('flow_not_found', args[1]);
  END IF;
  e := fn.edge_in(c, f.flow, args[3]);
  IF e.id IS NULL THEN
    RETURN fn.answer('', args[3], NULL, NULL);
  END IF;
  RETURN fn.edge_row('', e);
END $$;

-- list_edges: read a page of the edges that leave an execution or lead to it, by id; or of all edges, by their upstream
-- executions.
-- Arguments: flow, pack{namespace}, 'o' or 'i', uuid or '' for all edges, after (a link) or '', limit.
-- Replies: '1' if there may be more, else '0'; then per edge: link, id, stored edge, life of its group.
-- Errors: flow_not_found.
CREATE FUNCTION fn.list_edges(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f db.flows := fn.read_flow(c, args);
  rows bytea[];
BEGIN
  IF f.flow IS NULL THEN
    RETURN fn.failure('flow_not_found', args[1]);
  ELSIF args[4] = '' THEN
    rows := ARRAY(
      SELECT fn.edge_row(fn.bytes(e.up || ':') || e.id, e) FROM db.edges AS e
        WHERE p = c.p AND flow = f.flow
          AND (args[5] = '' OR (up, id) > (fn.id(nullif(substring(args[5] FOR 36), '')), substring(args[5] FROM 38)))
        ORDER BY up, id LIMIT fn.num(args[6])
    );
  ELSIF args[3] = 'o' THEN
    rows := ARRAY(
      SELECT fn.edge_row(e.id, e) FROM db.edges AS e WHERE p = c.p AND flow = f.flow AND up = fn.id(args[4]) AND id > args[5]
        ORDER BY id LIMIT fn.num(args[6])
    );
  ELSE
    rows := ARRAY(
      SELECT fn.edge_row(e.id, e) FROM db.edges AS e WHERE p = c.p AND flow = f.flow AND down = fn.id(args[4]) AND id > args[5]
        ORDER BY id LIMIT fn.num(args[6])
    );
  END IF;
  RETURN fn.page_reply(rows, fn.num(args[6]));
END $$;

-- Return the reply with a page of rows: '1' if there may be more, else '0', then the rows.
CREATE FUNCTION fn.page_reply(rows bytea[], most bigint) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.replies(VARIADIC fn.reply(CASE WHEN cardinality(rows) = most THEN '1'::text ELSE '0' END) || rows)
$$;

-- list_flow_members: read a page of the members of a flow, by id.
-- Arguments: flow, pack{namespace}, after (a uuid) or '', limit, the fields to read.
-- Replies: '1' if there may be more, else '0'; then per member: uuid, the values of the fields.
-- Errors: flow_not_found.
CREATE FUNCTION fn.list_flow_members(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f db.flows := fn.read_flow(c, args);
  fields text[] := fn.texts(args[5:]);
BEGIN
  IF f.flow IS NULL THEN
    RETURN fn.failure('flow_not_found', args[1]);
  END IF;
  RETURN fn.page_reply(ARRAY(
    SELECT fn.replies(fn.reply(fn.bytes(x.uuid)), fn.values_of(x, fields)) FROM db.executions AS x
      WHERE p = c.p AND flow_id = f.flow AND (args[3] = '' OR uuid > fn.id(nullif(args[3], '')))
      ORDER BY uuid LIMIT fn.num(args[4])
  ), fn.num(args[4]));
END $$;

-- list_flows: read a page of the flows of a namespace, by id.
-- Arguments: pack{namespace}, after (a flow) or '', limit, the fields to read.
-- Replies: '1' if there may be more, else '0'; then per flow: id, the values of the fields.
CREATE FUNCTION fn.list_flows(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  names text[] := fn.texts(args[4:]);
  rows bytea[] := ARRAY(
    SELECT fn.replies(fn.reply(fn.bytes(flow)), fn.flow_values(f, names)) FROM db.flows AS f
    WHERE p = partition AND namespace = args[1] AND building IS NULL
      AND (args[2] = '' OR flow > fn.id(nullif(args[2], ''))) ORDER BY flow LIMIT fn.num(args[3])
  );
BEGIN
  RETURN fn.page_reply(rows, fn.num(args[3]));
END $$;

-- Inputs ------------------------------------------------------------------------------------------------------------

-- Return the place of an edge among those that pass results to a member.
CREATE FUNCTION fn.place_of(e db.edges) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.bytes(lpad(e.ordinal::text, 12, '0') || ':') || e.id
$$;

-- Return a page of the results that edges pass to a member, in the order of the edges, within the call's work budget: how far
-- it came, or '' if there are no more; then per edge its id, the argument, the upstream uuid, its result, and the upstream
-- execution's state, codec, result, error, class and detail of the error, and reason of its cancellation. A group that does
-- not want all successes passes only those.
CREATE FUNCTION fn.inputs(c fn.context, x db.executions, after bytea) RETURNS bytea LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  g db.groups := fn.group_of(c, x.flow_id, x.uuid);
  rows bytea[] := '{}';
  each record;
  last bytea := '';
  seen int := 0;
BEGIN
  FOR each IN
    SELECT fn.place_of(e) AS place, e.id, e.ref, e.up, fn.effective(e.result, e.life, g.policy, g.life) AS of_result, u.state, u.codec, u.result, u.error,
      u.error_class, u.error_detail, u.cancel_reason
    FROM db.edges AS e
    LEFT JOIN LATERAL (SELECT * FROM db.executions WHERE p = c.p AND uuid = e.up LIMIT 1) AS u ON true
    WHERE e.p = c.p AND e.flow = x.flow_id AND e.down = x.uuid AND e.ref IS NOT NULL AND g.down IS NOT NULL
      AND e.ordinal >= CASE WHEN fn.ascii(after) ~ '^[0-9]{12}' THEN fn.num(substring(after FOR 12)) ELSE 0 END
      AND fn.place_of(e) > after ORDER BY e.ordinal LIMIT 100
  LOOP
    IF c.work <= 0 AND seen > 0 THEN
      RETURN fn.replies(fn.reply(last), fn.replies(VARIADIC rows));
    END IF;
    IF each.of_result = 's' OR each.of_result <> '' AND g.policy = 'all_ended' THEN
      rows := rows || fn.replies(
        fn.reply(each.id), fn.reply(each.ref), fn.reply(fn.bytes(each.up)), fn.reply(each.of_result::text),
        fn.answer(each.state, each.codec, each.result, each.error, each.error_class, each.error_detail, each.cancel_reason)
      );
      c.work := c.work - 2 - (coalesce(octet_length(each.result), 0) + coalesce(octet_length(each.error_detail), 0)) / 8192.0;
    END IF;
    last := each.place; seen := seen + 1;
  END LOOP;
  RETURN fn.replies(fn.reply(CASE WHEN seen = 100 THEN last ELSE '' END), fn.replies(VARIADIC rows));
END $$;

-- read_inputs: read a page of the results that edges pass to an execution.
-- Arguments: uuid, fence, how far the pages before came.
-- Replies: as fn.inputs returns.
-- Errors: those of fn.fenced.
CREATE FUNCTION fn.read_inputs(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found := fn.fenced(c, fn.id(args[1]), args[2], NULL, NULL);
BEGIN
  c := fn.flush(f.c);
  IF f.failure IS NOT NULL THEN
    RETURN f.failure;
  ELSIF (f.x).flow_id IS NULL THEN
    RETURN fn.replies(fn.reply(''::bytea), fn.replies());
  END IF;
  RETURN fn.inputs(c, f.x, args[3]);
END $$;
