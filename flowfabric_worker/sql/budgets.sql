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
    b.address := args[1]; b.due_before := ''; b.was_full := false; b.counted := '{}'; b.used := '{}'; b.reserved := '{}';
    b.parts := ARRAY[fn.bytes(c.now), '', '', '', '', '', '', '0', '0', '', '', '', '', '0'];
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
  b.has_space := true;
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
  b.has_space := true;
  b.parts[5] := coalesce(fn.bytes(c.now + fn.num(b.parts[4])), '');
  RETURN fn.end_operation(c, b, args[2], ARRAY['reset'::bytea, b.parts[5]]);
END $$;

-- disuse_budget: forget a budget of another partition, before it is deleted, unless executions here name it.
-- Arguments: budget.
-- Replies: 'ok'; or 'more' if the call has to be repeated.
-- Errors: budget_in_use.
CREATE FUNCTION fn.disuse_budget(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  stopped text := fn.forget_classes_of_budget(c, args[1]);
BEGIN
  IF stopped = 'in_use' THEN
    RETURN fn.failure('budget_in_use', fn.behind_first(args[1]));
  ELSIF stopped IS NULL THEN
    DELETE FROM db.budget_news WHERE p = c.p AND budget = args[1];
  END IF;
  RETURN fn.answer(fn.bytes(coalesce(stopped, 'ok')));
END $$;

-- use_from: note that executions of another partition name a budget.
-- Arguments: budget, partition.
-- Replies: 'used', the news for that partition.
-- Errors: budget_not_found, corruption.
CREATE FUNCTION fn.use_from(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  b fn.budget := fn.load_budget(c, args[1]);
BEGIN
  IF b.failure IS NOT NULL THEN
    RETURN b.failure;
  END IF;
  IF args[2] <> ALL (fn.unpack(b.parts[13])) THEN
    b.parts[13] := b.parts[13] || fn.pack(args[2]);
    c := fn.flush(fn.write_budget(c, b));
  END IF;
  RETURN fn.answer('used', fn.news_of_budget(b));
END $$;

-- delete_budget: remove a budget with everything that it has.
-- Arguments: budget, call id.
-- Replies: 'removed'; or 'more' if the call has to be repeated.
-- Errors: budget_not_found, budget_in_use.
CREATE FUNCTION fn.delete_budget(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  stopped text;
BEGIN
  IF fn.was_removed(c, args[2]) THEN
    RETURN fn.answer('removed');
  ELSIF NOT EXISTS (SELECT FROM db.budgets WHERE p = c.p AND budget = args[1]) THEN
    RETURN fn.failure('budget_not_found', fn.behind_first(args[1]));
  END IF;
  stopped := fn.forget_classes_of_budget(c, args[1]);
  IF stopped = 'in_use' THEN
    RETURN fn.failure('budget_in_use', fn.behind_first(args[1]));
  ELSIF stopped IS NOT NULL THEN
    RETURN fn.answer(fn.bytes(stopped));
  END IF;
  DELETE FROM db.budgets WHERE p = c.p AND budget = args[1];
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
-- Replies: 'checked'; or the mark of the answer, see fn.mark; 'ok', or 'soft_breach' or 'hard_breach', then dimension, counter,
-- limit.
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
    RETURN fn.answer(VARIADIC fn.mark(c, before[1]) || before[2:]);
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
  RETURN fn.answer(VARIADIC fn.mark(c, '') || b.answer);
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
  b.has_space := cardinality(amounts) > 0;
  RETURN fn.end_operation(c, fn.add_amounts(b, amounts, false, -1), args[2], 'released'::bytea || amounts);
END $$;

-- Uses by a holder --------------------------------------------------------------------------------------------------

-- use_budget: use a budget of this partition on behalf of the holder of an execution, and stop the execution if the budget
-- has no space and says so.
-- Arguments: uuid, fence, the use as fn.usage_of reads it, then the id and the condition of a suspension.
-- Replies: as fn.use_budget.
-- Errors: those of fn.fenced, budget_not_found, corruption, too_many_dimensions, reservation_never_fits,
-- reservation_settled, too_many_reservations.
CREATE FUNCTION fn.use_budget(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found := fn.load(c, fn.id(args[1]));
  x db.executions;
  done fn.used;
  before bytea[];
BEGIN
  before := fn.reported(c, args[4], args[5], fn.key_of_use(fn.usage_of(args, 3, fn.id(args[1]), '', 0)));
  IF before[1] = '' AND f.failure IS NULL THEN
    RETURN fn.answer(VARIADIC fn.mark(c, before[1]) || before[2:]);
  END IF;
  f := fn.fenced(c, fn.id(args[1]), args[2], 'budget ' || fn.ascii(args[5]), NULL);
  x := f.x;
  IF f.failure IS NULL THEN
    done := fn.use_budget(f.c, fn.usage_of(args, 3, x.uuid, '', fn.num(x.place) - fn.num(x.priority) * 1000000000000));
    f.failure := done.failure;
  END IF;
  IF f.failure IS NOT NULL THEN
    c := fn.flush(f.c);
    RETURN f.failure;
  END IF;
  c := done.c;
  done.answer[1] := fn.mark(c, done.answer[1]);
  IF done.answer[2] = 'hard_breach' AND args[3] <> 'settle' THEN
    c := fn.put(c, f.was, fn.stop_for_budget(c, x, args[2], args[5], args[4], done.answer, args[9:10]));
  ELSIF done.answer[2] = 'reserved' THEN
    c := fn.put(c, f.was, fn.with_budget(c, x, args[4]));
  END IF;
  c := fn.flush(c);
  RETURN fn.answer(VARIADIC done.answer);
END $$;

-- begin_use: check that a caller holds an execution, before it uses a budget of another partition; or note in the record the
-- budget at which it has reserved.
-- Arguments: uuid, fence, call id, budget, '1' to note the budget.
-- Replies: 'begun', the place of the execution among those that wait; or the answer of the same use that ended the lease.
-- Errors: those of fn.fenced.
CREATE FUNCTION fn.begin_use(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found := fn.fenced(c, fn.id(args[1]), args[2], 'budget ' || fn.ascii(args[3]), NULL);
  x db.executions := f.x;
BEGIN
  c := f.c;
  IF f.failure IS NULL AND args[5] = '1' THEN
    c := fn.put(c, f.was, fn.with_budget(c, x, args[4]));
  END IF;
  c := fn.flush(c);
  RETURN coalesce(f.failure, fn.answer('begun', fn.bytes(fn.num(x.place) - fn.num(x.priority) * 1000000000000)));
END $$;

-- apply_use: use a budget on behalf of an execution of another partition.
-- Arguments: the use as fn.usage_of reads it, then uuid, partition and place of the execution.
-- Replies and errors: as fn.use_budget.
CREATE FUNCTION fn.apply_use(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  done fn.used := fn.use_budget(c, fn.usage_of(args, 1, fn.id(args[7]), args[8], fn.num(args[9])));
BEGIN
  IF done.failure IS NULL THEN
    c := fn.flush(done.c);
  END IF;
  RETURN coalesce(done.failure, fn.answer(VARIADIC fn.mark(c, done.answer[1]) || done.answer[2:]));
END $$;

-- stop_use: stop an execution because a budget of another partition has no space, and owe the question whether it still has
-- none.
-- Arguments: uuid, fence, call id, budget, the id and the condition of a suspension, then the answer of the use.
-- Replies: that answer.
-- Errors: those of fn.fenced.
CREATE FUNCTION fn.stop_use(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found := fn.fenced(c, fn.id(args[1]), args[2], 'budget ' || fn.ascii(args[3]), NULL);
BEGIN
  c := f.c;
  IF f.failure IS NULL THEN
    c := fn.put(c, f.was, fn.stop_for_budget(c, f.x, args[2], args[3], args[4], args[7:], args[5:6]));
    IF args[12] <> 'fail' THEN
      PERFORM fn.owe(c, 'ask', args[4], fn.id(args[1]), '');
    END IF;
  END IF;
  c := fn.flush(c);
  RETURN coalesce(f.failure, fn.answer(VARIADIC args[7:]));
END $$;

-- pay: receive what another partition owes to a budget or to an execution of this one.
-- Arguments: what it is, budget, uuid (for 'tell' the news), see fn.owe; or 'open' for a budget if an execution that was to go on did not wait, so
-- that others may go on.
-- Replies: 'ok'; to 'ask', 'go' if the execution may go on; to 'go', 'idle' if it did not wait.
CREATE FUNCTION fn.pay(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  went fn.batch;
  b fn.budget;
  answer text := 'ok';
BEGIN
  IF args[1] = 'tell' THEN
    c := fn.hear_of_budget(c, args[2], args[3]);
  ELSIF args[1] = 'go' THEN
    went := fn.go_on(c, fn.id(args[3]));
    c := went.c;
    answer := CASE went.count WHEN 0 THEN 'idle' ELSE 'ok' END;
  ELSIF args[1] = 'ask' THEN
    answer := CASE WHEN (fn.read_share(c, args[2], fn.id(args[3])))[3] = '' THEN 'go' ELSE 'ok' END;
  ELSIF args[1] = 'open' THEN
    b := fn.load_budget(c, args[2]);
    IF b.failure IS NULL THEN
      c := fn.change_budget(c, b);
    END IF;
  ELSE
    c := fn.end_share(c, args[2], fn.id(args[3]), args[1] = 'gone');
  END IF;
  c := fn.flush(c);
  RETURN fn.answer(fn.bytes(answer));
END $$;

-- read_owed: read what this partition owes to others.
-- Arguments: the most to read.
-- Replies: pack{what, budget, uuid, partition of an execution} each.
CREATE FUNCTION fn.read_owed(partition int, args bytea[]) RETURNS bytea LANGUAGE sql AS $$
  SELECT fn.owed(fn.begin(partition), fn.num(args[1])::int)
$$;

-- end_owed: forget what this partition owed and what was paid.
-- Arguments: as read_owed replied.
-- Replies: 'ok'.
CREATE FUNCTION fn.end_owed(partition int, args bytea[]) RETURNS bytea LANGUAGE sql AS $$
  DELETE FROM db.owed WHERE p = partition AND debt = ANY (args);
  SELECT fn.answer('ok');
$$;
