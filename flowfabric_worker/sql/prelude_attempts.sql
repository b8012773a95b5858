-- Attempts, leases and ends: functions that return a changed record, and write nothing.

-- Return the part of a fence '<lease id>:<epoch>:<attempt id>'. An attempt has the id of its first lease, and the fence of
-- that lease leaves the attempt id empty.
CREATE FUNCTION fn.lease_of(fence bytea) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT split_part(encode(fence, 'escape'), ':', 1)
$$;
CREATE FUNCTION fn.epoch_of(fence bytea) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce(split_part(encode(fence, 'escape'), ':', 2)::bigint, 0)
$$;
CREATE FUNCTION fn.attempt_of(fence bytea) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce(nullif(split_part(encode(fence, 'escape'), ':', 3), ''), fn.lease_of(fence))
$$;

-- Return a part of the field `attempt`: 1 number, 2 type, 3 kind of its claim, 4 start, 5 end.
CREATE FUNCTION fn.of_attempt(attempt bytea, place int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT split_part(encode(attempt, 'escape'), '|', place)
$$;

-- Return the field `attempt` made of its parts.
CREATE FUNCTION fn.attempt_text(number text, kind text, came text, started text, ended text DEFAULT '') RETURNS bytea
LANGUAGE sql IMMUTABLE AS $$
  SELECT decode(
    coalesce(number, '') || '|' || coalesce(kind, '') || '|' || coalesce(came, '') || '|' || coalesce(started, '') || '|' || ended,
    'escape'
  )
$$;

-- Return a record whose attempt has ended while the execution continues.
CREATE FUNCTION fn.end_attempt(c fn.context, x db.executions, reason text) RETURNS db.executions
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM fn.wake_tails(c, x);
  x.attempt := fn.attempt_text(
    fn.of_attempt(x.attempt, 1), fn.of_attempt(x.attempt, 2), fn.of_attempt(x.attempt, 3), fn.of_attempt(x.attempt, 4),
    c.now::text
  );
  x.closed := fn.bytes(reason);
  RETURN x;
END $$;

-- Return why the stream of the present attempt is closed, or null while it is open.
CREATE FUNCTION fn.why_closed(x db.executions) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN fn.of_attempt(x.attempt, 5) <> '' THEN coalesce(fn.ascii(x.closed), 'attempt_failure')
    WHEN x.state LIKE 't%' THEN CASE substring(fn.ascii(x.state) FROM 5 FOR 1)
      WHEN 's' THEN 'attempt_success' WHEN 'c' THEN 'attempt_cancelled' WHEN 'k' THEN 'attempt_cancelled'
      WHEN 'e' THEN 'expired' ELSE CASE WHEN x.error_class = 'timeout' THEN 'timed_out' ELSE 'attempt_failure' END END
  END
$$;

-- Return the first bytes of a UTF-8 text at most, without half a character.
CREATE FUNCTION fn.cut(value bytea, most int) RETURNS bytea LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  WHILE most > 0 AND most < octet_length(value) AND get_byte(value, most) BETWEEN 128 AND 191 LOOP
    most := most - 1;
  END LOOP;
  RETURN substring(value FROM 1 FOR most);
END $$;

-- Return the field of past attempts with the present one added, or null if it has not begun. The oldest beyond 100 are
-- dropped.
CREATE FUNCTION fn.archive(c fn.context, x db.executions, how text) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  past bytea[] := fn.unpack(coalesce(x.attempts, ''));
  ended text := fn.of_attempt(x.attempt, 5);
  why bytea := '';
BEGIN
  IF coalesce(fn.of_attempt(x.attempt, 4), '') = '' THEN
    RETURN NULL;
  END IF;
  IF cardinality(past) >= 100 THEN
    past := past[2:];
  END IF;
  IF ended = '' THEN
    -- An attempt that ran to the end of its execution ended with it.
    ended := coalesce(fn.ascii(x.ended), c.now::text);
  END IF;
  IF how = 'ended_failure' THEN
    why := coalesce(x.error, '');
  ELSIF how = 'interrupted_reclaimed' THEN
    why := fn.why_lost(c, x);
  END IF;
  RETURN fn.pack(VARIADIC past || fn.pack(
    fn.bytes(fn.of_attempt(x.attempt, 1)), fn.bytes(fn.of_attempt(x.attempt, 2)), fn.bytes(how),
    fn.bytes(fn.of_attempt(x.attempt, 4)), fn.bytes(ended), coalesce(x.holder, ''),
    CASE WHEN how = 'ended_failure' THEN coalesce(x.error_class, '') ELSE '' END, fn.cut(why, 256),
    coalesce(fn.bytes(fn.why_closed(x)), '')
  ));
END $$;

-- Return the reason that the last holder of an execution gave when it gave the execution up, or null.
CREATE FUNCTION fn.said(x db.executions) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN said[1] = 'lost' THEN said[2] END FROM fn.recall(x.last, 'release '::bytea || x.fence) AS said
$$;

-- Return in words why the last holder of an execution lost it: by the holder itself, or by the supervisor of one that died.
CREATE FUNCTION fn.why_lost(c fn.context, x db.executions) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  instance bytea := (fn.unpack(x.holder))[2];
  why bytea := fn.said(x);
BEGIN
  IF x.state LIKE '_v%' OR coalesce(x.holder, '') = '' THEN
    RETURN 'its lease was revoked'::bytea;
  END IF;
  why := coalesce(why, nullif(fn.worker_death(c, fn.pack(fn.unpack_first(x.class)) || instance), ''));
  RETURN 'worker '::bytea || instance || coalesce(': '::bytea || why, ' stopped renewing its lease'::bytea);
END $$;

-- Tell the process that held a lease that it is lost. The fence says which lease, since the process may hold the next too.
CREATE FUNCTION fn.tell_holder(c fn.context, x db.executions) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF x.topic <> '' THEN
    PERFORM fn.tell(
      convert_from(x.topic, 'UTF8'), format('lost {fp:%s}:%s %s', c.p, x.uuid, fn.ascii(x.fence))
    );
  END IF;
END $$;

-- Return a record that has ended. `told` is true if the holder did not ask for the end.
CREATE FUNCTION fn.finish(c fn.context, x db.executions, outcome text, told boolean DEFAULT false) RETURNS db.executions
LANGUAGE plpgsql AS $$
BEGIN
  IF told AND fn.is_leased(fn.ascii(x.state)) THEN
    PERFORM fn.tell_holder(c, x);
  END IF;
  x.state := fn.ended_state(outcome, x);
  x.ended := fn.bytes(c.now);
  x.watchers := NULL; x.reserved_for := NULL; x.reserved_until := NULL;
  IF fn.num(x.suspension) IS NOT NULL THEN
    x := fn.close_waits(c, x, fn.public_state(fn.ascii(x.state)));
  END IF;
  IF x.stream IS NOT NULL THEN
    PERFORM fn.wake_tails(c, x);
  END IF;
  RETURN x;
END $$;

-- Return a record whose deadline has passed, ended in any phase.
CREATE FUNCTION fn.expire(c fn.context, x db.executions) RETURNS db.executions LANGUAGE plpgsql AS $$
BEGIN
  x := fn.finish(c, x, 'expired', true);
  x.error := 'execution_deadline'; x.error_class := 'timeout'; x.error_detail := '';
  RETURN x;
END $$;

-- Return a record whose running attempt failed: retried or ended as its policy says. `asked` is a wait in ms that the
-- failure asks for, or null.
CREATE FUNCTION fn.fail_attempt(
  c fn.context, x db.executions, class text, message bytea, detail bytea, asked bigint, draw double precision, told boolean
) RETURNS db.executions LANGUAGE plpgsql AS $$
DECLARE
  retries bigint := coalesce(fn.num(x.retry_count), 0);
  at bigint;
BEGIN
  x.error := message; x.error_class := fn.bytes(class); x.error_detail := detail;
  IF NOT fn.may_retry(x.policy, class, retries, asked IS NOT NULL) THEN
    RETURN fn.finish(c, x, CASE class WHEN 'cancelled' THEN 'cancelled' ELSE 'failed' END, told);
  END IF;
  IF told THEN
    PERFORM fn.tell_holder(c, x);
  END IF;
  at := c.now + coalesce(asked, fn.backoff(x.policy, retries, draw));
  x := fn.end_attempt(c, x, CASE class WHEN 'timeout' THEN 'timed_out' ELSE 'attempt_failure' END);
  x.state := CASE WHEN at > c.now THEN 'rutbnt'::bytea ELSE 'ruewnt' END;
  x.retry_count := fn.bytes(retries + 1);
  x.delay_until := CASE WHEN at > c.now THEN fn.bytes(at) ELSE x.delay_until END;
  RETURN x;
END $$;

-- Return what a failed attempt's record answers its holder.
CREATE FUNCTION fn.fail_answer(c fn.context, x db.executions) RETURNS bytea[] LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN x.state LIKE 't___c%' THEN ARRAY['cancelled'::bytea]
    WHEN x.state LIKE 't%' THEN ARRAY['failed'::bytea]
    WHEN x.state LIKE 'rut%' THEN ARRAY['retry'::bytea, x.delay_until]
    ELSE ARRAY['retry'::bytea, fn.bytes(c.now)] END
$$;

-- Return a number in [0, 1) for the jitter of a retry that no caller drew a number for. It is made of the random digits
-- of the execution's id and its lease's id, so attempts that end at the same moment wait for different times.
CREATE FUNCTION fn.draw_of(x db.executions) RETURNS double precision LANGUAGE sql IMMUTABLE AS $$
  SELECT ((fn.hex_tail(x.uuid::text) + fn.hex_tail(fn.lease_of(x.fence))) % 4294967296) / 4294967296.0::double precision
$$;

CREATE FUNCTION fn.hex_tail(value text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN right(value, 8) ~ '^[0-9a-fA-F]{1,8}$' THEN ('x' || lpad(right(value, 8), 16, '0'))::bit(64)::bigint ELSE 0 END
$$;

-- Due ---------------------------------------------------------------------------------------------------------------

-- Return a record whose lease lapsed or whose attempt timed out, whichever came first.
CREATE FUNCTION fn.lapse(c fn.context, x db.executions) RETURNS db.executions LANGUAGE plpgsql AS $$
BEGIN
  IF fn.num(x.timeout_at) <= least(c.now, fn.num(x.expires)) THEN
    RETURN fn.fail_attempt(c, x, 'timeout', 'attempt_timeout', '', NULL, fn.draw_of(x), true);
  END IF;
  -- The holder needs no message, because it knows when its lease expires.
  x := fn.end_attempt(c, x, 'lease_expired');
  x.state := 'axnwni';
  RETURN x;
END $$;

-- Return a record after everything of it that is due was handled. A record whose retention is over is returned without p.
CREATE FUNCTION fn.catch_up(c fn.context, x db.executions) RETURNS db.executions LANGUAGE plpgsql AS $$
DECLARE
  state text;
BEGIN
  LOOP
    state := fn.ascii(x.state);
    IF fn.is_foreign(state) THEN
      RETURN x;
    ELSIF state LIKE 't%' THEN
      IF x.flow_id IS NULL AND fn.kept_until(x) <= c.now THEN
        x.p := NULL;
      END IF;
      RETURN x;
    ELSIF state LIKE 's%' AND fn.num(x.suspended_until) <= least(c.now, fn.num(x.deadline)) AND fn.can_time_out(c, x) THEN
      x := fn.time_out(c, x);
    ELSIF fn.num(x.deadline) <= c.now THEN
      x := fn.expire(c, x);
    ELSIF fn.num(x.reserved_until) <= c.now THEN
      x.reserved_for := NULL; x.reserved_until := NULL; x.mutated := fn.bytes(c.now);
    ELSIF fn.num(x.slot_until) <= c.now THEN
      -- The slot that an execution got by hand lapses if no run has begun.
      x.slot_until := NULL;
    ELSIF fn.is_leased(state) AND least(fn.num(x.timeout_at), fn.num(x.expires)) <= c.now THEN
      x := fn.lapse(c, x);
    ELSIF state LIKE '__t%' AND fn.num(x.delay_until) <= c.now THEN
      x.state := 'ruewn'::bytea || substring(x.state FROM 6); x.mutated := fn.bytes(c.now);
    ELSE
      RETURN x;
    END IF;
  END LOOP;
END $$;

-- Write a record that fn.catch_up may have changed, or remove it.
CREATE FUNCTION fn.put_caught_up(c fn.context, was db.executions, x db.executions) RETURNS fn.context
LANGUAGE plpgsql AS $$
BEGIN
  IF x.p IS NULL THEN
    x.p := was.p;
    IF was.state LIKE 't%' THEN
      RETURN fn.remove_all(c, ARRAY[was]);
    END IF;
    c := fn.put(c, was, x);
    RETURN fn.remove_all(c, ARRAY[x]);
  ELSIF x IS DISTINCT FROM was THEN
    RETURN fn.put(c, was, x);
  END IF;
  RETURN c;
END $$;

-- Fences ------------------------------------------------------------------------------------------------------------

-- Return the failure that an execution is not active, with its outcome, epoch, phase and attempt id.
CREATE FUNCTION fn.not_active(x db.executions) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.failure(
    'execution_not_active', fn.bytes(x.uuid), fn.bytes(fn.outcome(fn.ascii(x.state))), fn.bytes(fn.epoch_of(x.fence)),
    fn.bytes(fn.phase(fn.ascii(x.state))), coalesce(fn.bytes(fn.attempt_of(x.fence)), '')
  )
$$;

-- Make the checks of every call of a lease holder, in this order: exists, repeated, active, revoked, expired, identity. What
-- is due of the execution is handled first, so upkeep does not change the reply. `ending` names an operation that ends the
-- lease; for any other operation `call_id` may name the call.
CREATE FUNCTION fn.fenced(c fn.context, execution uuid, of_fence bytea, ending text, call_id bytea) RETURNS fn.found
LANGUAGE plpgsql AS $$
BEGIN
  RETURN fn.fenced_record(c, fn.load(c, execution, call_id IS NOT NULL), execution, of_fence, ending, call_id);
END $$;

-- Make the checks of fn.fenced on what was loaded.
CREATE FUNCTION fn.fenced_record(
  c fn.context, f fn.found, execution uuid, of_fence bytea, ending text, call_id bytea
) RETURNS fn.found LANGUAGE plpgsql AS $$
DECLARE
  x db.executions;
  before bytea[];
BEGIN
  IF f.failure IS NOT NULL THEN
    RETURN f;
  END IF;
  x := f.x;
  IF ending = 'complete' AND x.state LIKE 't___s%' AND x.fence = of_fence THEN
    before := ARRAY['completed'::bytea];
  ELSIF ending IS NOT NULL THEN
    before := fn.recall(x.last, fn.bytes(ending) || ' '::bytea || of_fence);
  ELSIF call_id IS NOT NULL THEN
    before := fn.recall(x.reported, call_id);
  END IF;
  IF before IS NOT NULL THEN
    f.failure := fn.answer(VARIADIC before);
    RETURN f;
  END IF;
  IF x.state LIKE 'a%' AND least(fn.num(x.timeout_at), fn.num(x.deadline)) <= c.now THEN
    x := fn.catch_up(c, x);
    f.c := fn.put_caught_up(c, f.was, x);
    IF x.p IS NULL THEN
      f.failure := fn.failure('execution_not_found', fn.bytes(execution));
      RETURN f;
    END IF;
    x := fn.derive(x);
    f.was := x; f.x := x;
  END IF;
  IF x.state NOT LIKE 'a%' THEN
    f.failure := fn.not_active(x);
  ELSIF x.state LIKE '_v%' THEN
    f.failure := fn.failure('lease_revoked', fn.bytes(execution));
  ELSIF x.state NOT LIKE '_l%' OR fn.num(x.expires) <= c.now THEN
    f.failure := fn.failure('lease_expired', fn.bytes(execution));
  ELSIF x.fence <> of_fence THEN
    f.failure := fn.failure('stale_lease', fn.bytes(execution));
  END IF;
  RETURN f;
END $$;

-- Return a record that an end of a lease answers again when it is repeated.
CREATE FUNCTION fn.remember_end(x db.executions, ending text, of_fence bytea, VARIADIC answer bytea[]) RETURNS db.executions
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  x.last := fn.remember(x.last, fn.bytes(ending) || ' '::bytea || of_fence, VARIADIC answer);
  RETURN x;
END $$;
