-- Budgets: what executions may spend. A budget is pack{namespace} and its id, see prelude_budgets.sql.

-- Lock a budget for an operator's call. A budget that has answered the call already has the answer.
CREATE FUNCTION fn.operate_budget(c fn.context, address bytea, call_id bytea) RETURNS fn.budget LANGUAGE plpgsql AS $$
DECLARE
  b fn.budget := fn.load_budget(c, address);
BEGIN
  IF b.failure IS NULL THEN
    b.failure := fn.answer(VARIADIC (fn.reported(c, address, call_id))[2:]);
  END IF;
  RETURN b;
END $$;

-- Write a budget that an operator's call changed, and remember the answer.
CREATE FUNCTION fn.end_operation(c fn.context, b fn.budget, call_id bytea, answer bytea[]) RETURNS bytea
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM fn.remember_report(c, b.address, call_id, '', answer);
  c := fn.flush(fn.write_budget(c, b));
  RETURN fn.answer(VARIADIC answer);
END $$;

-- create_budget: create a budget whose counters are zero.
-- Arguments: budget, call id, on_hard, on_soft, interval in ms or '', limits.
-- Replies: 'created'; or 'known' if the same budget exists.
-- Errors: conflict if it exists with another definition, corruption.
CREATE FUNCTION fn.create_budget(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  b fn.budget;
BEGIN
  INSERT INTO db.budgets (p, budget) VALUES (c.p, args[1]) ON CONFLICT DO NOTHING;
  IF FOUND THEN
    b.address := args[1]; b.due_before := ''; b.counted := '{}'; b.used := '{}'; b.reserved := '{}';
    b.parts := ARRAY[fn.bytes(c.now), '', '', '', '', '', '', '0', '0', '', ''];
    RETURN fn.end_operation(c, fn.define_budget(c, b, args[3:6]), args[2], ARRAY['created'::bytea]);
  END IF;
  b := fn.operate_budget(c, args[1], args[2]);
  IF b.failure IS NOT NULL THEN
    RETURN b.failure;
  ELSIF b.parts[2:4] || b.parts[6] <> args[3:6] THEN
    RETURN fn.failure('conflict', fn.behind_first(args[1]));
  END IF;
  RETURN fn.answer('known');
END $$;

-- update_budget: replace the definition of a budget. Its counters are kept; another interval begins now.
-- Arguments: those of create_budget.
-- Replies: 'budget' and its parts.
-- Errors: budget_not_found, corruption.
CREATE FUNCTION fn.update_budget(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  b fn.budget := fn.operate_budget(c, args[1], args[2]);
BEGIN
  IF b.failure IS NOT NULL THEN
    RETURN b.failure;
  END IF;
  b := fn.define_budget(c, b, args[3:6]);
  RETURN fn.end_operation(c, b, args[2], 'budget'::bytea || fn.budget_parts(b));
END $$;

-- reset_budget: set the counters of a budget to zero. Its interval begins now.
-- Arguments: budget, call id.
-- Replies: 'reset', when it is reset next or ''.
-- Errors: budget_not_found, corruption.
CREATE FUNCTION fn.reset_budget(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  b fn.budget := fn.operate_budget(c, args[1], args[2]);
BEGIN
  IF b.failure IS NOT NULL THEN
    RETURN b.failure;
  END IF;
  b := fn.clear_budget(b);
  b.parts[5] := coalesce(fn.bytes(c.now + fn.num(b.parts[4])), '');
  RETURN fn.end_operation(c, b, args[2], ARRAY['reset'::bytea, b.parts[5]]);
END $$;

-- delete_budget: remove a budget with everything that it has.
-- Arguments: budget, call id.
-- Replies: 'removed'.
-- Errors: budget_not_found.
CREATE FUNCTION fn.delete_budget(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
BEGIN
  IF fn.was_removed(c, args[2]) THEN
    RETURN fn.answer('removed');
  END IF;
  DELETE FROM db.budgets WHERE p = c.p AND budget = args[1];
  IF NOT FOUND THEN
    RETURN fn.failure('budget_not_found', fn.behind_first(args[1]));
  END IF;
  DELETE FROM db.entries WHERE p = c.p AND kind IN ('b', 'u') AND member = args[1];
  PERFORM fn.remember_removal(c, args[2]);
  RETURN fn.answer('removed');
END $$;

-- read_budget: read a budget.
-- Arguments: budget.
-- Replies: 'budget' and its parts.
-- Errors: budget_not_found, corruption.
CREATE FUNCTION fn.read_budget(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  b fn.budget := fn.load_budget(fn.begin(partition), args[1], true);
BEGIN
  RETURN coalesce(b.failure, fn.answer(VARIADIC 'budget'::bytea || fn.budget_parts(b)));
END $$;

-- list_budgets: read a page of a namespace's budgets in this partition.
-- Arguments: pack{namespace}, after (a budget) or '', limit.
-- Replies: '1' if there may be more budgets, else '0'; then per budget: its name, then its parts; a damaged one is its name
-- and the damage.
CREATE FUNCTION fn.list_budgets(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  found db.budgets;
  b fn.budget;
  rows bytea[] := '{}';
  more boolean := false;
BEGIN
  FOR found IN
    SELECT * FROM db.budgets WHERE p = c.p AND budget >= args[1] AND budget > args[2] AND budget < args[1] || '\xff'::bytea
      ORDER BY budget LIMIT fn.num(args[3])
  LOOP
    more := c.work <= 0 AND cardinality(rows) > 0;
    EXIT WHEN more;
    b := fn.parse_budget(c, found.budget, found.entry);
    c.work := c.work - 1 - fn.weight(found.budget, coalesce(found.entry, ''));
    rows := rows || fn.answer(VARIADIC found.budget || CASE WHEN b.failure IS NULL THEN fn.budget_parts(b)
      ELSE ARRAY['budget '::bytea || fn.behind_first(found.budget) || fn.bytes(': ' || fn.damage_in_budget(fn.unpack(coalesce(found.entry, ''))))] END);
  END LOOP;
  RETURN fn.replies(VARIADIC
    fn.reply(CASE WHEN more OR cardinality(rows) = fn.num(args[3]) THEN '1'::text ELSE '0' END) || rows);
END $$;

-- spend: count usage on behalf of an operator, and record it as the share of an execution if one is given.
-- Arguments: budget, call id, key of the caller or '', pack{dimension, amount, ...}, pack{namespace}, execution or '', and
-- where that is: 'here' in this partition, 'there' in another one, which knows of the share, or 'check' to count nothing.
-- Replies: 'checked'; or '1' if this repeats a report of another call, else ''; 'ok', or 'soft_breach' or 'hard_breach', then
-- dimension, counter, limit.
-- Errors: budget_not_found, corruption, too_many_dimensions, execution_not_found.
CREATE FUNCTION fn.spend(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  amounts bytea[] := fn.unpack(args[4]);
  f fn.found;
  b fn.budget;
  before bytea[];
BEGIN
  IF args[7] = 'here' THEN
    f := fn.load_in(c, fn.id(args[6]), args[5]);
  END IF;
  b := fn.load_budget(c, args[1]);
  IF b.failure IS NOT NULL THEN
    RETURN b.failure;
  END IF;
  before := fn.reported(c, args[1], args[2], args[3]);
  IF before IS NOT NULL THEN
    RETURN fn.answer(VARIADIC before);
  END IF;
  b.failure := coalesce(f.failure, fn.uncountable(b, amounts));
  IF b.failure IS NOT NULL OR args[7] = 'check' THEN
    RETURN coalesce(b.failure, fn.answer('checked'));
  END IF;
  b := fn.spend_from(c, b, args[2], args[3], amounts);
  IF b.answer[1] <> 'hard_breach' AND args[6] <> '' THEN
    PERFORM fn.record_share(c, args[1], fn.id(args[6]), amounts);
    IF args[7] = 'here' THEN
      c := fn.put(c, f.was, fn.with_budget(c, f.x, args[1]));
    END IF;
  END IF;
  c := fn.flush(fn.write_budget(c, b));
  RETURN fn.answer(VARIADIC ''::bytea || b.answer);
END $$;

-- note_budget: note in the record of an execution that a budget in another partition has a share of it.
-- Arguments: uuid, pack{namespace}, budget.
-- Replies: 'ok'.
-- Errors: execution_not_found, corruption.
CREATE FUNCTION fn.note_budget(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found := fn.load_in(c, fn.id(args[1]), args[2]);
BEGIN
  IF f.failure IS NOT NULL THEN
    RETURN f.failure;
  END IF;
  c := fn.flush(fn.put(c, f.was, fn.with_budget(c, f.x, args[3])));
  RETURN fn.answer('ok');
END $$;

-- release_budget: take back what an execution recorded.
-- Arguments: budget, call id, execution.
-- Replies: 'released', then dimension, amount, ...
-- Errors: budget_not_found, corruption.
CREATE FUNCTION fn.release_budget(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  b fn.budget := fn.operate_budget(c, args[1], args[2]);
  amounts bytea[];
BEGIN
  IF b.failure IS NOT NULL THEN
    RETURN b.failure;
  END IF;
  amounts := fn.take_recorded(c, args[1], fn.id(args[3]));
  RETURN fn.end_operation(c, fn.add_amounts(b, amounts, false, -1), args[2], 'released'::bytea || amounts);
END $$;
