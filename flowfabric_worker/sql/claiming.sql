-- How work is handed out under a lease, reserved for a worker, and redeemed.

-- Claim from lanes in their order. Stop before a lane whose classes the caller does not fully know, because its first
-- work in order may be in an unknown class.
CREATE FUNCTION fn.claim_lanes(c fn.context, lanes fn.lane[], most bigint, lease fn.lease) RETURNS fn.batch
LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  got fn.batch;
  lane fn.lane;
BEGIN
  b.c := c; b.items := '{}'; b.ids := '{}';
  FOREACH lane IN ARRAY lanes LOOP
    EXIT WHEN lane.stale;
    IF NOT lane.paused AND cardinality(lane.classes) > 0 AND least(lane.most, most - cardinality(b.items)) > 0 THEN
      got := fn.claim_from(b.c, lane.classes, lane.gated, least(lane.most, most - cardinality(b.items)), lease);
      b.c := got.c; b.items := b.items || got.items; b.ids := b.ids || got.ids;
    END IF;
  END LOOP;
  RETURN b;
END $$;

-- Wake one waiter for each class that still holds work after this call.
CREATE FUNCTION fn.wake_next(c fn.context, lanes fn.lane[]) RETURNS fn.context LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM db.waiters WHERE p = c.p) THEN
    c.wakes := c.wakes || fn.classes_left(c, lanes);
  END IF;
  RETURN c;
END $$;

-- Register a waiter that found nothing, and return the moment at which it has to look again: now if there is work by now, or
-- a class that the caller does not know. The arguments are those of claim_many.
CREATE FUNCTION fn.wait(c fn.context, args bytea[]) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  waiter text := convert_from(args[4], 'UTF8');
  due bigint := fn.next_due(c);
  lanes fn.lane[];
  held int[];
BEGIN
  PERFORM fn.lock_waiters(c);
  -- Read the lanes again, because a call that committed before the lock was taken has woken no waiter.
  lanes := fn.lanes_of(c, args, 10);
  held := fn.classes_left(c, lanes);
  IF fn.is_work_left(c, held) OR EXISTS (SELECT FROM unnest(lanes) AS lane WHERE lane.stale) THEN
    RETURN c.now;
  END IF;
  PERFORM fn.register_waiter(
    c, waiter, convert_from(args[8], 'UTF8'), fn.num(args[6]), ARRAY(SELECT name FROM unnest(lanes)),
    ARRAY(SELECT unnest(classes) FROM unnest(lanes)), coalesce(due <= c.now + fn.fallback(), false), args[9] = '1'
  );
  IF cardinality(held) > 0 THEN
    -- A call that holds the work may leave it and wake no waiter, such as one that reads it. Calls are short, so look again
    -- soon.
    due := least(due, c.now + 100);
  END IF;
  RETURN due;
END $$;

-- claim_many: claim what is ready, in the order of the lanes asked for.
-- Arguments: claim id, holder as pack{worker id, instance, topic}, pack{namespace, instance}, waiter or '', lease in ms,
-- how long to wait in ms, limit, name of the set of classes to wait for, '1' if the server counts the subscribers of a
-- topic, then the lanes as fn.lanes_of reads them.
-- Replies: now; next due moment, or null (unused when there are items); the lanes whose classes have to be read again
-- (nothing is claimed from those and the lanes after them, and no waiter is registered); the items; '1' to call again at
-- once because this call used its budget, or ''; 1 if the claim was answered before, else 0; 0, because calls of different
-- callers run side by side; and only if the claim itself ended executions that no worker held, those: uuid, class, outcome,
-- attempt, retries, tags, error, detail.
-- Errors: instance_of_other_worker.
CREATE FUNCTION fn.claim_many(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  claim_id bytea := args[1];
  instance bytea := args[3];
  waiter text := convert_from(args[4], 'UTF8');
  most bigint := fn.num(args[7]);
  wait_ms bigint := fn.num(args[6]);
  worker bytea := fn.unpack_first(args[2]);
  failure bytea := fn.instance_refused(c, instance, worker);
  before bytea[];
  lanes fn.lane[];
  b fn.batch;
  due bigint;
  was_due boolean;
BEGIN
  IF failure IS NOT NULL THEN
    RETURN failure;
  END IF;
  IF waiter <> '' THEN
    c := fn.unwait(c, waiter);
    PERFORM fn.end_stand_by(c, waiter);
  END IF;
  before := fn.claim_before(c, instance, claim_id);
  c.collects := true;
  IF before IS NULL THEN
    was_due := fn.is_anything_due(c);
    IF was_due THEN
      PERFORM fn.lock_quotas_of(fn.lanes_of(c, args, 10));
      b := fn.run_due(c, greatest(32, 2 * most), 0.5);
      b := fn.run_removals(b.c, c.now, fn.allowed(b.c, 32, 3, 0.25));
      c := b.c;
    END IF;
    lanes := fn.lanes_of(c, args, 10);
    b := fn.claim_lanes(c, lanes, least(most, 100), fn.new_lease(claim_id, args[2], fn.num(args[5])));
    c := b.c;
    IF cardinality(b.items) > 0 THEN
      PERFORM fn.keep_claim(c, instance, claim_id, worker, b.ids, fn.num(args[5]));
      c := fn.wake_next(c, lanes);
    ELSIF wait_ms > 0 AND NOT EXISTS (SELECT FROM unnest(lanes) AS lane WHERE lane.stale) THEN
      -- A worker that continues to wait keeps its watch of the next due moment.
      c.watch_ended := false;
      c := fn.flush(c);
      due := fn.wait(c, args);
    END IF;
    c := fn.flush(c);
    IF NOT was_due AND c.passed = 0 AND cardinality(b.items) = 0 THEN
      PERFORM fn.skip_flush();
    END IF;
  ELSE
    b.items := fn.claimed_before(c, claim_id, before);
    lanes := '{}';
  END IF;
  IF due IS NULL AND cardinality(b.items) = 0 THEN
    -- A worker that got work does not wait, so the next due moment need not be read.
    due := fn.next_due(c);
  END IF;
  RETURN fn.claim_reply(c, due, lanes, b.items, most, before IS NOT NULL);
END $$;

-- Return the reply to a claim.
CREATE FUNCTION fn.claim_reply(
  c fn.context, due bigint, lanes fn.lane[], items bytea[], most bigint, is_repeated boolean
) RETURNS bytea LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  behind bytea := '*0\015\012';
  lane fn.lane;
BEGIN
  FOREACH lane IN ARRAY lanes LOOP
    IF lane.stale THEN
      behind := fn.answer(VARIADIC ARRAY(SELECT name FROM unnest(lanes) AS each WHERE each.stale));
      EXIT;
    END IF;
  END LOOP;
  RETURN CASE WHEN cardinality(c.ends) > 0 THEN '*8\015\012'::bytea ELSE '*7\015\012' END
    || fn.reply(c.now) || fn.reply(due) || behind || fn.replies(VARIADIC items)
    || CASE WHEN c.is_cut_short OR fn.is_spent(c) OR c.passed >= 256 OR cardinality(items) = 100 AND most > 100
      THEN fn.reply('1'::bytea) ELSE fn.reply(''::bytea) END
    || CASE WHEN is_repeated THEN fn.reply(1::bigint) ELSE fn.reply(0::bigint) END || fn.reply(0::bigint)
    || CASE WHEN cardinality(c.ends) > 0 THEN fn.replies(VARIADIC c.ends) ELSE '' END;
END $$;

-- forward_wakeup: pass a wake-up on to the next waiter, for a woken worker that has no capacity.
-- Arguments: the lanes as in claim_many.
-- Replies: 'ok'.
CREATE FUNCTION fn.forward_wakeup(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
BEGIN
  c := fn.wake_next(c, fn.lanes_of(c, args, 1));
  c := fn.flush(c);
  RETURN fn.answer('ok');
END $$;

-- stop_waiting: deregister a waiter. If it was woken already, pass the wake-up on to the next waiter.
-- Arguments: waiter, then the lanes that it waited for, as in claim_many.
-- Replies: 'ok'.
CREATE FUNCTION fn.stop_waiting(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  of_waiter text := convert_from(args[1], 'UTF8');
BEGIN
  IF EXISTS (SELECT FROM db.waiters WHERE p = c.p AND waiter = of_waiter) THEN
    c := fn.unwait(c, of_waiter);
  ELSE
    c := fn.wake_next(c, fn.lanes_of(c, args, 2));
    PERFORM fn.end_stand_by(c, of_waiter);
  END IF;
  c := fn.flush(c);
  RETURN fn.answer('ok');
END $$;

-- list_classes: read a page of the classes that hold work in each of some lanes, within the call's work budget.
-- Arguments per lane: pack{namespace, lane}, after (a class) or ''.
-- Replies per lane: revision, the classes, of which fewer than 200 are the last; or nothing once the budget is used up.
CREATE FUNCTION fn.list_classes(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  rows bytea[] := '{}';
  known bigint;
  found bytea[];
BEGIN
  FOR at IN 1 .. cardinality(args) BY 2 LOOP
    IF c.work > 0 OR at = 1 THEN
      -- One statement, because a class that is committed between two would be missing under its own revision.
      SELECT (SELECT revision FROM db.lanes WHERE p = c.p AND lane = args[at]), ARRAY(
        SELECT class FROM db.classes WHERE p = c.p AND lane = args[at] AND class > args[at + 1] ORDER BY class LIMIT 200
      ) INTO known, found;
      rows := rows || fn.replies(fn.reply(coalesce(known, 0)::text), fn.answer(VARIADIC found));
      c.work := c.work - 2 - cardinality(found);
    ELSE
      rows := rows || fn.replies();
    END IF;
  END LOOP;
  RETURN fn.replies(VARIADIC rows);
END $$;

-- Reservations ------------------------------------------------------------------------------------------------------

-- Return the first ready execution of a lane that may be handed out, in `f.x`, or a failure in `f.failure`.
CREATE FUNCTION fn.first_ready(c fn.context, classes int[]) RETURNS fn.found LANGUAGE plpgsql AS $$
DECLARE
  f fn.found;
  x db.executions;
  page fn.page;
BEGIN
  f.c := c; f.failure := '';
  page.last := fn.first_place();
  WHILE c.passed < 256 LOOP
    page := fn.heads(c, classes, page.last, 1, false, NULL);
    EXIT WHEN page.last IS NULL;
    IF cardinality(page.records) > 0 THEN
      x := (page.records)[1];
      f := fn.claimable(c, x, (SELECT class FROM db.classes WHERE id = x.class_id), NULL, NULL);
      c := f.c;
      IF f.failure IS NULL THEN
        RETURN f;
      END IF;
      c.passed := c.passed + 1;
    END IF;
  END LOOP;
  f.c := c; f.failure := '';
  RETURN f;
END $$;

-- reserve: reserve one ready execution for a named worker, for a time.
-- Arguments: grant id, pack{namespace, instance}, worker id, time in ms, then one lane as in claim_many.
-- Replies: 'granted', uuid, until when; or 'none', '1' if the lane's classes have to be read again, '1' to call again at
-- once.
-- Errors: instance_of_other_worker.
CREATE FUNCTION fn.reserve(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  field bytea := 'g'::bytea || args[2];
  worker bytea := args[3];
  until bigint := c.now + fn.num(args[4]);
  failure bytea := fn.instance_refused(c, args[2], worker);
  before bytea[] := fn.claim_before(c, field, args[1]);
  lane fn.lane;
  b fn.batch;
  f fn.found;
  x db.executions;
  answer bytea[];
BEGIN
  IF failure IS NOT NULL OR before IS NOT NULL THEN
    RETURN coalesce(failure, fn.answer(VARIADIC before));
  END IF;
  PERFORM fn.lock_quotas_of(fn.lanes_of(c, args, 5));
  b := fn.run_due(c, 32, 0.5);
  c := b.c;
  lane := (fn.lanes_of(c, args, 5))[1];
  f.failure := '';
  IF NOT lane.stale AND NOT lane.paused THEN
    IF lane.gated THEN
      lane.classes := fn.open_classes((fn.lock_gates(c, lane.classes)).gates, lane.classes);
    END IF;
    f := fn.first_ready(c, lane.classes);
    c := f.c;
  END IF;
  IF f.failure IS NULL THEN
    x := f.x;
    x.reserved_for := worker; x.reserved_until := fn.bytes(until); x.mutated := fn.bytes(c.now);
    c := fn.put(c, f.was, x);
    answer := ARRAY['granted'::bytea, fn.bytes(x.uuid), fn.bytes(until)];
    PERFORM fn.keep_claim(c, field, args[1], worker, answer, fn.num(args[4]));
    PERFORM fn.keep_instance(c, args[2], worker, fn.num(args[4]));
  ELSE
    answer := ARRAY[
      'none'::bytea, CASE WHEN lane.stale THEN '1'::bytea ELSE '' END, CASE
        WHEN c.is_cut_short OR fn.is_spent(c) OR c.passed >= 256 THEN '1'::bytea ELSE '' END
    ];
  END IF;
  c := fn.flush(c);
  RETURN fn.answer(VARIADIC answer);
END $$;

-- redeem: claim the execution that is reserved for a worker.
-- Arguments: uuid, claim id, holder as in claim_many, worker id, lease in ms, 'any' or 'resumed' (only an interrupted
-- attempt), pack{namespace}, pack{namespace, instance}.
-- Replies: 'claimed', the item.
-- Errors: execution_not_found, execution_not_leaseable, not_a_resumed_execution, invalid_claim_grant,
-- claim_grant_expired, instance_of_other_worker.
CREATE FUNCTION fn.redeem(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found := fn.load(c, fn.id(args[1]), true);
  x db.executions := f.x;
  journal bytea[] := fn.journal(x);
  failure bytea := f.failure;
  gates fn.gate[] := '{}';
  passing fn.passing;
BEGIN
  IF failure IS NULL AND fn.damage_for_claim(x, journal) IS NOT NULL THEN
    failure := fn.set_aside(c, x.uuid, fn.damage_for_claim(x, journal));
  ELSIF failure IS NULL THEN
    failure := fn.redeem_refused(c, x, args);
  END IF;
  IF failure IS NULL AND x.gated THEN
    passing := fn.lock_gates(c, ARRAY[x.class_id]);
    c := passing.c; gates := passing.gates;
    IF cardinality(fn.open_classes(gates, ARRAY[x.class_id])) = 0 THEN
      failure := fn.failure('execution_not_leaseable', args[1], 'rate_limited');
    END IF;
  END IF;
  IF failure = '' THEN
    RETURN fn.replies(fn.reply('claimed'::text), fn.claimed(c, x, journal));
  ELSIF failure IS NOT NULL THEN
    RETURN failure;
  ELSIF x.flow_id IS NOT NULL AND fn.is_taken_along(c, fn.flow(c, x.flow_id), x) THEN
    x := fn.cancel_with_flow(c, x);
    failure := fn.failure('execution_not_leaseable', args[1], 'cancelled');
  ELSIF fn.num(x.deadline) <= c.now THEN
    x := fn.expire(c, x);
    failure := fn.failure('execution_not_leaseable', args[1], 'expired');
  ELSIF fn.is_exhausted(x) THEN
    x := fn.exhaust(c, x);
    failure := fn.failure('execution_not_leaseable', args[1], 'failed');
  ELSE
    PERFORM fn.keep_instance(c, args[8], args[4], fn.num(args[5]));
    x := fn.take(c, x, fn.new_lease(args[2], args[3], fn.num(args[5])));
    passing := fn.pass_gates(c, f.was, x, gates);
    c := passing.c; x := passing.x; gates := passing.gates;
  END IF;
  c := fn.put(c, f.was, x);
  c := fn.flush(fn.write_gates(c, gates));
  RETURN coalesce(failure, fn.replies(fn.reply('claimed'::text), fn.claimed(c, x, journal)));
END $$;

-- Return the failure of a redemption; '' if it was answered before, null if it may go on.
CREATE FUNCTION fn.redeem_refused(c fn.context, x db.executions, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  state text := fn.ascii(x.state);
  refused bytea;
BEGIN
  IF x.namespace <> args[7] THEN
    RETURN fn.failure('execution_not_found', args[1]);
  ELSIF fn.is_leased(state) AND fn.num(x.expires) > c.now AND fn.lease_of(x.fence) = fn.ascii(args[2]) THEN
    RETURN '';
  ELSIF NOT fn.is_claimable(state) THEN
    RETURN fn.failure('execution_not_leaseable', args[1], fn.bytes(fn.public_state(state)));
  ELSIF args[6] = 'resumed' AND state NOT LIKE 'r%i' THEN
    RETURN fn.failure('not_a_resumed_execution', args[1]);
  ELSIF x.reserved_for IS DISTINCT FROM args[4] THEN
    RETURN fn.failure('invalid_claim_grant', args[1]);
  ELSIF fn.num(x.reserved_until) <= c.now THEN
    RETURN fn.failure('claim_grant_expired', args[1]);
  END IF;
  refused := fn.instance_refused(c, args[8], args[4]);
  IF refused IS NULL AND EXISTS (SELECT FROM db.lanes WHERE id = x.lane_id AND paused IS NOT NULL) THEN
    refused := fn.failure('execution_not_leaseable', args[1], 'lane_paused');
  END IF;
  RETURN refused;
END $$;
