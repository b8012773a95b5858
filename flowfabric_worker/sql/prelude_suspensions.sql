-- Suspensions: the states of suspended executions, and the one routine that closes a suspension and its waitpoints.

-- Return the state of an execution that is suspended for a reason.
CREATE FUNCTION fn.suspended_state(reason bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT 'sun'::bytea || CASE reason
    WHEN 'waiting_for_approval' THEN 'a'::bytea WHEN 'waiting_for_callback' THEN 'c' WHEN 'waiting_for_tool_result' THEN 't'
    WHEN 'waiting_for_operator_review' THEN 'o' WHEN 'paused_by_policy' THEN 'p' WHEN 'paused_by_budget' THEN 'u'
    WHEN 'manual_pause' THEN 'o' ELSE 's' END || 'ni'::bytea
$$;

-- Return the last suspension of a record.
CREATE FUNCTION fn.suspension_of(c fn.context, x db.executions) RETURNS db.suspensions LANGUAGE sql AS $$
  SELECT * FROM db.suspensions WHERE p = c.p AND uuid = x.uuid AND number = fn.num(x.suspension)
$$;

-- Note that an execution has waitpoints.
CREATE FUNCTION fn.begin_waits(c fn.context, x db.executions) RETURNS db.executions LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO db.waits (p, uuid) VALUES (c.p, x.uuid) ON CONFLICT DO NOTHING;
  x.suspension := coalesce(nullif(x.suspension, ''), '0');
  RETURN x;
END $$;

-- Return a record whose open suspension is closed, whatever ends it: the suspension, all of its waitpoints, and its timers.
-- `by` is what resumed the execution, or null if the execution ends.
CREATE FUNCTION fn.close_suspension(c fn.context, x db.executions, because text, by text) RETURNS db.executions
LANGUAGE plpgsql AS $$
BEGIN
  UPDATE db.suspensions SET closed = fn.bytes(c.now), why = fn.bytes(because), resumed = coalesce(fn.bytes(by), ''),
    last = coalesce(fn.bytes((SELECT last_signal FROM db.waits WHERE p = c.p AND uuid = x.uuid)::bigint), '0')
    WHERE p = c.p AND uuid = x.uuid AND number = fn.num(x.suspension) AND fn.unpack(waitpoints) IS NOT NULL;
  IF NOT FOUND THEN
    PERFORM fn.damaged();
  END IF;
  INSERT INTO db.closings (p, uuid, what, closing) VALUES (
    c.p, x.uuid, 's' || fn.ascii(x.suspension), fn.pack(fn.bytes(because), CASE WHEN by IS NULL THEN ''::bytea ELSE '1' END)
  ) ON CONFLICT (p, uuid, what) DO UPDATE SET closing = excluded.closing;
  UPDATE db.waitpoints SET open_until = NULL WHERE p = c.p AND uuid = x.uuid AND open_until = fn.undecided();
  x.suspended_at := NULL; x.suspended_until := NULL;
  RETURN x;
END $$;

-- Return a record of an execution that ends, with every waitpoint closed.
CREATE FUNCTION fn.close_waits(c fn.context, x db.executions, because text) RETURNS db.executions LANGUAGE plpgsql AS $$
DECLARE
  of_life int;
BEGIN
  IF fn.num(x.suspended_at) IS NOT NULL THEN
    x := fn.close_suspension(c, x, because, NULL);
  END IF;
  UPDATE db.waits SET life = life + 1 WHERE p = c.p AND uuid = x.uuid RETURNING life - 1 INTO of_life;
  INSERT INTO db.closings (p, uuid, what, closing)
    SELECT c.p, x.uuid, 'e' || of_life, fn.pack(fn.bytes(because), fn.bytes(c.now)) WHERE of_life IS NOT NULL
    ON CONFLICT (p, uuid, what) DO UPDATE SET closing = excluded.closing;
  UPDATE db.waitpoints SET open_until = NULL WHERE p = c.p AND uuid = x.uuid AND open_until IS NOT NULL;
  RETURN x;
END $$;

-- Forget what the waits of an ended execution brought, so that each begins again with another waitpoint. The ones before
-- stay closed.
CREATE FUNCTION fn.forget_waits(c fn.context, x db.executions) RETURNS void LANGUAGE sql AS $$
  UPDATE db.waits SET forgotten = life WHERE p = c.p AND uuid = x.uuid;
  UPDATE db.suspensions SET resumed = '' WHERE p = c.p AND uuid = x.uuid AND number = fn.num(x.suspension);
$$;

-- Return the reply with what is stored of the suspension that an execution is in: the present moment, since when, until when or
-- '', behavior, reason, condition, number of signals that matched nothing, pack{ids of its waitpoints}; nothing if it is not
-- suspended.
CREATE FUNCTION fn.open_suspension(c fn.context, x db.executions) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  s db.suspensions;
BEGIN
  IF fn.num(x.suspension) IS NULL OR fn.num(x.suspended_at) IS NULL THEN
    RETURN fn.replies();
  END IF;
  s := fn.suspension_of(c, x);
  RETURN fn.replies(
    fn.reply(c.now), fn.reply(x.suspended_at), fn.reply(coalesce(x.suspended_until, '')), fn.reply(s.behavior),
    fn.reply(s.reason), fn.reply(s.condition), fn.reply(coalesce(s.unmatched, '0')), fn.reply(s.waitpoints)
  );
END $$;

-- Return a record that is resumed after a delay in ms, for a reason: signal, operator or timeout.
CREATE FUNCTION fn.resume(c fn.context, x db.executions, because text, reason text, delay bigint) RETURNS db.executions
LANGUAGE plpgsql AS $$
BEGIN
  x := fn.close_suspension(c, x, because, reason);
  x.state := CASE WHEN delay > 0 THEN 'rutrni'::bytea ELSE 'ruewni' END;
  x.mutated := fn.bytes(c.now);
  IF delay > 0 THEN
    x.delay_until := fn.bytes(c.now + delay);
  END IF;
  RETURN x;
END $$;

-- Return whether this release knows the time-out behavior of a suspension.
CREATE FUNCTION fn.can_time_out(c fn.context, x db.executions) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  behavior bytea := (fn.suspension_of(c, x)).behavior;
BEGIN
  IF behavior IN ('fail', 'expire', 'cancel', 'escalate', 'auto_resume_with_timeout_signal') THEN
    RETURN true;
  ELSIF NOT fn.is_word(behavior) THEN
    PERFORM fn.damaged();
  END IF;
  RETURN false;
END $$;

-- Return a record after the time-out behavior of its suspension.
CREATE FUNCTION fn.time_out(c fn.context, x db.executions) RETURNS db.executions LANGUAGE plpgsql AS $$
DECLARE
  s db.suspensions := fn.suspension_of(c, x);
BEGIN
  IF s.behavior = 'auto_resume_with_timeout_signal' THEN
    RETURN fn.resume(c, x, 'timed_out', 'timeout', fn.num(s.delay));
  ELSIF s.behavior = 'escalate' THEN
    UPDATE db.suspensions SET reason = 'waiting_for_operator_review', until = ''
      WHERE p = c.p AND uuid = x.uuid AND number = s.number;
    x.state := fn.suspended_state('waiting_for_operator_review');
    x.suspended_until := NULL; x.mutated := fn.bytes(c.now);
    RETURN x;
  END IF;
  x := fn.close_suspension(c, x, 'timed_out', NULL);
  IF s.behavior = 'cancel' THEN
    x.cancel_reason := 'suspension_timeout'; x.cancelled_by := 'system_timeout';
    RETURN fn.finish(c, x, 'cancelled');
  END IF;
  x.error := 'suspension_timeout'; x.error_class := 'timeout'; x.error_detail := '';
  RETURN fn.finish(c, x, CASE s.behavior WHEN 'fail' THEN 'failed' ELSE 'expired' END);
END $$;
