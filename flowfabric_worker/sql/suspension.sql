-- Executions that wait for signals, an operator or a time-out, and continue. An operation on a damaged suspension sets its
-- execution aside.

-- Waitpoints ------------------------------------------------------------------------------------------------------------

-- create_waitpoint: create a waitpoint before its suspension, or return the one that has the name.
-- Arguments: uuid, fence, name, id of a new one, which also names the call, kid, fingerprint of the secret, how long it waits
-- in ms, '=' + document or ''.
-- Replies: 'waitpoint', id, kid, when it expires; or 'secret_moved' if another secret signs by now.
-- Errors: those of fn.fenced, document_mismatch, too_many_waitpoints.
CREATE FUNCTION fn.create_waitpoint(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  answer bytea;
BEGIN
  answer := fn.create_waitpoint(c, args);
  RETURN answer;
EXCEPTION WHEN data_exception THEN
  RETURN fn.set_aside(c, fn.id(args[1]), 'record');
END $$;

CREATE FUNCTION fn.create_waitpoint(c fn.context, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  f fn.found := fn.fenced(c, fn.id(args[1]), args[2], NULL, args[4]);
  x db.executions := f.x;
  w fn.waitpoint;
BEGIN
  c := f.c;
  IF f.failure IS NOT NULL THEN
    c := fn.flush(c);
    RETURN f.failure;
  ELSIF NOT fn.is_signing(c, args[5], args[6]) THEN
    RETURN fn.answer('secret_moved');
  END IF;
  w := fn.asked_for(c, x.uuid, args[3], args[4], args[5]);
  IF fn.shows_another(c, x.uuid, w.id, args[8]) THEN
    RETURN fn.failure('document_mismatch', args[3]);
  END IF;
  IF w.state IN ('new', 'reopened') THEN
    IF fn.count_open(c, x.uuid) >= 1000 THEN
      RETURN fn.failure('too_many_waitpoints', args[1], '1000');
    END IF;
    w.expires := fn.bytes(c.now + fn.num(args[7]));
    x := fn.begin_waits(c, x);
    PERFORM fn.write_waitpoint(c, x.uuid, w, c.now + fn.num(args[7]));
    x.mutated := fn.bytes(c.now);
  END IF;
  IF w.state <> 'closed' AND fn.show(c, x.uuid, w.id, args[8]) OR w.state IN ('new', 'reopened') THEN
    x.reported := fn.remember(x.reported, args[4], 'waitpoint', w.id, w.kid, w.expires);
    c := fn.put(c, f.was, x);
  ELSE
    PERFORM fn.skip_flush();
  END IF;
  c := fn.flush(c);
  RETURN fn.answer('waitpoint', w.id, w.kid, w.expires);
END $$;

-- Suspending ------------------------------------------------------------------------------------------------------------

-- Return the failure of a suspension that cannot take a waitpoint over, or null if it can.
CREATE FUNCTION fn.not_bound(w fn.waitpoint, wants_pending boolean) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN w.state = 'pending' OR NOT wants_pending AND w.state IN ('new', 'reopened') THEN NULL
    WHEN w.why = 'expired' THEN fn.failure('pending_waitpoint_expired', w.id)
    ELSE fn.failure('waitpoint_not_pending', w.id)
  END
$$;

-- Return the waitpoint of a suspension whose arguments begin at `at`: name, id of a pending waitpoint or '', id of a new
-- one, '1' if an unknown id can only be that of another execution, '=' + document or ''. A failure is in `why` then, and
-- `state` is 'refused'.
CREATE FUNCTION fn.bind(c fn.context, execution uuid, args bytea[], at int) RETURNS fn.waitpoint LANGUAGE plpgsql AS $$
DECLARE
  w fn.waitpoint := fn.asked_for(c, execution, args[at], args[at + 2], args[11]);
  refused bytea;
BEGIN
  IF args[at + 1] <> '' AND w.id <> args[at + 1] THEN
    refused := fn.failure(
      CASE WHEN args[at + 3] = '1' AND (fn.waitpoint(c, execution, args[at + 1])).id IS NULL
        THEN 'invalid_waitpoint_for_execution' ELSE 'waitpoint_not_found' END,
      args[at + 1]
    );
  ELSE
    refused := fn.not_bound(w, args[at + 1] <> '');
    IF refused IS NULL AND fn.shows_another(c, execution, w.id, args[at + 4]) THEN
      refused := fn.failure('document_mismatch', args[at]);
    END IF;
  END IF;
  w.shown := args[at + 4];
  IF refused IS NOT NULL THEN
    w.state := 'refused'; w.why := refused;
  END IF;
  RETURN w;
END $$;

-- Remove the draft of the next suspension, and the suspensions before the last one.
CREATE FUNCTION fn.drop_drafts(c fn.context, x db.executions) RETURNS void LANGUAGE sql AS $$
  DELETE FROM db.suspensions WHERE p = c.p AND uuid = x.uuid AND (
    number = coalesce(fn.num(x.suspension), 0) + 1 OR number <= coalesce(fn.num(x.suspension), 0) - 1
  )
$$;

-- Return the draft of the next suspension: what an earlier call counted for the same request, or a new one. Its position is
-- the last buffered signal that it has counted.
CREATE FUNCTION fn.draft_of(c fn.context, x db.executions, args bytea[], first_signal int, count int) RETURNS db.suspensions
LANGUAGE plpgsql AS $$
DECLARE
  draft db.suspensions;
  next_number int := coalesce(fn.num(x.suspension), 0) + 1;
BEGIN
  SELECT * INTO draft FROM db.suspensions WHERE p = c.p AND uuid = x.uuid AND number = next_number;
  IF draft.request = args[13] AND draft.position IS NOT NULL THEN
    RETURN draft;
  END IF;
  PERFORM fn.drop_drafts(c, x);
  INSERT INTO db.suspensions (p, uuid, number, request, position, counts)
    VALUES (c.p, x.uuid, next_number, args[13], fn.bytes(coalesce(first_signal, 1) - 1::bigint), '') RETURNING * INTO draft;
  RETURN draft;
END $$;

-- Count a page of the signals that were buffered at the waitpoints of a new suspension. Return the draft, whose `last` is set
-- once there are no more. A number without its signal is damage.
CREATE FUNCTION fn.count_buffered(c fn.context, draft db.suspensions, leaves fn.leaf[], ids bytea[])
RETURNS db.suspensions LANGUAGE plpgsql AS $$
DECLARE
  counts int[] := fn.read_counts(draft.counts, leaves);
  last_number int := coalesce((SELECT last_signal FROM db.waits WHERE p = c.p AND uuid = draft.uuid), 0);
  stop int := least(fn.num(draft.position) + 100, last_number);
  seen int := 0;
  each record;
  signal fn.signal;
BEGIN
  FOR each IN
    SELECT head FROM db.signals WHERE p = c.p AND uuid = draft.uuid AND number > fn.num(draft.position) AND number <= stop
      ORDER BY number
  LOOP
    signal := fn.read_head(each.head);
    seen := seen + 1;
    IF signal.waitpoint = ANY (ids) THEN
      counts := coalesce(fn.count_signal(c, draft.uuid, draft.number, leaves, counts, signal), counts);
    END IF;
  END LOOP;
  IF seen < stop - fn.num(draft.position) THEN
    PERFORM fn.damaged();
  END IF;
  draft.counts := fn.counts_text(counts);
  draft.position := fn.bytes(stop::bigint);
  draft.last := CASE WHEN stop = last_number THEN 'all'::bytea END;
  UPDATE db.suspensions SET counts = draft.counts, position = draft.position
    WHERE p = c.p AND uuid = draft.uuid AND number = draft.number;
  RETURN draft;
END $$;

-- Write a suspension that begins now, with its waitpoints. Return the record that has it.
CREATE FUNCTION fn.begin_suspension(
  c fn.context, x db.executions, args bytea[], draft db.suspensions, waitpoints fn.waitpoint[], first_signal int
) RETURNS db.executions LANGUAGE plpgsql AS $$
DECLARE
  ends bytea := CASE WHEN args[7] <> '' THEN fn.bytes(c.now + fn.num(args[7])) ELSE '' END;
  next_signal int := coalesce((SELECT last_signal FROM db.waits WHERE p = c.p AND uuid = x.uuid), 0) + 1;
  w fn.waitpoint;
BEGIN
  x := fn.begin_waits(c, x);
  FOREACH w IN ARRAY waitpoints LOOP
    w.suspension := fn.bytes(draft.number::bigint); w.activated := fn.bytes(c.now); w.expires := ends;
    PERFORM fn.write_waitpoint(c, x.uuid, w, fn.undecided());
    PERFORM fn.show(c, x.uuid, w.id, w.shown);
  END LOOP;
  UPDATE db.suspensions SET id = args[4], at = fn.bytes(c.now), until = ends, behavior = args[5], reason = args[6],
    delay = args[8], continuation = args[9], condition = args[10], request = NULL, position = NULL,
    waitpoints = fn.pack(VARIADIC ARRAY(SELECT each.id FROM unnest(begin_suspension.waitpoints) AS each)),
    first = fn.bytes(least(first_signal, next_signal)::bigint)
    WHERE p = c.p AND uuid = x.uuid AND number = draft.number;
  x.mutated := fn.bytes(c.now); x.suspension := fn.bytes(draft.number::bigint);
  x.suspended_at := fn.bytes(c.now); x.suspended_until := ends;
  RETURN x;
END $$;

-- suspend: end the lease and let the execution wait until its condition is met; unless buffered signals meet it at once.
-- Arguments: uuid, fence, name of the ending (the same for the same request), suspension id, behavior, reason, timeout in
-- ms or '', delay of the resume in ms, continuation or '', condition, kid, fingerprint of the secret, request (as in a
-- draft), then the waitpoints as fn.bind reads them.
-- Replies: 'suspended' or 'satisfied', suspension id, then id, kid and name of each waitpoint; 'more' to be called again
-- because there are more buffered signals than one call counts; 'secret_moved' if another secret signs by now.
-- Errors: those of fn.fenced, pending_waitpoint_expired, waitpoint_not_pending, waitpoint_not_found,
-- invalid_waitpoint_for_execution, document_mismatch, too_many_waitpoints.
CREATE FUNCTION fn.suspend(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  answer bytea;
BEGIN
  answer := fn.suspend(c, args, false);
  RETURN answer;
EXCEPTION WHEN data_exception THEN
  RETURN fn.set_aside(c, fn.id(args[1]), 'record');
END $$;

-- Begin a suspension, or close it at once if its condition is met. If `at_once`, only the latter is done.
CREATE FUNCTION fn.suspend(c fn.context, args bytea[], at_once boolean) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  f fn.found := fn.fenced(c, fn.id(args[1]), args[2], fn.ascii(args[3]), NULL);
  w fn.waitpoint;
  waitpoints fn.waitpoint[] := '{}';
  opened int := 0;
  first_signal int;
BEGIN
  c := f.c;
  IF f.failure IS NOT NULL THEN
    c := fn.flush(c);
    RETURN f.failure;
  ELSIF cardinality(args) > 13 AND NOT fn.is_signing(c, args[11], args[12]) THEN
    RETURN fn.answer('secret_moved');
  END IF;
  FOR at IN 14 .. cardinality(args) BY 5 LOOP
    w := fn.bind(c, (f.x).uuid, args, at);
    IF w.state = 'refused' THEN
      RETURN w.why;
    END IF;
    opened := opened + CASE w.state WHEN 'pending' THEN 0 ELSE 1 END;
    first_signal := least(first_signal, fn.num(w.first));
    waitpoints := waitpoints || w;
  END LOOP;
  IF opened > 0 AND fn.count_open(c, (f.x).uuid) + opened > 1000 THEN
    RETURN fn.failure('too_many_waitpoints', args[1], '1000');
  END IF;
  f.c := c;
  RETURN fn.suspend_with(f, args, waitpoints, first_signal, at_once);
END $$;

-- Suspend an execution with the waitpoints that it asked for.
CREATE FUNCTION fn.suspend_with(
  f fn.found, args bytea[], waitpoints fn.waitpoint[], first_signal int, at_once boolean
) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := f.c;
  x db.executions := f.x;
  draft db.suspensions;
  leaves fn.leaf[] := fn.leaves(args[10]);
  answer bytea[];
  is_met boolean;
BEGIN
  IF at_once AND first_signal IS NULL AND NOT fn.is_met(leaves, fn.read_counts('', leaves)) THEN
    PERFORM fn.drop_drafts(c, x);
    PERFORM fn.skip_flush();
    RETURN fn.answer('waiting');
  END IF;
  draft := fn.draft_of(c, x, args, first_signal, 0);
  IF first_signal IS NOT NULL THEN
    draft := fn.count_buffered(c, draft, leaves, ARRAY(SELECT each.id FROM unnest(waitpoints) AS each));
    IF draft.last IS NULL THEN
      RETURN fn.answer('more');
    END IF;
  END IF;
  is_met := fn.is_met(leaves, fn.read_counts(draft.counts, leaves));
  IF at_once AND NOT is_met THEN
    -- What was counted is kept in the draft; if it is lost, it is counted again.
    PERFORM fn.skip_flush();
    RETURN fn.answer('waiting');
  END IF;
  answer := ARRAY[CASE WHEN is_met THEN 'satisfied'::bytea ELSE 'suspended' END, args[4]] || ARRAY(
    SELECT part FROM unnest(waitpoints) WITH ORDINALITY AS w, LATERAL unnest(ARRAY[w.id, w.kid, w.name])
      WITH ORDINALITY AS parts(part, nth) ORDER BY w.ordinality, nth
  );
  x := fn.begin_suspension(c, x, args, draft, waitpoints, first_signal);
  x := fn.remember_end(x, fn.ascii(args[3]), args[2], VARIADIC answer);
  IF is_met THEN
    x := fn.close_suspension(c, x, 'already_satisfied', 'signal');
  ELSE
    x.timeout_left := fn.bytes(fn.num(x.timeout_at) - c.now);
    x.timeout_at := NULL;
    x.state := fn.suspended_state(args[6]);
  END IF;
  c := fn.put(c, f.was, x);
  c := fn.flush(c);
  RETURN fn.answer(VARIADIC answer);
END $$;

-- try_satisfy: check what suspend would, and end the wait at once if buffered signals meet its condition.
-- Arguments: those of suspend.
-- Replies: those of suspend, but 'waiting' instead of 'suspended'.
-- Errors: those of suspend.
CREATE FUNCTION fn.try_satisfy(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  answer bytea;
BEGIN
  answer := fn.suspend(c, args, true);
  RETURN answer;
EXCEPTION WHEN data_exception THEN
  RETURN fn.set_aside(c, fn.id(args[1]), 'record');
END $$;

-- Signals ---------------------------------------------------------------------------------------------------------------

-- deliver_signal: deliver a signal from the bearer of a token.
-- Arguments: uuid, pack{namespace}, call id, waitpoint id, kid and fingerprint of the secret that the token was checked
-- with, '1' if the token is right, the signal as fn.signal_of reads it, window of its key in ms.
-- Replies: those of fn.deliver; or 'secret_moved' if the kid has another secret by now.
-- Errors: execution_not_found, invalid_token, those of fn.deliver.
CREATE FUNCTION fn.deliver_signal(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found;
  w fn.waitpoint;
  secret bytea[];
BEGIN
  f := fn.load_now(c, fn.id(args[1]), args[2]);
  IF f.failure IS NOT NULL THEN
    RETURN f.failure;
  END IF;
  secret := fn.secret_of(f.c, args[5]);
  IF fn.is_over(f.c, secret) THEN
    RETURN fn.failure('invalid_token');
  ELSIF secret[2] <> args[6] THEN
    RETURN fn.answer('secret_moved');
  END IF;
  w := fn.waitpoint(f.c, (f.x).uuid, args[4]);
  IF args[7] <> '1' OR w.id IS NULL THEN
    RETURN fn.failure('invalid_token');
  END IF;
  RETURN fn.deliver(f, w, fn.signal_of(args, 8, args[4], args[3]), fn.num(args[16]));
EXCEPTION WHEN data_exception THEN
  RETURN fn.set_aside(c, fn.id(args[1]), 'record');
END $$;

-- deliver_approval_signal: deliver the decision of an operator.
-- Arguments: uuid, pack{namespace}, call id, waitpoint id, lane or '', the signal as fn.signal_of reads it, window of its
-- key in ms.
-- Replies: those of fn.deliver.
-- Errors: execution_not_found, lane_mismatch, waitpoint_not_found, those of fn.deliver.
CREATE FUNCTION fn.deliver_approval_signal(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found;
  w fn.waitpoint;
  lane bytea;
BEGIN
  f := fn.load_now(c, fn.id(args[1]), args[2]);
  IF f.failure IS NOT NULL THEN
    RETURN f.failure;
  END IF;
  lane := (fn.unpack((f.x).class))[2];
  IF args[5] <> '' AND args[5] <> lane THEN
    RETURN fn.failure('lane_mismatch', args[1], lane);
  END IF;
  w := fn.waitpoint(f.c, (f.x).uuid, args[4]);
  IF w.id IS NULL THEN
    RETURN fn.failure('waitpoint_not_found', args[4]);
  END IF;
  RETURN fn.deliver(f, w, fn.signal_of(args, 6, args[4], args[3]), fn.num(args[14]));
EXCEPTION WHEN data_exception THEN
  RETURN fn.set_aside(c, fn.id(args[1]), 'record');
END $$;

-- resume_execution: resume an execution on an operator's word, even if its condition is not met.
-- Arguments: uuid, pack{namespace}, call id, delay in ms.
-- Replies: 'resumed', the moment at which it is ready.
-- Errors: execution_not_found, execution_not_suspended.
CREATE FUNCTION fn.resume_execution(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found;
  before bytea[];
  x db.executions;
BEGIN
  f := fn.load_now(c, fn.id(args[1]), args[2]);
  IF f.failure IS NOT NULL THEN
    RETURN f.failure;
  END IF;
  before := fn.recall((f.x).answered, args[3]);
  IF before IS NOT NULL THEN
    RETURN fn.answer(VARIADIC before);
  ELSIF (f.x).state NOT LIKE 's%' THEN
    RETURN fn.failure('execution_not_suspended', args[1]);
  END IF;
  x := fn.resume(f.c, f.x, 'resumed', 'operator', fn.num(args[4]));
  RETURN fn.put_answered(f, x, args[3], 'resumed', fn.bytes(c.now + fn.num(args[4])));
EXCEPTION WHEN data_exception THEN
  RETURN fn.set_aside(c, fn.id(args[1]), 'record');
END $$;
