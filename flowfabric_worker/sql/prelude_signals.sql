-- Signals: how they are stored, counted, and answered.

-- Return the head of a stored signal.
CREATE FUNCTION fn.read_head(head bytea) RETURNS fn.signal LANGUAGE plpgsql AS $$
DECLARE
  parts bytea[] := fn.unpacked(head);
BEGIN
  IF cardinality(parts) < 11 THEN
    PERFORM fn.damaged();
  END IF;
  RETURN ROW(parts[1], parts[2], parts[3], parts[4], parts[5], parts[6], parts[7], parts[8], parts[9], parts[10], parts[11],
    NULL, NULL)::fn.signal;
END $$;

-- Return the signal in the arguments from `at` on: id, name, category, source type, source, correlation id, '=' + payload or
-- '', idempotency key.
CREATE FUNCTION fn.signal_of(args bytea[], at int, waitpoint bytea, call_id bytea) RETURNS fn.signal
LANGUAGE sql IMMUTABLE AS $$
  SELECT ROW(args[at], waitpoint, '', args[at + 1], args[at + 2], args[at + 3], args[at + 4], '', args[at + 5], '', call_id,
    args[at + 6], args[at + 7])::fn.signal
$$;

-- Return the reply to a signal whose key or id is known, or null if the signal is new. The window of a key ends only while its
-- waitpoint is open: at a closed one nothing can happen again.
CREATE FUNCTION fn.signal_before(c fn.context, execution uuid, s fn.signal, is_closed boolean) RETURNS bytea[]
LANGUAGE plpgsql AS $$
DECLARE
  found int := (SELECT number FROM db.signals WHERE p = c.p AND uuid = execution AND id = s.id);
  known fn.signal;
  head bytea;
BEGIN
  IF s.key <> '' THEN
    found := coalesce((
      SELECT number FROM db.signal_keys WHERE p = c.p AND uuid = execution AND waitpoint = s.waitpoint AND key = s.key
        AND (is_closed OR until > c.now)
    ), found);
  END IF;
  IF found IS NULL THEN
    RETURN NULL;
  END IF;
  SELECT signals.head INTO head FROM db.signals WHERE p = c.p AND uuid = execution AND number = found;
  known := fn.read_head(coalesce(head, '1:'));
  IF known.call = s.call THEN
    RETURN ARRAY['accepted'::bytea, known.id, known.effect];
  END IF;
  RETURN ARRAY['duplicate'::bytea, known.id];
END $$;

-- Return the condition that a signal failed to match, or '' if its suspension is not the last one.
CREATE FUNCTION fn.awaited(c fn.context, x db.executions, w fn.waitpoint) RETURNS bytea LANGUAGE sql AS $$
  SELECT CASE WHEN w.suspension = x.suspension THEN coalesce((fn.suspension_of(c, x)).condition, '') ELSE '' END
$$;

-- Write an accepted signal under a number.
CREATE FUNCTION fn.write_signal(c fn.context, execution uuid, s fn.signal, of_number int, length bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO db.signals (p, uuid, number, id, head, payload) VALUES (
    c.p, execution, of_number, s.id, fn.pack(
      s.id, s.waitpoint, s.waitpoint_name, s.name, s.category, s.source_type, s.source, s.accepted, s.correlation, s.effect,
      s.call
    ), nullif(s.payload, '')
  );
  UPDATE db.waits SET last_signal = of_number WHERE p = c.p AND uuid = execution;
  IF s.key <> '' AND length > 0 THEN
    INSERT INTO db.signal_keys (p, uuid, waitpoint, key, number, until)
      VALUES (c.p, execution, s.waitpoint, s.key, of_number, c.now + length)
      ON CONFLICT (p, uuid, waitpoint, key) DO UPDATE SET number = excluded.number, until = excluded.until;
  END IF;
END $$;

-- Count a signal to an active waitpoint, and return its effect; null if only a newer release can decide it.
CREATE FUNCTION fn.count_active(c fn.context, x db.executions, signal fn.signal) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  s db.suspensions := fn.suspension_of(c, x);
  leaves fn.leaf[] := fn.leaves(s.condition);
  counted int[];
BEGIN
  IF fn.num(x.suspended_until) <= c.now OR 'foreign' = ANY (SELECT leaf.kind FROM unnest(leaves) AS leaf) THEN
    RETURN NULL;
  END IF;
  counted := fn.count_signal(c, x.uuid, s.number, leaves, fn.read_counts(s.counts, leaves), signal);
  IF counted IS NULL THEN
    UPDATE db.suspensions SET unmatched = fn.bytes(coalesce(substring(fn.ascii(unmatched) FROM '^[0-9]{1,9}$')::bigint, 0) + 1)
      WHERE p = c.p AND uuid = x.uuid AND number = s.number;
    RETURN 'no_op';
  END IF;
  UPDATE db.suspensions SET counts = fn.counts_text(counted)
    WHERE p = c.p AND uuid = x.uuid AND number = s.number;
  RETURN CASE WHEN fn.is_met(leaves, counted) THEN 'resume_condition_satisfied'::bytea ELSE 'appended_to_waitpoint' END;
END $$;

-- Return the failure of a signal to a closed waitpoint, or of a second decision; null if the waitpoint takes the signal.
CREATE FUNCTION fn.not_taken(c fn.context, x db.executions, w fn.waitpoint, s fn.signal) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  decided bytea := (SELECT decision FROM db.waitpoints WHERE p = c.p AND uuid = x.uuid AND id = w.id);
  parts bytea[] := CASE WHEN decided IS NOT NULL THEN fn.unpacked(decided) END;
BEGIN
  IF w.state <> 'closed' AND (decided IS NULL OR s.category <> 'approval') THEN
    RETURN NULL;
  END IF;
  RETURN fn.failure(
    'waitpoint_closed', w.id, coalesce(w.why, 'decided'), coalesce(parts[2], ''), coalesce(parts[4], '')
  );
END $$;

-- Deliver a signal, whose sender has been checked, to a waitpoint of a record.
-- Replies: 'accepted', id, effect, and for a signal that matched nothing the condition and the waitpoint's name; or
-- 'duplicate', id of the first signal.
-- Errors: waitpoint_closed, signal_limit_exceeded, written_by_newer_release.
CREATE FUNCTION fn.deliver(f fn.found, w fn.waitpoint, s fn.signal, length bigint) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := f.c;
  x db.executions := f.x;
  before bytea[];
  failure bytea;
  next_number int;
  most bigint := coalesce(fn.num(x.max_signals), 10000);
BEGIN
  w := fn.standing(c, x.uuid, w);
  before := fn.signal_before(c, x.uuid, s, w.state = 'closed');
  IF before IS NOT NULL THEN
    RETURN fn.answer(VARIADIC before || CASE WHEN before[3] = 'no_op' THEN ARRAY[fn.awaited(c, x, w), w.name] ELSE '{}' END);
  END IF;
  failure := fn.not_taken(c, x, w, s);
  IF failure IS NOT NULL THEN
    RETURN failure;
  END IF;
  next_number := coalesce((SELECT last_signal FROM db.waits WHERE p = c.p AND uuid = x.uuid), 0) + 1;
  IF next_number > most THEN
    RETURN fn.failure('signal_limit_exceeded', fn.bytes(x.uuid), fn.bytes(most));
  END IF;
  s.waitpoint_name := w.name; s.accepted := fn.bytes(c.now);
  s.effect := CASE w.state WHEN 'active' THEN fn.count_active(c, x, s) ELSE 'buffered_for_pending_waitpoint' END;
  IF s.effect IS NULL THEN
    RETURN fn.failure('written_by_newer_release', fn.bytes(x.uuid));
  END IF;
  PERFORM fn.write_signal(c, x.uuid, s, next_number, length);
  IF w.state = 'pending' AND w.first = '' THEN
    w.first := fn.bytes(next_number::bigint);
    PERFORM fn.write_waitpoint(c, x.uuid, w, NULL);
  END IF;
  IF s.category = 'approval' THEN
    UPDATE db.waitpoints SET decision = fn.pack(s.id, s.name, s.source_type, s.source)
      WHERE p = c.p AND uuid = x.uuid AND id = w.id;
  END IF;
  IF s.effect = 'resume_condition_satisfied' THEN
    c := fn.put(c, f.was, fn.resume(c, x, 'resumed', 'signal', coalesce(fn.num((fn.suspension_of(c, x)).delay), 0)));
    c := fn.flush(c);
  END IF;
  RETURN fn.answer(VARIADIC ARRAY['accepted'::bytea, s.id, s.effect]
    || CASE s.effect WHEN 'no_op' THEN ARRAY[fn.awaited(c, x, w), w.name] ELSE '{}' END);
END $$;

-- Load the record of an execution of a namespace, and handle what is due of it.
CREATE FUNCTION fn.load_now(c fn.context, execution uuid, of_namespace bytea) RETURNS fn.found LANGUAGE plpgsql AS $$
DECLARE
  f fn.found := fn.load(c, execution);
  x db.executions := f.x;
BEGIN
  IF f.failure IS NOT NULL THEN
    RETURN f;
  ELSIF x.namespace <> of_namespace OR fn.is_hidden(x) THEN
    f.failure := fn.failure('execution_not_found', fn.bytes(execution));
    RETURN f;
  END IF;
  x := fn.catch_up(c, x);
  IF x IS DISTINCT FROM f.was THEN
    c := fn.put_caught_up(c, f.was, x);
    f.c := fn.flush(c);
    IF x.p IS NULL THEN
      f.failure := fn.failure('execution_not_found', fn.bytes(execution));
      RETURN f;
    END IF;
    x := fn.derive(x);
    f.was := x; f.x := x;
  END IF;
  IF NOT fn.is_whole(nullif(x.max_signals, '')) THEN
    f.failure := fn.set_aside(c, execution, 'max_signals');
  END IF;
  RETURN f;
END $$;
