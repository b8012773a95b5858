-- Reservations, executions that wait for a budget, and what one partition owes to another.

-- Owed --------------------------------------------------------------------------------------------------------------

-- Write down what this partition owes to another one: 'end' and 'gone' say to a budget that an execution ended or was
-- removed, 'go' says to an execution that it may go on, and 'ask' asks a budget whether an execution still has to wait. The
-- caller pays it at once, and upkeep pays what is left.
CREATE FUNCTION fn.owe(c fn.context, what text, address bytea, execution uuid, of_partition bytea) RETURNS void
LANGUAGE sql AS $$
  INSERT INTO db.owed (p, debt) VALUES (
    c.p, fn.pack(fn.bytes(what), address, fn.bytes(execution), of_partition)
  ) ON CONFLICT DO NOTHING
$$;

-- Return the mark of an answer: '1' if it repeats that of another call, followed by 'o' if this partition owes something.
CREATE FUNCTION fn.mark(c fn.context, is_again bytea) RETURNS bytea LANGUAGE sql AS $$
  SELECT is_again || CASE WHEN EXISTS (SELECT FROM db.owed WHERE p = c.p) THEN 'o'::bytea ELSE '' END
$$;

-- Return the reply with what this partition owes, the oldest first.
CREATE FUNCTION fn.owed(c fn.context, most int) RETURNS bytea LANGUAGE sql AS $$
  SELECT fn.answer(VARIADIC ARRAY(SELECT debt FROM db.owed WHERE p = c.p ORDER BY turn LIMIT most))
$$;

-- Waiting -----------------------------------------------------------------------------------------------------------

-- Return amounts that are at most the hard limits of a budget, so that what can never fit goes on after a reset.
CREATE FUNCTION fn.capped(b fn.budget, amounts bytea[]) RETURNS bytea[] LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  FOR at IN 1 .. cardinality(amounts) BY 2 LOOP
    amounts[at + 1] := fn.bytes(least(
      fn.num(amounts[at + 1]), coalesce(b.hards[array_position(b.limited, amounts[at])], fn.max_count())
    ));
  END LOOP;
  RETURN amounts;
END $$;

-- Note that an execution waits until a budget has space for amounts.
CREATE FUNCTION fn.wait_for_budget(c fn.context, b fn.budget, u fn.usage) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  share bytea[] := fn.read_share(c, b.address, u.uuid);
BEGIN
  share[3] := fn.pack(VARIADIC fn.capped(b, u.amounts)); share[4] := u.partition;
  PERFORM fn.write_share(c, b.address, u.uuid, share);
  UPDATE db.budget_shares SET waits = u.score WHERE p = c.p AND budget = b.address AND uuid = u.uuid;
END $$;

-- Let an execution stop waiting for a budget.
CREATE FUNCTION fn.end_wait(c fn.context, address bytea, execution uuid, share bytea[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  share[3] := '';
  PERFORM fn.write_share(c, address, execution, share);
  UPDATE db.budget_shares SET waits = NULL WHERE p = c.p AND budget = address AND uuid = execution;
END $$;

-- Return whether an execution waits for a budget; false if something else happened to it, such as a resume by an operator.
CREATE FUNCTION fn.waits_for_budget(x db.executions) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce(x.state LIKE '__b%' AND x.state LIKE 'r%' OR x.state = fn.suspended_state('paused_by_budget'), false)
$$;

-- Let an execution of this partition go on if it waits for a budget, and return whether it did in the `count` of the batch.
CREATE FUNCTION fn.go_on(c fn.context, execution uuid) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  f fn.found := fn.load(c, execution);
  x db.executions := f.x;
BEGIN
  b.c := c; b.count := 0;
  IF f.failure IS NOT NULL OR NOT fn.waits_for_budget(x) THEN
    RETURN b;
  ELSIF x.state LIKE 's%' THEN
    BEGIN
      x := fn.resume(c, x, 'resumed', 'operator', 0);
    EXCEPTION WHEN data_exception THEN
      PERFORM fn.set_aside(c, execution, 'record');
      RETURN b;
    END;
  ELSE
    x.state := 'ruewn'::bytea || substring(x.state FROM 6); x.mutated := fn.bytes(c.now);
  END IF;
  b.c := fn.put(c, f.was, x); b.count := 1;
  RETURN b;
END $$;

-- Let the executions go on that wait for a budget, in their order, as many as fit. If there are too many for one call, or one
-- is locked, the due entry of the budget continues. A locked execution is not waited for, since others lock it first.
CREATE FUNCTION fn.open_budget(c fn.context, b fn.budget, walked bigint) RETURNS fn.used LANGUAGE plpgsql AS $$
DECLARE
  u fn.used;
  each record;
  x db.executions;
  further fn.budget := b;
  share bytea[];
  looked int := 0;
  is_locked boolean := false;
BEGIN
  b.has_space := false;
  FOR each IN
    SELECT uuid FROM db.budget_shares WHERE p = c.p AND budget = b.address AND waits IS NOT NULL
      ORDER BY waits, uuid OFFSET walked LIMIT 50
  LOOP
    looked := looked + 1;
    share := fn.read_share(c, b.address, each.uuid);
    IF share[4] = '' THEN
      SELECT * INTO x FROM db.executions WHERE p = c.p AND uuid = each.uuid FOR UPDATE SKIP LOCKED;
      IF x.uuid IS NULL AND EXISTS (SELECT FROM db.executions WHERE p = c.p AND uuid = each.uuid) THEN
        walked := walked + 1; is_locked := true;
        CONTINUE;
      ELSIF x.uuid IS NULL OR NOT fn.waits_for_budget(x) THEN
        PERFORM fn.end_wait(c, b.address, each.uuid, share);
        CONTINUE;
      END IF;
    END IF;
    IF fn.breach_of(further, coalesce(fn.unpack(share[3]), '{}')) IS NOT NULL THEN
      walked := walked + 1;
      CONTINUE;
    END IF;
    further := fn.add_amounts(further, coalesce(fn.unpack(share[3]), '{}'), true, 1);
    PERFORM fn.end_wait(c, b.address, each.uuid, share);
    IF share[4] = '' THEN
      c := (fn.go_on(c, each.uuid)).c;
    ELSE
      PERFORM fn.owe(c, 'go', b.address, each.uuid, share[4]);
    END IF;
  END LOOP;
  c.work := c.work - 5 * looked;
  b.parts[12] := CASE WHEN looked = 50 THEN fn.bytes(walked) WHEN is_locked THEN '0' ELSE ''::bytea END;
  u.c := c; u.b := b;
  RETURN u;
END $$;

-- Reservations ------------------------------------------------------------------------------------------------------

-- Store the open reservations of a share, and note when the first of them is over.
CREATE FUNCTION fn.store_reservations(c fn.context, address bytea, execution uuid, share bytea[], list bytea[])
RETURNS fn.context LANGUAGE plpgsql AS $$
BEGIN
  share[2] := fn.pack(VARIADIC list);
  PERFORM fn.write_share(c, address, execution, share);
  RETURN fn.note_due(c, 'h', fn.pack(address, fn.bytes(execution)), (
    SELECT min(until) FROM unnest(fn.numbers(fn.every(3, list, 2))) AS until
  ));
END $$;

-- Return a budget without the reservations of a share that are over, that have a key, or all of them. Those that are left are
-- in its `answer`.
CREATE FUNCTION fn.free(c fn.context, b fn.budget, share bytea[], of_key bytea, all_of_them boolean) RETURNS fn.budget
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  list bytea[] := coalesce(fn.unpack(share[2]), '{}');
BEGIN
  b.answer := '{}';
  FOR at IN 1 .. cardinality(list) BY 3 LOOP
    IF all_of_them OR fn.num(list[at + 1]) <= c.now OR list[at] = of_key THEN
      b := fn.add_amounts(b, fn.unpack(list[at + 2]), true, -1);
    ELSE
      b.answer := b.answer || list[at : at + 2];
    END IF;
  END LOOP;
  RETURN b;
END $$;

-- Handle the due entry of an execution's reservations at a budget: free those that are over.
CREATE FUNCTION fn.expire_reservations(c fn.context, member bytea) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  address bytea := (fn.unpack(member))[1];
  execution uuid := fn.id((fn.unpack(member))[2]);
  b fn.budget := fn.load_budget(c, address);
  share bytea[];
BEGIN
  IF b.failure IS NOT NULL THEN
    RETURN c;
  END IF;
  share := fn.read_share(c, address, execution);
  b := fn.free(c, b, share, NULL, false);
  c := fn.store_reservations(c, address, execution, share, b.answer);
  RETURN fn.change_budget(c, b);
END $$;

-- End what a budget of this partition keeps for an execution that ended, or everything of one that is gone.
CREATE FUNCTION fn.end_share(c fn.context, address bytea, execution uuid, is_gone boolean) RETURNS fn.context
LANGUAGE plpgsql AS $$
DECLARE
  b fn.budget;
  share bytea[] := fn.read_share(c, address, execution);
BEGIN
  IF share[2] <> '' OR share[3] <> '' THEN
    b := fn.load_budget(c, address);
    share := fn.read_share(c, address, execution);
    IF b.failure IS NULL THEN
      b := fn.free(c, b, share, NULL, true);
      PERFORM fn.end_wait(c, address, execution, share);
      share[3] := '';
      c := fn.store_reservations(c, address, execution, share, '{}');
      c := fn.change_budget(c, b);
    END IF;
  END IF;
  IF is_gone THEN
    DELETE FROM db.budget_shares WHERE p = c.p AND budget = address AND uuid = execution;
  END IF;
  c.work := c.work - 4;
  RETURN c;
END $$;

-- Uses by a holder --------------------------------------------------------------------------------------------------

-- Note that amounts do not fit, and return the answer, with what follows for the execution. It waits for the budget unless
-- it fails.
CREATE FUNCTION fn.refuse(c fn.context, b fn.budget, u fn.usage, breach bytea[]) RETURNS fn.used LANGUAGE plpgsql AS $$
DECLARE
  done fn.used;
BEGIN
  b := fn.note_breach(c, b, breach);
  done.answer := breach || b.parts[2];
  IF b.parts[2] <> 'fail' THEN
    PERFORM fn.wait_for_budget(c, b, u);
  END IF;
  PERFORM fn.remember_report(c, b.address, u.call_id, '', done.answer);
  done.c := fn.write_budget(c, b);
  RETURN done;
END $$;

-- Count amounts, or refuse them all.
CREATE FUNCTION fn.use_report(c fn.context, b fn.budget, u fn.usage) RETURNS fn.used LANGUAGE plpgsql AS $$
DECLARE
  done fn.used;
  breach bytea[] := fn.breach_of(b, u.amounts);
BEGIN
  IF breach IS NOT NULL THEN
    RETURN fn.refuse(c, b, u, breach);
  END IF;
  b := fn.spend_from(c, b, u.call_id, u.key, u.amounts);
  done.answer := b.answer;
  done.c := fn.write_budget(c, b);
  RETURN done;
END $$;

-- Return the key under which the settling of a reservation is remembered. No key of a caller begins with a zero byte.
CREATE FUNCTION fn.settled_key(u fn.usage) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT '\x00'::bytea || fn.bytes(u.uuid) || u.key
$$;

-- Return the key under which the answer to a use is remembered beside its call id, or ''.
CREATE FUNCTION fn.key_of_use(u fn.usage) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE u.what WHEN 'report' THEN u.key WHEN 'settle' THEN fn.settled_key(u) ELSE ''::bytea END
$$;

-- Return the failure of a reservation that can never be made, or null.
CREATE FUNCTION fn.impossible(c fn.context, b fn.budget, u fn.usage, open int) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  hard bigint;
BEGIN
  IF fn.reported(c, b.address, u.call_id, fn.settled_key(u)) IS NOT NULL THEN
    RETURN fn.failure('reservation_settled', fn.behind_first(b.address), u.key);
  ELSIF open >= 100 THEN
    RETURN fn.failure('too_many_reservations', fn.behind_first(b.address), '100');
  END IF;
  FOR at IN 1 .. cardinality(u.amounts) BY 2 LOOP
    hard := b.hards[array_position(b.limited, u.amounts[at])];
    IF fn.num(u.amounts[at + 1]) > hard THEN
      RETURN fn.failure(
        'reservation_never_fits', fn.behind_first(b.address), u.amounts[at], u.amounts[at + 1], fn.bytes(hard)
      );
    END IF;
  END LOOP;
  RETURN NULL;
END $$;

-- Reserve amounts under a key, or refuse them all.
CREATE FUNCTION fn.use_reserve(c fn.context, b fn.budget, u fn.usage) RETURNS fn.used LANGUAGE plpgsql AS $$
DECLARE
  done fn.used;
  share bytea[] := fn.read_share(c, b.address, u.uuid);
  list bytea[];
  place int;
  breach bytea[];
BEGIN
  b := fn.free(c, b, share, NULL, false);
  list := b.answer;
  place := array_position(fn.every(3, list, 1), u.key);
  IF place IS NOT NULL THEN
    done.c := c;
    done.answer := ARRAY['reserved'::bytea, list[3 * place - 1], '1'];
    RETURN done;
  END IF;
  done.failure := fn.impossible(c, b, u, cardinality(list) / 3);
  IF done.failure IS NOT NULL THEN
    RETURN done;
  END IF;
  breach := fn.breach_of(b, u.amounts);
  IF breach IS NOT NULL THEN
    RETURN fn.refuse(c, b, u, breach);
  END IF;
  b := fn.add_amounts(b, u.amounts, true, 1);
  share[4] := u.partition;
  c := fn.store_reservations(
    c, b.address, u.uuid, share, list || ARRAY[u.key, fn.bytes(c.now + u.hold), fn.pack(VARIADIC u.amounts)]
  );
  done.answer := ARRAY['reserved'::bytea, fn.bytes(c.now + u.hold)];
  PERFORM fn.remember_report(c, b.address, u.call_id, '', done.answer);
  done.c := fn.write_budget(c, b);
  RETURN done;
END $$;

-- Return the first dimension of amounts that is above its hard limit, as the answer to a settlement; or null.
CREATE FUNCTION fn.excess_of(b fn.budget, amounts bytea[]) RETURNS bytea[] LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  used bigint;
  hard bigint;
BEGIN
  FOR at IN 1 .. cardinality(amounts) BY 2 LOOP
    used := b.used[array_position(b.counted, amounts[at])];
    hard := b.hards[array_position(b.limited, amounts[at])];
    IF used > hard THEN
      RETURN ARRAY['hard_breach'::bytea, amounts[at], fn.bytes(used), fn.bytes(hard)];
    END IF;
  END LOOP;
  RETURN NULL;
END $$;

-- Count amounts in place of what was reserved under a key, also if they are more, or come after the reservation was over.
CREATE FUNCTION fn.use_settle(c fn.context, b fn.budget, u fn.usage) RETURNS fn.used LANGUAGE plpgsql AS $$
DECLARE
  done fn.used;
  share bytea[] := fn.read_share(c, b.address, u.uuid);
  list bytea[];
  was_open boolean;
BEGIN
  list := coalesce(fn.unpack(share[2]), '{}');
  was_open := EXISTS (
    SELECT FROM unnest(fn.every(3, list, 1), fn.numbers(fn.every(3, list, 2))) AS each(key, until)
    WHERE each.key = u.key AND until > c.now
  );
  b := fn.free(c, b, share, u.key, false);
  list := b.answer;
  b := fn.add_amounts(b, u.amounts, false, 1);
  done.answer := coalesce(fn.excess_of(b, u.amounts), fn.standing_of(b, u.amounts));
  IF done.answer[1] = 'soft_breach' THEN
    b.parts[9] := fn.bytes(fn.num(b.parts[9]) + 1);
  END IF;
  done.answer := (done.answer || ARRAY[''::bytea, '', ''])[:4] || CASE WHEN was_open THEN ''::bytea ELSE 'late' END;
  c := fn.store_reservations(c, b.address, u.uuid, share, list);
  PERFORM fn.remember_report(c, b.address, u.call_id, fn.settled_key(u), done.answer);
  done.c := fn.change_budget(c, b);
  RETURN done;
END $$;

-- Return the use whose arguments begin at `at`: what is done ('report', 'reserve' or 'settle'), budget, call id, key or '',
-- amounts, for how long a reservation holds in ms or ''.
CREATE FUNCTION fn.usage_of(args bytea[], at int, execution uuid, of_partition bytea, score bigint) RETURNS fn.usage
LANGUAGE sql IMMUTABLE AS $$
  SELECT (args[at], args[at + 1], args[at + 2], args[at + 3], fn.unpack(args[at + 4]), fn.num(args[at + 5]), execution,
    of_partition, score)::fn.usage
$$;

-- Use a budget of this partition on behalf of a holder. The answer is: '1' if it repeats that of another call, else ''; 'ok',
-- 'reserved' and until when, 'soft_breach' or 'hard_breach' with dimension, counter and limit; then what follows for the
-- execution of a breach, or 'late' for what is settled without an open reservation.
CREATE FUNCTION fn.use_budget(c fn.context, u fn.usage) RETURNS fn.used LANGUAGE plpgsql AS $$
DECLARE
  done fn.used;
  b fn.budget := fn.load_budget(c, u.address);
BEGIN
  done.c := c;
  IF b.failure IS NOT NULL THEN
    done.failure := b.failure;
    RETURN done;
  END IF;
  done.answer := fn.reported(c, u.address, u.call_id, fn.key_of_use(u));
  IF done.answer IS NOT NULL THEN
    RETURN done;
  END IF;
  done.failure := fn.uncountable(b, u.amounts);
  IF done.failure IS NULL THEN
    done := CASE u.what
      WHEN 'report' THEN fn.use_report(c, b, u) WHEN 'reserve' THEN fn.use_reserve(c, b, u) ELSE fn.use_settle(c, b, u)
    END;
    done.answer := ''::bytea || done.answer;
  END IF;
  RETURN done;
END $$;

-- Return a record that is stopped because its budget has no space, as the answer of the use says. `words` are the id of the
-- suspension and its condition.
CREATE FUNCTION fn.stop_for_budget(
  c fn.context, x db.executions, of_fence bytea, call_id bytea, address bytea, answer bytea[], words bytea[]
) RETURNS db.executions LANGUAGE plpgsql AS $$
DECLARE
  asked bytea[];
BEGIN
  x := fn.with_budget(c, fn.remember_end(x, 'budget ' || fn.ascii(call_id), of_fence, VARIADIC answer), address);
  x.mutated := fn.bytes(c.now);
  IF answer[6] = 'fail' THEN
    x.error := 'budget_exceeded'; x.error_class := 'permanent';
    x.error_detail := 'budget '::bytea || fn.behind_first(address) || ': '::bytea || answer[3] || ' is at '::bytea || answer[4]
      || ' of '::bytea || answer[5];
    RETURN fn.finish(c, x, 'failed');
  ELSIF answer[6] = 'suspend' THEN
    asked := ARRAY[
      ''::bytea, '', '', words[1], 'fail', 'paused_by_budget', '', '0', '', words[2], '', '', 'budget '::bytea || words[1]
    ];
    x := fn.begin_suspension(c, x, asked, fn.draft_of(c, x, asked, NULL, 0), '{}', NULL);
    x.timeout_left := fn.bytes(fn.num(x.timeout_at) - c.now); x.timeout_at := NULL;
    x.state := fn.suspended_state('paused_by_budget');
    RETURN x;
  END IF;
  x.state := 'rubuni';
  RETURN x;
END $$;
