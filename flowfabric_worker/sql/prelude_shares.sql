-- Shares: what a budget knows of single executions. A share is the pack of
--
--   1 recorded    pack{dimension, amount, ...} that record_spend counted, which release_budget takes back
--   2 reserved    pack{key, until, pack{dimension, amount, ...}, ...} of its open reservations
--
-- The record of an execution names the budgets that have a share of it in its field `budgets`.

-- Return the parts of a share, which are empty if there is none.
CREATE FUNCTION fn.read_share(c fn.context, address bytea, execution uuid) RETURNS bytea[] LANGUAGE sql AS $$
  SELECT coalesce(parts[1], '') || ARRAY[coalesce(parts[2], '')] || coalesce(parts[3:], '{}') FROM (SELECT fn.unpack(coalesce(
    (SELECT share FROM db.budget_shares WHERE p = c.p AND budget = address AND uuid = execution), ''
  )) AS parts) AS stored
$$;

-- Write a share, or remove it if it is empty.
CREATE FUNCTION fn.write_share(c fn.context, address bytea, execution uuid, parts bytea[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  IF parts[1] = '' AND parts[2] = '' THEN
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

-- Remove the shares of an execution that is removed.
CREATE FUNCTION fn.remove_shares(c fn.context, x db.executions) RETURNS void LANGUAGE sql AS $$
  DELETE FROM db.budget_shares WHERE p = c.p AND uuid = x.uuid AND budget = ANY (coalesce(fn.unpack(x.budgets), '{}'))
$$;
