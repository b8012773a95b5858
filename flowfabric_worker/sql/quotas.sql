-- Quotas: how many executions of their classes run at once, and how many attempts begin in a sliding window. A quota is
-- pack{namespace, id}. It limits the executions of all partitions: its row and what began are in its own partition, and a slot is in
-- that of its execution.

-- Return what a quota admits. One that does not exist was deleted, and admits everything; one with impossible numbers was damaged,
-- and admits nothing.
CREATE FUNCTION fn.read_quota(c fn.context, of_quota bytea) RETURNS fn.gate LANGUAGE plpgsql AS $$
DECLARE
  gate fn.gate;
  known db.quotas;
  counted bigint;
  oldest bigint;
BEGIN
  SELECT * INTO known FROM db.quotas WHERE quota = of_quota;
  gate.is_for_run := known.hold = 'run';
  IF least(known.window_ms, known.rate, known.slots) < 1 OR greatest(known.window_ms, known.rate, known.slots) > fn.max_count() THEN
    gate.slots_left := 0;
    RETURN gate;
  END IF;
  IF known.slots IS NOT NULL THEN
    gate.slots_left := known.slots - (SELECT count(*) FROM db.slots WHERE quota = of_quota);
  END IF;
  IF known.rate IS NOT NULL THEN
    SELECT least(coalesce(sum(greatest(attempts, 0)), 0), fn.max_count()), least(min(moment), fn.max_count())
      INTO counted, oldest FROM db.began
      WHERE p = known.p AND quota = of_quota AND moment > c.now - known.window_ms;
    gate.rate_left := known.rate - counted;
    IF gate.rate_left <= 0 THEN
      gate.till := oldest + known.window_ms;
    END IF;
  END IF;
  RETURN gate;
END $$;

-- Return whether an execution has a slot of a quota. One in a phase that only a newer release knows keeps it.
CREATE FUNCTION fn.has_slot(x db.executions, of_quota bytea) RETURNS boolean LANGUAGE sql AS $$
  SELECT x.uuid IS NOT NULL AND NOT fn.is_bare(x)
    AND NOT EXISTS (SELECT FROM db.damaged WHERE p = x.p AND uuid = x.uuid::text)
    AND (fn.is_foreign(fn.ascii(x.state)) OR EXISTS (
      SELECT FROM db.classes AS k WHERE k.id = x.class_id AND (
        k.held = 'q'::bytea || of_quota AND x.state NOT LIKE 't%' OR k.gates @> ARRAY['q'::bytea || of_quota] AND x.state LIKE '_l%'
      )
    ))
$$;

-- Check the slots of a quota whose lease should be over, and the last ones, whose moments may be damaged; give those back that no
-- execution has, and leave the others alone for a minute. Return whether one was given back. The quota must be locked, so that no
-- claim takes a slot meanwhile.
CREATE FUNCTION fn.check_slots(c fn.context, of_quota bytea) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  next_check bigint := c.now + 60000;
  slot db.slots;
  x db.executions;
  is_freed boolean := false;
BEGIN
  FOR slot IN
    SELECT * FROM db.slots WHERE (p, quota, uuid) IN (
      (SELECT p, quota, uuid FROM db.slots WHERE quota = of_quota AND until <= c.now ORDER BY until LIMIT 32)
      UNION (SELECT p, quota, uuid FROM db.slots WHERE quota = of_quota AND until > next_check ORDER BY until DESC LIMIT 8)
      UNION (SELECT p, quota, uuid FROM db.slots WHERE quota = of_quota AND until IS NULL LIMIT 8)
    ) FOR UPDATE SKIP LOCKED
  LOOP
    SELECT * INTO x FROM db.executions WHERE p = slot.p AND uuid = slot.uuid;
    IF fn.has_slot(x, of_quota) THEN
      UPDATE db.slots SET until = next_check WHERE p = slot.p AND quota = of_quota AND uuid = slot.uuid;
    ELSE
      DELETE FROM db.slots WHERE p = slot.p AND quota = of_quota AND uuid = slot.uuid;
      is_freed := true;
    END IF;
  END LOOP;
  RETURN is_freed;
END $$;

-- Write who was handed out under a quota, and how many attempts began. Many attempts are counted together: those of one
-- millisecond, and under a high rate those of a thousandth of the window.
CREATE FUNCTION fn.write_quota(c fn.context, gate fn.gate) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  of_quota bytea := substring((gate).name FROM 2);
  known db.quotas;
  grid bigint := 1;
BEGIN
  SELECT * INTO known FROM db.quotas WHERE quota = of_quota;
  IF known.quota IS NULL THEN
    RETURN;
  END IF;
  INSERT INTO db.slots (p, quota, uuid, until)
    SELECT c.p, of_quota, id, until FROM unnest((gate).holders, (gate).untils) AS each(id, until)
    ON CONFLICT (p, quota, uuid) DO UPDATE SET until = excluded.until;
  IF known.rate IS NOT NULL AND (gate).began > 0 THEN
    DELETE FROM db.began WHERE p = known.p AND quota = of_quota AND moment <= c.now - known.window_ms;
    IF known.rate > 1000 THEN
      grid := (known.window_ms + 999) / 1000;
    END IF;
    INSERT INTO db.began AS b (p, quota, moment, attempts)
      VALUES (known.p, of_quota, (c.now + grid - 1) / grid * grid, (gate).began)
      ON CONFLICT (p, quota, moment) DO UPDATE SET attempts = b.attempts + excluded.attempts;
  END IF;
END $$;

-- Return the parts of the reply of read_quota_policy.
CREATE FUNCTION fn.quota_status(c fn.context, known db.quotas) RETURNS bytea[] LANGUAGE plpgsql AS $$
DECLARE
  gate fn.gate := fn.read_quota(c, known.quota);
BEGIN
  RETURN ARRAY[
    fn.bytes(known.window_ms), coalesce(fn.bytes(known.rate), ''), coalesce(fn.bytes(known.slots), ''), known.hold,
    fn.bytes(known.created), fn.bytes(coalesce(known.rate - gate.rate_left, 0)),
    fn.bytes((SELECT count(*) FROM db.slots WHERE quota = known.quota)),
    CASE WHEN gate.rate_left <= 0 THEN 'rate'::bytea WHEN gate.slots_left <= 0 THEN 'concurrency' ELSE '' END,
    coalesce(fn.bytes(gate.till), ''), fn.bytes(c.now)
  ];
END $$;

-- Lock and return a quota.
CREATE FUNCTION fn.quota(c fn.context, of_quota bytea) RETURNS db.quotas LANGUAGE plpgsql AS $$
DECLARE
  known db.quotas;
BEGIN
  SELECT * INTO known FROM db.quotas WHERE quota = of_quota FOR UPDATE;
  RETURN known;
END $$;

CREATE FUNCTION fn.unknown_quota(of_quota bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.failure('quota_policy_not_found', (fn.unpack(of_quota))[2])
$$;

-- create_quota_policy: create a quota.
-- Arguments: quota, call id, window in ms, most attempts in a window or '', most at once or '', 'lease' or 'run'.
-- Replies: 'created', or 'known' if the same quota existed before.
-- Errors: conflict.
CREATE FUNCTION fn.create_quota_policy(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  known db.quotas;
  before bytea;
BEGIN
  INSERT INTO db.quotas (p, quota, listed, window_ms, rate, slots, hold, created, answered)
    SELECT c.p, args[1], fn.pack(parts[1]) || parts[2], fn.num(args[3]), fn.num(args[4]), fn.num(args[5]), args[6], c.now,
      fn.remember(NULL, args[2], 'created') FROM fn.unpack(args[1]) AS parts ON CONFLICT DO NOTHING;
  IF FOUND THEN
    RETURN fn.answer('created');
  END IF;
  known := fn.quota(c, args[1]);
  before := fn.reply_before(known.answered, args[2]);
  IF before IS NOT NULL THEN
    RETURN before;
  ELSIF (known.window_ms, known.rate, known.slots, known.hold)
    IS DISTINCT FROM (fn.num(args[3]), fn.num(args[4]), fn.num(args[5]), args[6]) THEN
    RETURN fn.failure('conflict');
  END IF;
  RETURN fn.answer('known');
END $$;

-- read_quota_policy: read a quota.
-- Arguments: quota.
-- Replies: window, most attempts or '', most at once or '', hold, created, attempts in the window, slots held, which limit
-- stops the next one or '', until when or '', now.
-- Errors: quota_policy_not_found.
CREATE FUNCTION fn.read_quota_policy(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  known db.quotas;
BEGIN
  SELECT * INTO known FROM db.quotas WHERE p = c.p AND quota = args[1];
  RETURN CASE WHEN known.quota IS NULL THEN fn.unknown_quota(args[1])
    ELSE fn.answer(VARIADIC fn.quota_status(c, known)) END;
END $$;

-- list_quotas: read a page of a namespace's quotas in this partition, by id.
-- Arguments: pack{namespace}, after (an id) or '', limit.
-- Replies: '1' if there may be more, else '0'; then per quota: id, what read_quota_policy replies.
CREATE FUNCTION fn.list_quotas(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  rows bytea[] := ARRAY(
    SELECT fn.answer(VARIADIC fn.behind_first(q.listed) || fn.quota_status(c, q)) FROM db.quotas AS q
    WHERE q.p = c.p AND q.listed > args[1] || args[2] AND q.listed < args[1] || '\xff'::bytea
    ORDER BY q.listed LIMIT fn.num(args[3])
  );
BEGIN
  RETURN fn.replies(VARIADIC
    fn.reply(CASE WHEN cardinality(rows) = fn.num(args[3]) THEN '1'::text ELSE '0' END) || rows);
END $$;

-- Wake waiters behind a quota that was changed, or note when it opens; return its status, which is the answer to the call.
CREATE FUNCTION fn.quota_changed(c fn.context, known db.quotas, call_id bytea) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  status bytea[] := fn.quota_status(c, known);
BEGIN
  UPDATE db.quotas SET answered = fn.remember(answered, call_id, VARIADIC status) WHERE p = c.p AND quota = known.quota;
  PERFORM fn.flush(fn.handle_gate(c, 'q'::bytea || known.quota));
  RETURN fn.answer(VARIADIC status);
END $$;

-- Return the reply to a call on a quota that has nothing to do: the quota does not exist, or the call was answered before. Null
-- otherwise.
CREATE FUNCTION fn.early_reply(known db.quotas, args bytea[]) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN known.quota IS NULL THEN fn.unknown_quota(args[1]) ELSE fn.reply_before(known.answered, args[2]) END
$$;

-- update_quota_policy: change what a quota allows. Slots that are held stay held.
-- Arguments: as of create_quota_policy.
-- Replies: as of read_quota_policy.
-- Errors: quota_policy_not_found.
CREATE FUNCTION fn.update_quota_policy(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  known db.quotas := fn.quota(c, args[1]);
  early bytea := fn.early_reply(known, args);
BEGIN
  IF early IS NOT NULL THEN
    RETURN early;
  END IF;
  UPDATE db.quotas SET window_ms = fn.num(args[3]), rate = fn.num(args[4]), slots = fn.num(args[5]), hold = args[6]
    WHERE p = c.p AND quota = args[1] RETURNING * INTO known;
  RETURN fn.quota_changed(c, known, args[2]);
END $$;

-- reset_quota_policy: forget the attempts of the window. Slots that are held stay held.
-- Arguments: quota, call id.
-- Replies: as of read_quota_policy.
-- Errors: quota_policy_not_found.
CREATE FUNCTION fn.reset_quota_policy(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  known db.quotas := fn.quota(c, args[1]);
  early bytea := fn.early_reply(known, args);
BEGIN
  IF early IS NOT NULL THEN
    RETURN early;
  END IF;
  DELETE FROM db.began WHERE p = c.p AND quota = args[1];
  RETURN fn.quota_changed(c, known, args[2]);
END $$;

-- delete_quota_policy: remove a quota that no execution needs.
-- Arguments: quota, call id.
-- Replies: 'removed'; or 'more' if the call has to be repeated.
-- Errors: quota_policy_not_found, quota_policy_in_use.
CREATE FUNCTION fn.delete_quota_policy(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  known db.quotas := fn.quota(c, args[1]);
  gate bytea := 'q'::bytea || args[1];
  other smallint;
  ids int[];
BEGIN
  IF fn.was_removed(c, args[2]) THEN
    RETURN fn.answer('removed');
  ELSIF known.quota IS NULL THEN
    RETURN fn.unknown_quota(args[1]);
  END IF;
  -- A creation shares this lock until it commits, so none adds work to a class that is removed here.
  FOR other IN SELECT p FROM db.partitions ORDER BY p LOOP
    PERFORM pg_advisory_xact_lock('db.classes'::regclass::oid::int, other);
  END LOOP;
  ids := ARRAY(SELECT id FROM db.classes WHERE gates IS NOT NULL AND gates @> ARRAY[gate] OR held = gate LIMIT 256);
  IF EXISTS (SELECT FROM db.classes AS k WHERE id = ANY (ids) AND fn.held(fn.begin(k.p), id) > 0) THEN
    RETURN fn.failure('quota_policy_in_use', (fn.unpack(args[1]))[2]);
  END IF;
  UPDATE db.lanes SET revision = fn.next_turn(revision, c.now)
    WHERE (p, lane) IN (SELECT p, lane FROM db.classes WHERE id = ANY (ids));
  DELETE FROM db.classes WHERE id = ANY (ids);
  IF cardinality(ids) = 256 THEN
    RETURN fn.answer('more');
  END IF;
  DELETE FROM db.slots WHERE quota = args[1];
  DELETE FROM db.began WHERE p = c.p AND quota = args[1];
  DELETE FROM db.quotas WHERE p = c.p AND quota = args[1];
  DELETE FROM db.entries WHERE kind = 'g' AND member = gate;
  PERFORM fn.remember_removal(c, args[2]);
  RETURN fn.answer('removed');
END $$;

-- Return what explain_execution tells of a closed quota: its name, which limit, how much it allows, the window, until when, then
-- the first executions that have a slot: the uuid, the moment at which the lease expires, and the partition if that is another one
-- than the caller's.
CREATE FUNCTION fn.explain_quota(c fn.context, gate fn.gate) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  known db.quotas;
BEGIN
  SELECT * INTO known FROM db.quotas WHERE quota = substring((gate).name FROM 2);
  RETURN fn.answer(VARIADIC ARRAY[
    (gate).name, CASE WHEN (gate).rate_left <= 0 THEN 'rate'::bytea ELSE 'concurrency' END,
    fn.bytes(CASE WHEN (gate).rate_left <= 0 THEN known.rate ELSE known.slots END), fn.bytes(known.window_ms),
    coalesce(fn.bytes((gate).till), '')
  ] || ARRAY(
    SELECT part FROM (
      SELECT x.uuid, x.expires, CASE WHEN s.p = c.p THEN ''::bytea ELSE fn.bytes(s.p::bigint) END AS place
      FROM db.slots AS s, LATERAL (
        SELECT uuid, expires FROM db.executions WHERE p = s.p AND uuid = s.uuid LIMIT 1
      ) AS x WHERE s.quota = known.quota ORDER BY s.until, s.uuid LIMIT 3
    ) AS holder, LATERAL unnest(ARRAY[fn.bytes(holder.uuid), coalesce(holder.expires, ''), holder.place]) AS part
  ));
END $$;

-- Slots by hand -----------------------------------------------------------------------------------------------------

-- Load the execution of a call about a slot, and handle what is due of it. A failure is the reply to give.
CREATE FUNCTION fn.load_for_slot(c fn.context, args bytea[]) RETURNS fn.found LANGUAGE plpgsql AS $$
DECLARE
  f fn.found := fn.load_now(c, fn.id(args[1]), args[2]);
BEGIN
  IF f.failure IS NULL THEN
    -- What was due may have changed the record.
    f := fn.load(f.c, fn.id(args[1]));
  END IF;
  f.failure := coalesce(f.failure, fn.reply_before((f.x).answered, args[4]));
  IF f.failure IS NULL AND (fn.quota(f.c, args[3])).quota IS NULL THEN
    f.failure := fn.unknown_quota(args[3]);
  END IF;
  RETURN f;
END $$;

-- check_admission: give an execution a slot of a quota for its next run, or for the present one.
-- Arguments: uuid, pack{namespace}, quota, call id, for how long the slot is kept until a run begins, in ms.
-- Replies: 'admitted', 'already_admitted', or 'rate' or 'concurrency' and in how many ms to ask again or ''.
-- Errors: execution_not_found, execution_not_active, quota_policy_not_found, admitted_elsewhere, corruption.
CREATE FUNCTION fn.check_admission(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  f fn.found := fn.load_for_slot(fn.begin(partition), args);
  c fn.context := f.c;
  x db.executions := f.x;
  quota_id bytea := (fn.unpack(args[3]))[2];
  gate fn.gate;
  held bytea;
  until bigint;
BEGIN
  IF f.failure IS NULL THEN
    gate := fn.locked_gate(c, 'q'::bytea || args[3]);
    held := (SELECT k.held FROM db.classes AS k WHERE id = x.class_id);
    IF x.state LIKE 't%' THEN
      f.failure := fn.not_active(x);
    ELSIF EXISTS (SELECT FROM db.slots WHERE p = c.p AND quota = args[3] AND uuid = x.uuid) THEN
      f.failure := fn.answer('already_admitted');
    ELSIF held IS NOT NULL THEN
      f.failure := fn.failure('admitted_elsewhere', args[1], (fn.unpack(substring(held FROM 2)))[2]);
    ELSIF fn.allowance(gate) <= 0 THEN
      f.failure := fn.answer(
        CASE WHEN gate.rate_left <= 0 THEN 'rate'::bytea ELSE 'concurrency' END,
        coalesce(fn.bytes(greatest(0, gate.till - c.now)), '')
      );
    ELSE
      until := CASE WHEN x.state LIKE '_l%' THEN fn.num(x.expires) ELSE c.now + fn.num(args[5]) END;
      f.failure := fn.answer('admitted');
      c := fn.admit_by_hand(c, f.was, x, gate, quota_id, until, args[4]);
    END IF;
  END IF;
  PERFORM fn.flush(c);
  RETURN f.failure;
END $$;

-- Give an execution a slot of a quota that it asked for by hand.
CREATE FUNCTION fn.admit_by_hand(
  c fn.context, was db.executions, x db.executions, gate fn.gate, quota_id bytea, until bigint, call_id bytea
) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  passing fn.passing := fn.keep_slot(c, x, quota_id);
BEGIN
  gate.holders := ARRAY[x.uuid]; gate.untils := ARRAY[until]; gate.began := 1;
  x := passing.x;
  x.answered := fn.remember(x.answered, call_id, 'admitted');
  x.slot_until := CASE WHEN x.state LIKE '_l%' THEN NULL ELSE fn.bytes(until) END;
  RETURN fn.write_gates(fn.put(passing.c, was, x), ARRAY[gate]);
END $$;

-- release_admission: take back the slot of an execution, whose window still counts its start.
-- Arguments: uuid, pack{namespace}, quota, call id.
-- Replies: 'released', or 'none' if the execution has no slot.
-- Errors: execution_not_found, quota_policy_not_found, corruption.
CREATE FUNCTION fn.release_admission(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  f fn.found := fn.load_for_slot(fn.begin(partition), args);
  c fn.context := f.c;
  x db.executions := f.x;
  gate fn.gate;
  passing fn.passing;
BEGIN
  IF f.failure IS NULL AND NOT EXISTS (SELECT FROM db.slots WHERE p = c.p AND quota = args[3] AND uuid = x.uuid) THEN
    f.failure := fn.answer('none');
  ELSIF f.failure IS NULL THEN
    gate.name := 'q'::bytea || args[3]; gate.holders := ARRAY[x.uuid];
    IF (SELECT held FROM db.classes WHERE id = x.class_id) = gate.name THEN
      passing := fn.keep_slot(c, x, NULL);
      c := passing.c; x := passing.x; x.slot_until := NULL;
    END IF;
    x.answered := fn.remember(x.answered, args[4], 'released');
    c := fn.give_back(fn.put(c, f.was, x), ARRAY[gate]);
    f.failure := fn.answer('released');
  END IF;
  PERFORM fn.flush(c);
  RETURN f.failure;
END $$;
