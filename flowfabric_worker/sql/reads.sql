-- What is stored, as it is. Python decodes it strictly.

-- Return the values of some fields of a record.
CREATE FUNCTION fn.values_of(x db.executions, fields text[]) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.answer(VARIADIC ARRAY(
    SELECT fn.field(x, name) FROM unnest(fields) WITH ORDINALITY AS field(name, nth) ORDER BY nth
  ))
$$;

CREATE FUNCTION fn.texts(args bytea[]) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
  SELECT ARRAY(SELECT convert_from(value, 'UTF8') FROM unnest(args) WITH ORDINALITY AS each(value, nth) ORDER BY nth)
$$;

-- read_executions: read some fields of some executions.
-- Arguments: pack{namespace}, number of fields, the fields, then the uuids.
-- Replies per uuid: the values in the order of the fields; nothing if there is no such execution.
CREATE FUNCTION fn.read_executions(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  count int := fn.num(args[2]);
  fields text[] := fn.texts(args[3 : count + 2]);
BEGIN
  RETURN fn.replies(VARIADIC ARRAY(
    SELECT CASE WHEN x.uuid IS NULL OR fn.is_bare(x) THEN fn.replies() 
      WHEN x.gated THEN fn.values_of(fn.shown(c, x), fields) ELSE fn.values_of(x, fields) END
    FROM unnest(args[count + 3 :]) WITH ORDINALITY AS asked(id, nth)
    LEFT JOIN LATERAL (SELECT * FROM db.executions WHERE p = partition AND uuid = fn.id(asked.id) LIMIT 1) AS x
      ON x.namespace = args[1] AND NOT fn.is_hidden(x)
    ORDER BY nth
  ));
END $$;

-- read_execution: read some fields of an execution, and the suspension that it is in.
-- Arguments: uuid, pack{namespace}, the fields.
-- Replies: nothing if there is no such execution; else the values in the order of the fields, and the suspension as
-- fn.open_suspension returns it.
-- Errors: corruption.
CREATE FUNCTION fn.read_execution(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  x db.executions;
BEGIN
  SELECT * INTO x FROM db.executions WHERE p = c.p AND uuid = fn.id(args[1]) AND namespace = args[2];
  IF x.uuid IS NULL OR fn.is_bare(x) OR fn.is_hidden(x) THEN
    RETURN fn.replies();
  END IF;
  RETURN fn.replies(fn.values_of(fn.shown(c, x), fn.texts(args[3:])), fn.open_suspension(c, x));
EXCEPTION WHEN data_exception THEN
  RETURN fn.failure('corruption', args[1], 'suspension');
END $$;

-- Return the uuids to look at after one, in order. Damaged executions are in no index of a lane or a state, so they are
-- looked at whatever the filter asks for.
CREATE FUNCTION fn.candidates(
  partition int, of_namespace bytea, after uuid, most bigint, of_lane bytea, of_state text
) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
  lane int := (SELECT id FROM db.lanes WHERE p = partition AND lanes.lane = of_lane);
  found uuid[];
BEGIN
  IF of_lane = '' AND of_state = '' THEN
    RETURN ARRAY(
      SELECT uuid FROM db.executions WHERE p = partition AND namespace = of_namespace AND (after IS NULL OR uuid > after)
        ORDER BY uuid LIMIT most
    );
  ELSIF of_lane = '' THEN
    found := ARRAY(
      SELECT uuid FROM db.executions WHERE p = partition AND namespace = of_namespace AND listed = of_state
        AND (after IS NULL OR uuid > after) ORDER BY uuid LIMIT most
    );
  ELSE
    found := ARRAY(
      SELECT uuid FROM db.executions WHERE p = partition AND lane_id = lane AND (of_state = '' OR listed = of_state)
        AND (after IS NULL OR uuid > after) ORDER BY uuid LIMIT most
    );
  END IF;
  RETURN ARRAY(
    SELECT uuid FROM (
      SELECT unnest(found) AS uuid
      UNION
      SELECT x.uuid FROM db.damaged AS d, LATERAL (
        SELECT uuid, namespace FROM db.executions WHERE p = partition
          -- The id is text, and may be damaged too.
          AND uuid = CASE WHEN d.uuid ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN d.uuid::uuid END LIMIT 1
      ) AS x WHERE d.p = partition AND x.namespace = of_namespace AND (after IS NULL OR x.uuid > after)
    ) AS both_lists ORDER BY uuid LIMIT most
  );
END $$;

-- list_executions: read a page of a namespace's executions, by id. Executions beyond the call's work budget are left for
-- the next call.
-- Arguments: pack{namespace}, after (a uuid) or '', limit, pack{namespace, lane} or '', a state with an index or '', then
-- the fields to read of each.
-- Replies: '1' if there may be more, else '0'; how many were looked at; the last of these or ''; then per execution: uuid,
-- the values in the order of the fields.
CREATE FUNCTION fn.list_executions(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  fields text[] := fn.texts(args[6:]);
  ids uuid[] := fn.candidates(
    partition, args[1], fn.id(nullif(args[2], '')), fn.num(args[3]), args[4], fn.ascii(args[5])
  );
  looked int := 0;
  rows bytea[] := '{}';
  x db.executions;
  row_values bytea;
BEGIN
  WHILE looked < cardinality(ids) AND (c.work > 0 OR looked = 0) LOOP
    looked := looked + 1;
    SELECT * INTO x FROM db.executions WHERE p = c.p AND uuid = ids[looked];
    IF x.uuid IS NOT NULL AND NOT fn.is_bare(x) AND NOT fn.is_hidden(x) THEN
      row_values := fn.values_of(CASE WHEN x.gated THEN fn.shown(c, x) ELSE x END, fields);
      rows := rows || fn.replies(fn.reply(fn.bytes(x.uuid)), row_values);
      c.work := c.work - fn.weight(row_values);
    END IF;
    c.work := c.work - 1;
  END LOOP;
  RETURN fn.replies(VARIADIC ARRAY[
    fn.reply(CASE WHEN looked < cardinality(ids) OR cardinality(ids) = fn.num(args[3]) THEN '1'::text ELSE '0' END),
    fn.reply(looked::bigint), fn.reply(coalesce(ids[looked]::text, ''))
  ] || rows);
END $$;

-- list_lanes: read a page of a namespace's lanes, by name.
-- Arguments: pack{namespace}, after (a name) or '', limit, then the names of the counters to read.
-- Replies: '1' if there may be more lanes, else '0'; then per lane: name, the counters in the order of their names.
CREATE FUNCTION fn.list_lanes(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  names text[] := fn.texts(args[4:]);
  rows bytea[] := ARRAY(
    SELECT fn.replies(fn.reply(fn.behind_first(l.listed)), fn.answer(VARIADIC ARRAY(
      SELECT CASE WHEN name = 'paused' THEN fn.bytes(l.paused) ELSE fn.bytes(
        CASE name WHEN 'waiting' THEN -back.count WHEN 'rate_limited' THEN back.count ELSE 0 END
        + coalesce((SELECT sum(change)::bigint FROM db.depths WHERE p = partition AND lane_id = l.id AND state = name), 0)
      ) END FROM unnest(names) WITH ORDINALITY AS counter(name, nth) ORDER BY nth
    )))
    FROM db.lanes AS l, LATERAL fn.held_back(c, l.id) AS back(count) WHERE p = partition AND listed > args[1] || args[2] AND listed < args[1] || '\xff'::bytea
    ORDER BY listed LIMIT fn.num(args[3])
  );
BEGIN
  RETURN fn.replies(VARIADIC
    fn.reply(CASE WHEN cardinality(rows) = fn.num(args[3]) THEN '1'::text ELSE '0' END) || rows);
END $$;

-- explain_execution: read where a ready execution stands.
-- Arguments: uuid, pack{namespace, lane}, class.
-- Replies: now; since when the lane is paused, or null; place in the class from 0, or null; number of ready executions of
-- the class; and the first gate of the class that is closed, or nothing: its name, then as fn.explain_quota returns it.
CREATE FUNCTION fn.explain_execution(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  x db.executions;
  of_class int := (SELECT id FROM db.classes WHERE p = partition AND class = args[3]);
  gate fn.gate := fn.closed_gate(c, of_class);
BEGIN
  SELECT * INTO x FROM db.executions WHERE p = partition AND uuid = fn.id(args[1]) AND ready IS NOT NULL;
  RETURN fn.replies(
    fn.reply(c.now),
    fn.reply(fn.bytes((SELECT paused FROM db.lanes WHERE p = partition AND lane = args[2]))),
    fn.reply(CASE WHEN x.uuid IS NOT NULL THEN (
      SELECT count(*) FROM db.executions
        WHERE p = partition AND class_id = of_class AND ready IS NOT NULL AND (ready, uuid) < (x.ready, x.uuid)
    ) END),
    fn.reply(fn.ready_count(c, of_class, NULL)),
    CASE WHEN gate.name LIKE 'q%' THEN fn.explain_quota(c, gate) WHEN gate.name LIKE 'b%' THEN fn.explain_budget(c, gate.name)
      ELSE fn.replies() END
  );
END $$;

-- server_time: read the store's clock.
-- Replies: now, in ms.
CREATE FUNCTION fn.server_time(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
BEGIN
  RETURN fn.replies(fn.reply(c.now));
END $$;
