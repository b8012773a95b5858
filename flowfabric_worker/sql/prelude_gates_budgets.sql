-- Budgets as gates of claim classes: while a hard limit of a budget is reached, work that names it is not handed out. A partition
-- with such work but without the budget knows by numbered news whether it is full.

-- Return the budget that a gate is named after, and the name of a budget's gate.
CREATE FUNCTION fn.budget_of_gate(gate bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.pack(parts[1]) || parts[2] FROM fn.unpack(substring(gate FROM 2)) AS parts
$$;

CREATE FUNCTION fn.gate_of_budget(address bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.gate_name('b', fn.unpack_first(address), fn.behind_first(address))
$$;

-- Return the first dimension of a budget whose hard limit is reached, what is used or reserved of it, and the limit; or null.
CREATE FUNCTION fn.full_dimension(b fn.budget) RETURNS bytea[] LANGUAGE sql IMMUTABLE AS $$
  SELECT ARRAY[name, fn.bytes(used + reserved), fn.bytes(b.hards[array_position(b.limited, name)])]
  FROM unnest(b.counted, b.used, b.reserved) WITH ORDINALITY AS each(name, used, reserved, nth)
  WHERE used + reserved >= b.hards[array_position(b.limited, name)] ORDER BY nth LIMIT 1
$$;

-- Return the gate of a budget. A damaged budget admits nothing, and one that was deleted admits everything.
CREATE FUNCTION fn.read_budget_gate(c fn.context, of_name bytea) RETURNS fn.gate LANGUAGE plpgsql AS $$
DECLARE
  gate fn.gate;
  address bytea := fn.budget_of_gate(of_name);
  b fn.budget := fn.load_budget(c, address, true);
BEGIN
  IF b.failure IS NULL AND fn.full_dimension(b) IS NOT NULL OR b.failure IS NOT NULL AND b.address IS NOT NULL THEN
    gate.slots_left := 0;
  ELSIF b.failure IS NOT NULL AND (SELECT is_full FROM db.budget_news WHERE p = c.p AND budget = address) THEN
    gate.slots_left := 0;
  END IF;
  RETURN gate;
END $$;

-- Return whether a partition knows a budget.
CREATE FUNCTION fn.knows_budget(c fn.context, address bytea) RETURNS boolean LANGUAGE sql AS $$
  SELECT EXISTS (SELECT FROM db.budgets WHERE p = c.p AND budget = address)
    OR EXISTS (SELECT FROM db.budget_news WHERE p = c.p AND budget = address)
$$;

-- Return what explain_execution tells of a full budget: its gate, the dimension, what is used or reserved of it, the hard limit,
-- and when it is reset or ''; its gate alone if the budget is in another partition, or has got space since its gate was read.
CREATE FUNCTION fn.explain_budget(c fn.context, of_name bytea) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  b fn.budget := fn.load_budget(c, fn.budget_of_gate(of_name), true);
BEGIN
  IF b.failure IS NOT NULL OR fn.full_dimension(b) IS NULL THEN
    RETURN fn.answer(of_name);
  END IF;
  RETURN fn.answer(VARIADIC of_name || fn.full_dimension(b) || b.parts[5]);
END $$;

-- Return the news for a partition that uses a budget: the turn, and '1' if the budget is full, else '0'.
CREATE FUNCTION fn.news_of_budget(b fn.budget) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT b.parts[14] || CASE WHEN fn.full_dimension(b) IS NULL THEN ':0'::bytea ELSE ':1' END
$$;

-- Close or open the gate of a budget that has become full, or has space again, here and in the partitions that use it. Return the
-- budget with its new turn.
CREATE FUNCTION fn.turn_gate(c fn.context, b fn.budget) RETURNS fn.used LANGUAGE plpgsql AS $$
DECLARE
  u fn.used;
  other bytea;
BEGIN
  b.parts[14] := fn.bytes(greatest(fn.num(b.parts[14]) + 1, c.now));
  FOREACH other IN ARRAY fn.unpack(b.parts[13]) LOOP
    INSERT INTO db.owed (p, debt) VALUES (c.p, fn.pack('tell', b.address, fn.news_of_budget(b), other)) ON CONFLICT DO NOTHING;
  END LOOP;
  IF fn.full_dimension(b) IS NULL THEN
    c.wakes := c.wakes || fn.behind(c.p, fn.gate_of_budget(b.address), 1000);
  END IF;
  u.c := c; u.b := b;
  RETURN u;
END $$;

-- Receive the news whether a budget of another partition is full. Old news is ignored.
CREATE FUNCTION fn.hear_of_budget(c fn.context, address bytea, news bytea) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  parts text[] := string_to_array(fn.ascii(news), ':');
BEGIN
  INSERT INTO db.budget_news AS known (p, budget, turn, is_full) VALUES (c.p, address, parts[1]::bigint, parts[2] = '1')
    ON CONFLICT (p, budget) DO UPDATE SET turn = excluded.turn, is_full = excluded.is_full WHERE known.turn <= excluded.turn;
  IF FOUND AND parts[2] = '0' THEN
    c.wakes := c.wakes || fn.behind(c.p, fn.gate_of_budget(address), 1000);
  END IF;
  RETURN c;
END $$;

-- Remove the classes of a budget that hold no work. Return 'in_use' if one does, 'more' if there may be more classes, or null.
CREATE FUNCTION fn.forget_classes_of_budget(c fn.context, address bytea) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  gate bytea := fn.gate_of_budget(address);
  ids int[];
BEGIN
  -- A creation shares this lock until it commits, so none adds work to a class that is removed here.
  PERFORM pg_advisory_xact_lock('db.classes'::regclass::oid::int, c.p);
  ids := ARRAY(SELECT id FROM db.classes WHERE p = c.p AND gates IS NOT NULL AND gates @> ARRAY[gate] LIMIT 256);
  IF EXISTS (SELECT FROM unnest(ids) AS id WHERE fn.held(c, id) > 0) THEN
    RETURN 'in_use';
  END IF;
  UPDATE db.lanes SET revision = fn.next_turn(revision, c.now)
    WHERE p = c.p AND lane IN (SELECT lane FROM db.classes WHERE id = ANY (ids));
  DELETE FROM db.classes WHERE id = ANY (ids);
  RETURN CASE WHEN cardinality(ids) = 256 THEN 'more' END;
END $$;
