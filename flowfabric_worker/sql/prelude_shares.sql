-- Shares: what a budget knows of single executions. A share is the pack of
--
--   1 recorded    pack{dimension, amount, ...} that record_spend counted, which release_budget takes back
--   2 reserved    pack{key, until, pack{dimension, amount, ...}, ...} of its open reservations
--   3 needed      pack{dimension, amount, ...} that the execution waits for, or ''
--   4 partition   that of the execution if it is another one than the budget's, else ''
--
-- The record of an execution names the budgets that have a share of it in its field `budgets`.

-- Return the parts of a share, which are empty if there is none.
CREATE FUNCTION fn.read_share(c fn.context, address bytea, execution uuid) RETURNS bytea[] LANGUAGE sql AS $$
  SELECT ARRAY(SELECT coalesce(parts[i], '') FROM generate_series(1, 4) AS i ORDER BY i) || coalesce(parts[5:], '{}') FROM (SELECT fn.unpack(coalesce(
    (SELECT share FROM db.budget_shares WHERE p = c.p AND budget = address AND uuid = execution), ''
  )) AS parts) AS stored
$$;

-- Write a share, or remove it if it is empty.
CREATE FUNCTION fn.write_share(c fn.context, address bytea, execution uuid, parts bytea[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  IF parts[1] = '' AND parts[2] = '' AND parts[3] = '' THEN
    DELETE FROM db.budget_shares WHERE p = c.p AND budget = address AND uuid = execution;
  ELSE
    INSERT INTO db.budget_shares (p, budget, uuid, share)
      VALUES (c.p, address, execution, fn.pack(VARIADIC parts))
      ON CONFLICT (p, budget, uuid) DO UPDATE SET share = excluded.share;
  END IF;
END $$;

-- Lock and load the record of an execution of a namespace.
CREATE FUNCTION fn.load_in(c fn.context, execution uuid, of_namespace bytea) RETURNS fn.found LANGUAGE plpgsql AS $$
DECLARE
  f fn.found := fn.load(c, execution);
BEGIN
  IF f.failure IS NULL AND (f.x).namespace <> of_namespace THEN
    f.failure := fn.failure('execution_not_found', fn.bytes(execution));
  END IF;
  RETURN f;
END $$;

-- Note in a record that a budget has a share of its execution.
CREATE FUNCTION fn.with_budget(c fn.context, x db.executions, address bytea) RETURNS db.executions
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  known bytea[] := coalesce(fn.unpack(coalesce(x.budgets, '')), '{}');
BEGIN
  IF address <> ALL (known) THEN
    x.budgets := fn.pack(VARIADIC known || address); x.mutated := fn.bytes(c.now);
  END IF;
  RETURN x;
END $$;

-- Add amounts to what an execution recorded.
CREATE FUNCTION fn.record_share(c fn.context, address bytea, execution uuid, amounts bytea[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  share bytea[] := fn.read_share(c, address, execution);
  recorded bytea[] := coalesce(fn.unpack(share[1]), '{}');
  place int;
BEGIN
  FOR at IN 1 .. cardinality(amounts) BY 2 LOOP
    place := 2 * array_position(fn.every(2, recorded, 1), amounts[at]);
    IF place IS NULL THEN
      recorded := recorded || amounts[at : at + 1];
    ELSE
      recorded[place] := fn.bytes(least(fn.num(recorded[place]) + fn.num(amounts[at + 1]), fn.max_count()));
    END IF;
  END LOOP;
  share[1] := fn.pack(VARIADIC recorded);
  PERFORM fn.write_share(c, address, execution, share);
END $$;

-- Take what an execution recorded out of its share, and return it.
CREATE FUNCTION fn.take_recorded(c fn.context, address bytea, execution uuid) RETURNS bytea[] LANGUAGE plpgsql AS $$
DECLARE
  share bytea[] := fn.read_share(c, address, execution);
  amounts bytea[] := coalesce(fn.unpack(share[1]), '{}');
BEGIN
  IF share[1] <> '' THEN
    share[1] := '';
    PERFORM fn.write_share(c, address, execution, share);
  END IF;
  RETURN amounts;
END $$;

-- Let go of what an execution keeps of its budgets: its reservations and its place among those that wait if it ends, and
-- everything if it `is_gone`. What is in another partition is written down as owed.
CREATE FUNCTION fn.end_shares(c fn.context, x db.executions, is_gone boolean) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  address bytea;
BEGIN
  FOR address IN SELECT part FROM unnest(fn.unpack(x.budgets)) AS part ORDER BY part LOOP
    IF EXISTS (SELECT FROM db.budgets WHERE p = c.p AND budget = address) THEN
      c := fn.end_share(c, address, x.uuid, is_gone);
    ELSE
      PERFORM fn.owe(c, CASE WHEN is_gone THEN 'gone' ELSE 'end' END, address, x.uuid, '');
    END IF;
  END LOOP;
  RETURN c;
END $$;
