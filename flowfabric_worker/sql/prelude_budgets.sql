-- Budgets: how they are stored, and how usage is checked and counted. The entry of a budget is the pack of these parts:
--
--   1 created, 2 on_hard, 3 on_soft, 4 interval in ms or '', 5 next reset or '', 6 limits, pack{dimension, hard limit or '',
--   soft limit or '', ...}, 7 counters, pack{dimension, used, reserved, ...}, 8 breaches, 9 soft breaches, 10 when a hard
--   limit was last broken since the last reset or '', 11 its dimension or '', 12 how many of the executions that wait for the
--   budget did not fit so far, while more have to be looked at; else '', 13 pack{partition, ...}: the other partitions that have
--   executions which name the budget, 14 turn, which grows whenever the budget becomes full or gets space again
--
-- The row of a budget is locked after those of executions, and budgets in the order of their addresses.

-- Amounts and counters are at most 2^53 - 1, as on Valkey, where numbers must be exact.
CREATE FUNCTION fn.max_count() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 9007199254740991';
CREATE FUNCTION fn.max_dimensions() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 64';

-- Entries -----------------------------------------------------------------------------------------------------------

CREATE FUNCTION fn.is_count(value bytea) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT encode(value, 'escape') ~ '^[0-9]{1,16}$'
$$;

-- Return every `step`th of some texts from one on.
CREATE FUNCTION fn.every(step int, texts bytea[], first int) RETURNS bytea[] LANGUAGE sql IMMUTABLE AS $$
  SELECT ARRAY(SELECT texts[at] FROM generate_series(first, cardinality(texts), step) AS at ORDER BY at)
$$;

CREATE FUNCTION fn.numbers(texts bytea[]) RETURNS bigint[] LANGUAGE sql IMMUTABLE AS $$
  SELECT ARRAY(SELECT fn.num(text) FROM unnest(texts) WITH ORDINALITY AS each(text, nth) ORDER BY nth)
$$;

-- Return whether texts are names that are each followed by two numbers; '' is none if there may be none.
CREATE FUNCTION fn.are_triples(texts bytea[], may_lack boolean) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT texts IS NOT NULL AND cardinality(texts) % 3 = 0 AND NOT EXISTS (
    SELECT FROM unnest(texts) WITH ORDINALITY AS each(text, nth)
    WHERE nth % 3 <> 1 AND NOT (fn.is_count(text) OR may_lack AND text = '')
  )
$$;

-- Return the name of the damaged field of an entry, or null.
CREATE FUNCTION fn.damage_in_budget(parts bytea[]) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN coalesce(cardinality(parts) < 14, true) THEN 'entry'
    WHEN NOT fn.is_count(parts[1]) THEN 'created'
    WHEN NOT fn.is_count(parts[8]) THEN 'breaches'
    WHEN NOT fn.is_count(parts[9]) THEN 'soft_breaches'
    WHEN NOT fn.is_whole(nullif(parts[4], '')) THEN 'interval'
    WHEN NOT fn.is_whole(nullif(parts[5], '')) THEN 'next_reset'
    WHEN NOT fn.is_whole(nullif(parts[10], '')) THEN 'breached_at'
    WHEN NOT fn.is_whole(nullif(parts[12], '')) THEN 'walked'
    WHEN NOT fn.is_count(parts[14]) THEN 'turn'
    WHEN fn.unpack(parts[13]) IS NULL THEN 'users'
    WHEN parts[5] <> '' AND coalesce(fn.num(parts[4]), 0) = 0 THEN 'interval'
    WHEN NOT fn.are_triples(fn.unpack(parts[6]), true) THEN 'limits'
    WHEN NOT fn.are_triples(fn.unpack(parts[7]), false) THEN 'counters'
  END
$$;

-- Return a budget whose definition is replaced by on_hard, on_soft, interval and limits. Another interval begins now.
CREATE FUNCTION fn.define_budget(c fn.context, b fn.budget, definition bytea[]) RETURNS fn.budget
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  limits bytea[] := fn.unpack(definition[4]);
BEGIN
  IF b.parts[4] <> definition[3] THEN
    b.parts[5] := coalesce(fn.bytes(c.now + fn.num(definition[3])), '');
  END IF;
  b.parts := b.parts[:1] || definition[:3] || b.parts[5] || definition[4] || b.parts[7:];
  b.limited := fn.every(3, limits, 1);
  b.hards := fn.numbers(fn.every(3, limits, 2)); b.softs := fn.numbers(fn.every(3, limits, 3));
  RETURN b;
END $$;

-- Return a budget whose counters are zero. What is reserved stays reserved, and breaches stay counted.
CREATE FUNCTION fn.clear_budget(b fn.budget) RETURNS fn.budget LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  b.used := array_fill(0::bigint, ARRAY[cardinality(b.counted)]);
  b.parts[10] := ''; b.parts[11] := '';
  RETURN b;
END $$;

-- Return when the due entry of a budget is due: at its next reset, or now if more executions have to be looked at. '' is
-- never.
CREATE FUNCTION fn.due_of(b fn.budget, now bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN b.parts[12] <> '' THEN now ELSE b.parts[5] END
$$;

-- Return a budget from its stored entry, after the reset that is due. Resets stay on their grid, and those that were missed
-- are one.
CREATE FUNCTION fn.parse_budget(c fn.context, address bytea, entry bytea) RETURNS fn.budget LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  b fn.budget;
  counters bytea[];
  damaged text;
  due bigint;
BEGIN
  b.address := address; b.parts := fn.unpack(coalesce(entry, ''));
  damaged := fn.damage_in_budget(b.parts);
  IF damaged IS NOT NULL THEN
    b.failure := fn.failure('corruption', '', 'budget '::bytea || fn.behind_first(address) || fn.bytes(': ' || damaged));
    RETURN b;
  END IF;
  counters := fn.unpack(b.parts[7]);
  b.due_before := fn.due_of(b, '');
  b.counted := fn.every(3, counters, 1);
  b.used := fn.numbers(fn.every(3, counters, 2)); b.reserved := fn.numbers(fn.every(3, counters, 3));
  b := fn.define_budget(c, b, b.parts[2:4] || b.parts[6]);
  b.was_full := fn.full_dimension(b) IS NOT NULL;
  due := fn.num(b.parts[5]);
  IF due <= c.now THEN
    b := fn.clear_budget(b);
    b.parts[5] := fn.bytes(due + ((c.now - due) / fn.num(b.parts[4]) + 1) * fn.num(b.parts[4]));
    b.has_space := true;
  END IF;
  RETURN b;
END $$;

-- Lock and load a budget; only read it if `is_read`.
CREATE FUNCTION fn.load_budget(c fn.context, address bytea, is_read boolean DEFAULT false) RETURNS fn.budget
LANGUAGE plpgsql AS $$
DECLARE
  found db.budgets;
  b fn.budget;
BEGIN
  IF is_read THEN
    SELECT * INTO found FROM db.budgets WHERE p = c.p AND budget = address;
  ELSE
    SELECT * INTO found FROM db.budgets WHERE p = c.p AND budget = address FOR UPDATE;
  END IF;
  IF found.p IS NULL THEN
    b.failure := fn.failure('budget_not_found', fn.behind_first(address));
    RETURN b;
  END IF;
  RETURN fn.parse_budget(c, address, found.entry);
END $$;

-- Return the parts of a budget in their order.
CREATE FUNCTION fn.budget_parts(b fn.budget) RETURNS bytea[] LANGUAGE sql IMMUTABLE AS $$
  SELECT b.parts[:6] || fn.pack(VARIADIC ARRAY(
    SELECT part FROM unnest(b.counted, b.used, b.reserved) WITH ORDINALITY AS each(name, used, reserved, nth),
      LATERAL (VALUES (1, name), (2, fn.bytes(used)), (3, fn.bytes(reserved))) AS parts(place, part) ORDER BY nth, place
  )) || b.parts[8:]
$$;

-- Write a budget, and note when it is due if that has changed. If it has more space, the executions go on that wait for it.
CREATE FUNCTION fn.write_budget(c fn.context, b fn.budget) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  u fn.used;
  due bytea;
BEGIN
  IF b.has_space THEN
    u := fn.open_budget(c, b, 0);
    c := u.c; b := u.b;
  END IF;
  IF b.was_full IS DISTINCT FROM (fn.full_dimension(b) IS NOT NULL) THEN
    u := fn.turn_gate(c, b);
    c := u.c; b := u.b;
  END IF;
  UPDATE db.budgets SET entry = fn.pack(VARIADIC fn.budget_parts(b)) WHERE p = c.p AND budget = b.address;
  due := fn.due_of(b, fn.bytes(c.now));
  IF due <> b.due_before THEN
    c := fn.note_due(c, 'b', b.address, fn.num(due));
  END IF;
  RETURN c;
END $$;

-- Write a budget that may have more space than before.
CREATE FUNCTION fn.change_budget(c fn.context, b fn.budget) RETURNS fn.context LANGUAGE plpgsql AS $$
BEGIN
  b.has_space := true;
  RETURN fn.write_budget(c, b);
END $$;

-- Handle the due entry of a budget: it is reset if its time has come, and executions go on that wait for it.
CREATE FUNCTION fn.reset_due_budget(c fn.context, address bytea) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  b fn.budget := fn.load_budget(c, address);
  u fn.used;
BEGIN
  IF b.failure IS NULL THEN
    -- The entry that is handled is gone, so the next one is noted even if nothing was due.
    b.due_before := '';
    IF b.parts[12] <> '' AND b.has_space IS NOT TRUE THEN
      u := fn.open_budget(c, b, fn.num(b.parts[12]));
      c := u.c; b := u.b;
    END IF;
    RETURN fn.write_budget(c, b);
  ELSIF b.address IS NOT NULL THEN
    RETURN fn.note_due(c, 'b', address, c.now + fn.postponed());
  END IF;
  RETURN c;
END $$;

-- Answers -----------------------------------------------------------------------------------------------------------

-- Return what a call of a budget was answered before, or null if it is new: '1' if another call with the caller's key got
-- the answer, else '', then the answer.
CREATE FUNCTION fn.reported(c fn.context, address bytea, call_id bytea, of_key bytea DEFAULT '') RETURNS bytea[]
LANGUAGE sql AS $$
  SELECT (CASE WHEN parts[1] <> call_id THEN '1' ELSE '' END)::bytea || parts[2:]
  FROM (
    SELECT fn.unpack(answer) AS parts, key FROM db.budget_reports
    WHERE p = c.p AND budget = address AND until > c.now
      AND key = ANY (ARRAY['c'::bytea || call_id] || CASE WHEN of_key <> '' THEN ARRAY['k'::bytea || of_key] ELSE '{}' END)
  ) AS known ORDER BY key DESC LIMIT 1
$$;

-- Forget up to `most` answers of a budget that are over. Return when the next one is, or null.
CREATE FUNCTION fn.forget_answers(c fn.context, address bytea, most int) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM db.budget_reports WHERE p = c.p AND budget = address AND key IN (
    SELECT key FROM db.budget_reports WHERE p = c.p AND budget = address AND until <= c.now ORDER BY until, key LIMIT most
  );
  RETURN (SELECT min(until) FROM db.budget_reports WHERE p = c.p AND budget = address);
END $$;

-- Handle the retention entry of a budget's answers.
CREATE FUNCTION fn.forget_reports(c fn.context, address bytea) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  first bigint := fn.forget_answers(c, address, 100);
BEGIN
  IF first IS NOT NULL THEN
    PERFORM fn.note_entry(c, 'u', address, greatest(first, c.now));
  END IF;
END $$;

-- Remember the answer to a call: a day under a key of the caller, else ten minutes, as long as a call may be repeated.
CREATE FUNCTION fn.remember_report(c fn.context, address bytea, call_id bytea, of_key bytea, answer bytea[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  kept bigint := c.now + CASE WHEN of_key <> '' THEN fn.a_day() ELSE 600000 END;
  first bigint := fn.forget_answers(c, address, 2);
BEGIN
  INSERT INTO db.budget_reports AS known (p, budget, key, until, answer) VALUES (
    c.p, address, CASE WHEN of_key <> '' THEN 'k'::bytea || of_key ELSE 'c'::bytea || call_id END, kept,
    fn.pack(VARIADIC call_id || answer)
  ) ON CONFLICT (p, budget, key) DO UPDATE SET until = excluded.until, answer = excluded.answer;
  IF first IS NULL OR kept < first THEN
    PERFORM fn.note_entry(c, 'u', address, kept);
  END IF;
END $$;

-- Usage -------------------------------------------------------------------------------------------------------------

-- Return the failure if a budget cannot have counters for all dimensions of packed amounts, else null.
CREATE FUNCTION fn.uncountable(b fn.budget, amounts bytea[]) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN cardinality(b.counted) + count(*) FILTER (WHERE name <> ALL (b.counted)) > fn.max_dimensions()
    THEN fn.failure('too_many_dimensions', fn.behind_first(b.address), fn.bytes(fn.max_dimensions())) END
  FROM unnest(fn.every(2, amounts, 1)) AS name
$$;

-- Return the answer that amounts do not fit into a budget: the first dimension, what is used or reserved of it, and its hard
-- limit; or null if they fit.
CREATE FUNCTION fn.breach_of(b fn.budget, amounts bytea[]) RETURNS bytea[] LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  place int;
  taken bigint;
  hard bigint;
BEGIN
  FOR at IN 1 .. cardinality(amounts) BY 2 LOOP
    place := array_position(b.counted, amounts[at]);
    taken := coalesce(b.used[place] + b.reserved[place], 0);
    hard := coalesce(b.hards[array_position(b.limited, amounts[at])], fn.max_count());
    IF taken + fn.num(amounts[at + 1]) > hard THEN
      RETURN ARRAY['hard_breach'::bytea, amounts[at], fn.bytes(taken), fn.bytes(hard)];
    END IF;
  END LOOP;
  RETURN NULL;
END $$;

-- Return a budget with amounts added `times` times to its counters: to what is used, or to what is reserved. No counter falls
-- below zero.
CREATE FUNCTION fn.add_amounts(b fn.budget, amounts bytea[], to_reserved boolean, times int) RETURNS fn.budget
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  place int;
  change bigint;
BEGIN
  FOR at IN 1 .. cardinality(amounts) BY 2 LOOP
    place := array_position(b.counted, amounts[at]);
    IF place IS NULL THEN
      b.counted := b.counted || amounts[at]; b.used := b.used || 0::bigint; b.reserved := b.reserved || 0::bigint;
      place := cardinality(b.counted);
    END IF;
    change := times * fn.num(amounts[at + 1]);
    IF to_reserved THEN
      b.reserved[place] := least(greatest(b.reserved[place] + change, 0), fn.max_count());
    ELSE
      b.used[place] := least(greatest(b.used[place] + change, 0), fn.max_count());
    END IF;
  END LOOP;
  RETURN b;
END $$;

-- Return a budget in which a breach of a hard limit is noted.
CREATE FUNCTION fn.note_breach(c fn.context, b fn.budget, breach bytea[]) RETURNS fn.budget LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  b.parts[8] := fn.bytes(fn.num(b.parts[8]) + 1);
  b.parts[10] := fn.bytes(c.now); b.parts[11] := breach[2];
  RETURN b;
END $$;

-- Return the answer to a report that was counted: the first dimension of it that has passed its soft limit by it, else the
-- first that is above its soft limit.
CREATE FUNCTION fn.standing_of(b fn.budget, amounts bytea[]) RETURNS bytea[] LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  used bigint;
  soft bigint;
  answer bytea[];
BEGIN
  FOR at IN 1 .. cardinality(amounts) BY 2 LOOP
    used := b.used[array_position(b.counted, amounts[at])];
    soft := b.softs[array_position(b.limited, amounts[at])];
    IF used > soft AND (answer IS NULL OR used - fn.num(amounts[at + 1]) <= soft) THEN
      answer := ARRAY['soft_breach'::bytea, amounts[at], fn.bytes(used), fn.bytes(soft)];
      EXIT WHEN used - fn.num(amounts[at + 1]) <= soft;
    END IF;
  END LOOP;
  RETURN coalesce(answer, ARRAY['ok'::bytea]);
END $$;

-- Check all amounts of a report, then count all of them; a breach of a hard limit counts nothing. Return the budget, whose
-- `answer` is the answer.
CREATE FUNCTION fn.spend_from(c fn.context, b fn.budget, call_id bytea, of_key bytea, amounts bytea[]) RETURNS fn.budget
LANGUAGE plpgsql AS $$
BEGIN
  b.answer := fn.breach_of(b, amounts);
  IF b.answer IS NOT NULL THEN
    b := fn.note_breach(c, b, b.answer);
    -- The caller's key stays unused, so that the report may be sent again after a reset.
    of_key := '';
  ELSE
    b := fn.add_amounts(b, amounts, false, 1);
    b.answer := fn.standing_of(b, amounts);
    IF b.answer[1] = 'soft_breach' THEN
      b.parts[9] := fn.bytes(fn.num(b.parts[9]) + 1);
    END IF;
  END IF;
  PERFORM fn.remember_report(c, b.address, call_id, of_key, b.answer);
  RETURN b;
END $$;
