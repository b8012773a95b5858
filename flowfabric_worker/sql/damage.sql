-- Executions whose records are damaged, and calls that meet them.

-- Return whether the present call is made carefully.
CREATE FUNCTION fn.is_careful() RETURNS boolean LANGUAGE sql AS $$
  SELECT current_setting('flowfabric.careful', true) = 'on'
$$;

-- carefully: make a call again that failed because it met damaged data. Each of its items and of the due executions is handled in a
-- subtransaction, so that only the damaged ones fail and are set aside.
-- Arguments: name of the function, its arguments.
-- Replies: those of the function.
-- Errors per item: corruption, those of the function.
CREATE FUNCTION fn.carefully(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  query text := format('SELECT fn.%I($1, $2)', fn.ascii(args[1]));
  width int := CASE fn.ascii(args[1]) WHEN 'renew_many' THEN 3 WHEN 'complete_many' THEN 3 WHEN 'release_many' THEN 3
    WHEN 'fail_many' THEN 7 END;
  c fn.context := fn.begin(partition);
  replies bytea[] := '{}';
  reply bytea;
BEGIN
  PERFORM set_config('flowfabric.careful', 'on', true);
  IF width IS NULL THEN
    EXECUTE query INTO reply USING partition, args[2:];
    RETURN reply;
  END IF;
  c := fn.lock_items(c, args[2:], width, true);
  FOR at IN 2 .. cardinality(args) BY width LOOP
    BEGIN
      EXECUTE query INTO reply USING partition, args[at : at + width - 1];
      -- The reply is a list of one.
      reply := substring(reply FROM 5);
    EXCEPTION WHEN data_exception OR cardinality_violation OR not_null_violation THEN
      reply := fn.set_aside(c, fn.id(args[at]), 'record');
    END;
    replies := replies || reply;
  END LOOP;
  RETURN fn.replies(VARIADIC replies);
END $$;

-- set_aside: list as damaged a claimed execution that its worker cannot decode.
-- Arguments: uuid, claim id, name of the damaged field.
-- Replies: 'set_aside', or 'not_held' if the execution has another lease by now.
-- Errors: execution_not_found.
CREATE FUNCTION fn.set_aside(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found := fn.load(c, fn.id(args[1]));
BEGIN
  IF f.failure = fn.failure('execution_not_found', args[1]) THEN
    RETURN f.failure;
  ELSIF f.failure IS NOT NULL THEN
    RETURN fn.answer('set_aside');
  ELSIF (f.x).state NOT LIKE '_l%' OR fn.lease_of((f.x).fence) <> fn.ascii(args[2]) THEN
    RETURN fn.answer('not_held');
  END IF;
  PERFORM fn.set_aside(c, fn.id(args[1]), convert_from(args[3], 'UTF8'));
  RETURN fn.answer('set_aside');
END $$;

-- list_damaged: read a page of the executions that were set aside, by id.
-- Arguments: after (a uuid) or '', limit.
-- Replies: '1' if there may be more, else '0'; then per execution: uuid, pack{damaged field, packed namespace or ''}.
CREATE FUNCTION fn.list_damaged(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  rows bytea[] := ARRAY(
    SELECT fn.answer(fn.bytes(uuid), damage) FROM db.damaged WHERE p = partition AND uuid > convert_from(args[1], 'UTF8')
      ORDER BY uuid LIMIT fn.num(args[2])
  );
BEGIN
  RETURN fn.replies(VARIADIC
    fn.reply(CASE WHEN cardinality(rows) = fn.num(args[2]) THEN '1'::text ELSE '0' END) || rows);
END $$;
