-- What an operator or a producer does to an execution or a lane, without a lease.

-- Load the record that an operator's call is about. The failure is the reply to give if the call was answered before or the
-- namespace has no such execution.
CREATE FUNCTION fn.load_once(c fn.context, execution uuid, of_namespace bytea, call_id bytea) RETURNS fn.found
LANGUAGE plpgsql AS $$
DECLARE
  f fn.found := fn.load(c, execution, true);
BEGIN
  IF f.failure IS NULL AND ((f.x).namespace <> of_namespace OR fn.is_hidden(f.x)) THEN
    f.failure := fn.failure('execution_not_found', fn.bytes(execution));
  ELSIF f.failure IS NULL THEN
    f.failure := fn.reply_before((f.x).answered, call_id);
    IF f.failure IS NULL AND fn.is_foreign(fn.ascii((f.x).state)) THEN
      f.failure := fn.failure('written_by_newer_release', fn.bytes(execution));
    END IF;
  END IF;
  RETURN f;
END $$;

-- Write what an operator's call changed, and remember its reply.
CREATE FUNCTION fn.put_answered(f fn.found, x db.executions, call_id bytea, VARIADIC answer bytea[]) RETURNS bytea
LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := f.c;
BEGIN
  x.answered := fn.remember(x.answered, call_id, VARIADIC answer);
  c := fn.put(c, f.was, x);
  c := fn.flush(c);
  RETURN fn.answer(VARIADIC answer);
END $$;

-- cancel_execution: end an execution as cancelled, in any phase.
-- Arguments: uuid, pack{namespace}, call id, reason, source.
-- Replies: 'cancelled', also if the execution was cancelled before.
-- Errors: execution_not_found, written_by_newer_release, execution_not_active.
CREATE FUNCTION fn.cancel_execution(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.lock_flows(fn.begin(partition), ARRAY[fn.id(args[1])], true);
  f fn.found := fn.load_once(c, fn.id(args[1]), args[2], args[3]);
  x db.executions := f.x;
BEGIN
  IF f.failure IS NOT NULL THEN
    RETURN f.failure;
  ELSIF x.state LIKE '____c%' THEN
    RETURN fn.answer('cancelled');
  ELSIF x.state LIKE 't%' THEN
    RETURN fn.not_active(x);
  END IF;
  x := fn.finish(c, x, 'cancelled', true);
  x.cancel_reason := args[4]; x.cancelled_by := args[5];
  RETURN fn.put_answered(f, x, args[3], 'cancelled');
EXCEPTION WHEN data_exception THEN
  -- Its suspension is damaged.
  RETURN fn.set_aside(c, fn.id(args[1]), 'record');
END $$;

-- change_priority: change the priority of a runnable execution, also of a delayed or a blocked one.
-- Arguments: uuid, pack{namespace}, call id, priority.
-- Replies: 'changed', the priority before.
-- Errors: execution_not_found, written_by_newer_release, execution_not_eligible.
CREATE FUNCTION fn.change_priority(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found := fn.load_once(c, fn.id(args[1]), args[2], args[3]);
  x db.executions := f.x;
BEGIN
  IF f.failure IS NOT NULL THEN
    RETURN f.failure;
  ELSIF x.state NOT LIKE 'r%' THEN
    RETURN fn.failure('execution_not_eligible', args[1], fn.bytes(fn.public_state(fn.ascii(x.state))));
  END IF;
  x.priority := args[4]; x.mutated := fn.bytes(c.now);
  RETURN fn.put_answered(f, x, args[3], 'changed', (f.was).priority);
END $$;

-- replay_execution: make an ended execution ready again, in a new place and with a new attempt.
-- Arguments: uuid, pack{namespace}, call id, which steps to forget: '' for none, '*' for all, '=' + name for that step and
-- all after it.
-- Replies: 'replayed', the new state.
-- Errors: execution_not_found, written_by_newer_release, execution_not_terminal, max_replays_exhausted, step_not_found.
CREATE FUNCTION fn.replay_execution(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found;
  x db.executions;
  past bytea;
  first_forgotten int;
BEGIN
  PERFORM fn.share_classes(c);
  c := fn.lock_flows(c, ARRAY[fn.id(args[1])], true);
  f := fn.load_once(c, fn.id(args[1]), args[2], args[3]);
  x := f.x;
  IF f.failure IS NOT NULL THEN
    RETURN f.failure;
  ELSIF x.state NOT LIKE 't%' THEN
    RETURN fn.failure('execution_not_terminal', args[1], fn.bytes(fn.public_state(fn.ascii(x.state))));
  ELSIF coalesce(fn.num(x.replay_count), 0) >= coalesce(fn.of_policy(x.policy, 10)::bigint, 10) THEN
    RETURN fn.failure('max_replays_exhausted', args[1]);
  ELSIF args[4] <> '' AND fn.journal(x) IS NULL THEN
    RETURN fn.set_aside(c, x.uuid, 'steps');
  END IF;
  first_forgotten := fn.first_forgotten(x, args[4]);
  IF args[4] <> '' AND first_forgotten IS NULL THEN
    RETURN fn.failure('step_not_found', args[1], substring(args[4] FROM 2));
  END IF;
  past := fn.archive(c, x, CASE substring(fn.ascii(x.state) FROM 5 FOR 1)
    WHEN 's' THEN 'ended_success' WHEN 'c' THEN 'ended_cancelled' ELSE 'ended_failure' END);
  IF past IS NOT NULL THEN
    -- The next attempt takes its number from the field `attempt`, so an archived attempt stays there without its start.
    x.attempts := past;
    x.started := coalesce(x.started, fn.bytes(fn.of_attempt(x.attempt, 4)));
    x.attempt := fn.attempt_text(
      fn.of_attempt(x.attempt, 1), fn.of_attempt(x.attempt, 2), fn.of_attempt(x.attempt, 3), ''
    );
  END IF;
  IF x.state LIKE '____s%' THEN
    -- Only a completed execution answers a repeated `complete` from its outcome, which the replay removes.
    x := fn.remember_end(x, 'complete', x.fence, 'completed');
  END IF;
  IF first_forgotten IS NOT NULL THEN
    PERFORM fn.forget_waits(c, x);
    x := fn.forget_steps(x, first_forgotten);
  END IF;
  x := fn.replayed(c, x);
  f.c := fn.reopen_children(f.c, x);
  IF x.flow_id IS NOT NULL THEN
    f.c := fn.replay_member(f.c, f.was);
    x.result := (f.was).result;
    x.state := CASE WHEN fn.waits_for_edges(f.was) THEN 'rudhnp'::bytea ELSE x.state END;
  END IF;
  RETURN fn.put_answered(f, x, args[3], 'replayed', x.state);
END $$;

-- Return the place of the first step that a replay forgets: 1 for '*', null for '' or an unknown step. A step is found by its
-- name, or by what the SDK keeps of it as 'ff:<word> <name>'.
CREATE FUNCTION fn.first_forgotten(x db.executions, choice bytea) RETURNS int LANGUAGE sql AS $$
  SELECT CASE choice WHEN '' THEN NULL WHEN '*' THEN 1 ELSE (
    SELECT min(number) FROM db.steps WHERE p = x.p AND uuid = x.uuid AND (
      name = substring(choice FROM 2)
      OR encode(name, 'escape') ~ '^ff:[A-Za-z]+ '
        AND substring(name FROM position(' '::bytea IN name) + 1) = substring(choice FROM 2)
    )
  ) END
$$;

-- Return a record that has forgotten its steps from a place on.
CREATE FUNCTION fn.forget_steps(x db.executions, first int) RETURNS db.executions LANGUAGE plpgsql AS $$
DECLARE
  gone bigint;
BEGIN
  WITH forgotten AS (
    DELETE FROM db.steps WHERE p = x.p AND uuid = x.uuid AND number >= first RETURNING octet_length(name) + octet_length(value) AS size
  )
  SELECT coalesce(sum(size), 0) INTO gone FROM forgotten;
  x.steps := fn.bytes(first - 1::bigint);
  x.journal_bytes := CASE WHEN first > 1 THEN fn.bytes(greatest(0, coalesce(fn.num(x.journal_bytes), 0) - gone)) ELSE '0' END;
  RETURN x;
END $$;

-- Return a record without what belonged to the run that has ended.
CREATE FUNCTION fn.replayed(c fn.context, x db.executions) RETURNS db.executions LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  x.result := NULL; x.progress_percent := NULL; x.progress_message := NULL; x.progress_at := NULL;
  x.error := NULL; x.error_class := NULL; x.error_detail := NULL; x.cancel_reason := NULL; x.cancelled_by := NULL;
  x.ended := NULL; x.retry_count := NULL; x.reclaim_count := NULL; x.revoke_reason := NULL;
  x.state := 'ruewnp'; x.mutated := fn.bytes(c.now); x.place := fn.bytes(c.now);
  x.replay_count := fn.bytes(coalesce(fn.num(x.replay_count), 0) + 1);
  IF fn.num(x.deadline) <= c.now THEN
    x.deadline := NULL;
  END IF;
  RETURN x;
END $$;

-- revoke_lease: take a lease away from its holder and make the execution ready again.
-- Arguments: uuid, pack{namespace}, call id, expected lease id or '', expected instance or '', reason.
-- Replies: 'revoked', lease id, epoch; or 'already' and why: already_revoked, already_expired,
-- different_worker_instance_id.
-- Errors: execution_not_found, written_by_newer_release, execution_not_active, stale_lease.
CREATE FUNCTION fn.revoke_lease(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found := fn.load_once(c, fn.id(args[1]), args[2], args[3]);
  x db.executions := f.x;
BEGIN
  IF f.failure IS NOT NULL THEN
    RETURN f.failure;
  ELSIF x.state NOT LIKE 'a%' THEN
    RETURN fn.not_active(x);
  ELSIF x.state LIKE '_v%' THEN
    RETURN fn.answer('already', 'already_revoked');
  ELSIF x.state NOT LIKE '_l%' OR fn.num(x.expires) <= c.now THEN
    RETURN fn.answer('already', 'already_expired');
  ELSIF args[4] <> '' AND fn.ascii(args[4]) <> fn.lease_of(x.fence) THEN
    RETURN fn.failure('stale_lease', args[1]);
  ELSIF args[5] <> '' AND args[5] <> (fn.unpack(x.holder))[2] THEN
    RETURN fn.answer('already', 'different_worker_instance_id');
  END IF;
  PERFORM fn.tell_holder(c, x);
  x := fn.end_attempt(c, x, 'lease_revoked');
  x.state := 'avnwni'; x.revoke_reason := args[6];
  RETURN fn.put_answered(
    f, x, args[3], 'revoked', fn.bytes(fn.lease_of(x.fence)), fn.bytes(fn.epoch_of(x.fence))
  );
END $$;

-- Lanes -------------------------------------------------------------------------------------------------------------
--
-- A lane is paused in every partition, and the first partition decides: it gives each change a turn, and the others follow.
-- A partition ignores a turn that is older than its own, so two changes at one moment end alike everywhere. Upkeep completes
-- what the caller of a turn did not.

-- Pause a lane since a moment, or resume it if the moment is null.
CREATE FUNCTION fn.write_pause(c fn.context, of_lane bytea, of_turn bigint, since bigint) RETURNS fn.context
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM fn.share_classes(c);
  PERFORM fn.register_lane(c, of_lane);
  UPDATE db.lanes SET turn = of_turn, paused = since WHERE p = c.p AND lane = of_lane;
  IF since IS NULL THEN
    -- Each woken waiter asks for the lane's classes itself, so the number of classes does not matter here.
    c.new_in := c.new_in || of_lane;
  END IF;
  RETURN c;
END $$;

-- Pause or resume a lane in the first partition. Return the reply of the call.
CREATE FUNCTION fn.decide_pause(c fn.context, args bytea[], is_pause boolean) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  known db.lanes;
  answer bytea[];
  since bigint := CASE WHEN is_pause THEN c.now END;
  of_turn bigint;
BEGIN
  SELECT * INTO known FROM db.lanes WHERE p = c.p AND lane = args[1] FOR UPDATE;
  answer := fn.recall(known.answered, args[2]);
  IF answer IS NOT NULL THEN
    RETURN fn.answer(VARIADIC answer);
  ELSIF (known.paused IS NOT NULL) = is_pause THEN
    RETURN fn.answer('already', fn.bytes(coalesce(known.turn, 0)), coalesce(fn.bytes(known.paused), ''));
  END IF;
  of_turn := fn.next_turn(known.turn, c.now);
  answer := ARRAY['ok'::bytea, fn.bytes(of_turn), coalesce(fn.bytes(since), '')];
  c := fn.write_pause(c, args[1], of_turn, since);
  UPDATE db.lanes SET answered = fn.remember(answered, args[2], VARIADIC answer), is_followed = is_followed AND args[3] <> '1'
    WHERE p = c.p AND lane = args[1];
  c := fn.flush(c);
  RETURN fn.answer(VARIADIC answer);
END $$;

-- pause_lane: stop handing out a lane's work. The lane keeps its work and accepts more.
-- Arguments: pack{namespace, lane}, call id, '1' if other partitions have to follow.
-- Replies: 'ok', or 'already' if the lane was paused before; the turn; since when the lane is paused.
CREATE FUNCTION fn.pause_lane(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
BEGIN
  RETURN fn.decide_pause(fn.begin(partition), args, true);
END $$;

-- resume_lane: hand out a paused lane's work again.
-- Arguments: as of pause_lane.
-- Replies: 'ok', or 'already' if the lane was not paused; the turn; ''.
CREATE FUNCTION fn.resume_lane(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
BEGIN
  RETURN fn.decide_pause(fn.begin(partition), args, false);
END $$;

-- follow_lane: pause or resume a lane as the first partition decided, unless this partition has followed a later turn.
-- Arguments: pack{namespace, lane}, turn, since when the lane is paused or ''.
-- Replies: 'ok'.
CREATE FUNCTION fn.follow_lane(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  known db.lanes;
  of_turn bigint := fn.num(args[2]);
BEGIN
  SELECT * INTO known FROM db.lanes WHERE p = c.p AND lane = args[1] FOR UPDATE;
  IF of_turn > coalesce(known.turn, 0)
    OR of_turn = coalesce(known.turn, 0) AND fn.num(args[3]) IS DISTINCT FROM known.paused THEN
    c := fn.write_pause(c, args[1], of_turn, fn.num(args[3]));
    c := fn.flush(c);
  END IF;
  RETURN fn.answer('ok');
END $$;

-- end_following: note in the first partition that all others have followed a turn of a lane.
-- Arguments: pack{namespace, lane}, turn.
-- Replies: 'ok'.
CREATE FUNCTION fn.end_following(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
BEGIN
  UPDATE db.lanes SET is_followed = true WHERE p = partition AND lane = args[1] AND turn = fn.num(args[2]);
  RETURN fn.answer('ok');
END $$;

-- Return the reply with some lanes whose last turn may not have reached all partitions: pack{namespace, lane}, turn, since
-- when paused or '', of each.
CREATE FUNCTION fn.lanes_following(c fn.context) RETURNS bytea LANGUAGE sql AS $$
  SELECT fn.replies(VARIADIC ARRAY(
    SELECT fn.answer(lane, fn.bytes(turn), coalesce(fn.bytes(paused), '')) FROM db.lanes
    WHERE p = c.p AND NOT is_followed ORDER BY lane LIMIT 8
  ))
$$;

-- set_tags: add tags to an execution and replace those that it has.
-- Arguments: uuid, pack{namespace}, call id, pack{key, value, ...}, most tags.
-- Replies: 'ok', the number of tags; or 'too_many', the number that there would be.
-- Errors: execution_not_found, written_by_newer_release.
CREATE FUNCTION fn.set_tags(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found := fn.load_once(c, fn.id(args[1]), args[2], args[3]);
  x db.executions := f.x;
  parts bytea[];
  flat bytea[];
  count bigint;
BEGIN
  IF f.failure IS NOT NULL THEN
    RETURN f.failure;
  END IF;
  parts := fn.unpack(coalesce(x.tags, '')) || fn.unpack(args[4]);
  WITH latest AS (
    SELECT DISTINCT ON (parts[i]) parts[i] AS key, parts[i + 1] AS value FROM generate_series(1, cardinality(parts), 2) AS i
      ORDER BY parts[i], i DESC
  )
  SELECT count(*), coalesce(array_agg(each ORDER BY key, nth), '{}') INTO count, flat
    FROM latest, LATERAL unnest(ARRAY[key, value]) WITH ORDINALITY AS pair(each, nth);
  count := count / 2;
  IF count > fn.num(args[5]) THEN
    RETURN fn.replies(fn.reply('too_many'::text), fn.reply(count));
  ELSIF fn.pack(VARIADIC flat) = coalesce(x.tags, '') AND x.tags IS NOT NULL THEN
    RETURN fn.answer('ok', fn.bytes(count));
  END IF;
  x.tags := fn.pack(VARIADIC flat); x.mutated := fn.bytes(c.now);
  RETURN fn.put_answered(f, x, args[3], 'ok', fn.bytes(count));
END $$;

-- purge: remove an ended execution with all that it has before its retention is over, or a damaged one in any phase.
-- Arguments: uuid, pack{namespace}, call id.
-- Replies: 'removed', or 'purged' of a damaged execution.
-- Errors: execution_not_found, execution_not_terminal, flow_not_terminal.
CREATE FUNCTION fn.purge(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  execution uuid := fn.id(args[1]);
  f fn.found;
  of_flow db.flows;
BEGIN
  IF fn.was_removed(c, args[3]) THEN
    RETURN fn.answer('removed');
  END IF;
  c := fn.lock_flows(c, ARRAY[execution], true);
  IF NOT EXISTS (
    SELECT FROM db.executions AS x WHERE p = c.p AND uuid = execution AND namespace = args[2] AND NOT fn.is_hidden(x)
  ) THEN
    RETURN fn.failure('execution_not_found', args[1]);
  END IF;
  f := fn.load(c, execution);
  IF f.failure = fn.failure('execution_not_found', args[1]) THEN
    RETURN f.failure;
  ELSIF f.failure IS NOT NULL OR fn.is_set_aside(c, execution) THEN
    c := fn.remove_damaged(c, execution);
    c := fn.flush(c);
    RETURN fn.answer('purged');
  ELSIF (f.x).state NOT LIKE 't%' THEN
    RETURN fn.failure('execution_not_terminal', args[1], fn.bytes(fn.public_state(fn.ascii((f.x).state))));
  END IF;
  IF (f.x).flow_id IS NOT NULL THEN
    of_flow := fn.flow(c, (f.x).flow_id);
    IF of_flow.ended IS NULL THEN
      RETURN fn.failure('flow_not_terminal', fn.bytes(of_flow.flow), fn.flow_state(of_flow));
    END IF;
    of_flow.nodes := fn.bytes(fn.sound(of_flow.nodes) - 1);
    PERFORM fn.put_flow(of_flow);
  END IF;
  c := fn.remove_all(c, ARRAY[f.x]);
  PERFORM fn.remember_removal(c, args[3]);
  c := fn.flush(c);
  RETURN fn.answer('removed');
END $$;
