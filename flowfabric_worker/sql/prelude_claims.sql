-- How ready work is found and put under a lease, and how claims are remembered.

-- Remembered claims -------------------------------------------------------------------------------------------------

-- Return the failure if a worker instance, pack{namespace, instance}, belongs to another worker id, or null.
CREATE FUNCTION fn.instance_refused(c fn.context, instance bytea, of_worker bytea) RETURNS bytea
LANGUAGE sql AS $$
  SELECT fn.failure('instance_of_other_worker', fn.behind_first(instance), worker)
  FROM (SELECT worker, kept FROM db.claims WHERE p = c.p AND field = instance ORDER BY turn DESC LIMIT 1) AS last
  WHERE worker <> of_worker AND kept > c.now
$$;

-- Return what a claim was answered before, or null.
CREATE FUNCTION fn.claim_before(c fn.context, of_field bytea, of_claim bytea) RETURNS bytea[] LANGUAGE sql AS $$
  SELECT answer FROM db.claims WHERE p = c.p AND field = of_field AND claim_id = of_claim ORDER BY turn DESC LIMIT 1
$$;

-- Remember the reply of one more claim for `ttl` ms; only the last eight are kept.
CREATE FUNCTION fn.keep_claim(
  c fn.context, of_field bytea, of_claim bytea, of_worker bytea, reply bytea[], ttl bigint
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  WITH newest AS MATERIALIZED (
    SELECT turn, kept FROM db.claims WHERE p = c.p AND field = of_field ORDER BY turn DESC LIMIT 8
  ), longest AS MATERIALIZED (
    SELECT greatest(c.now + ttl, max(kept)) AS kept FROM newest
  ), dropped AS (
    DELETE FROM db.claims WHERE p = c.p AND field = of_field AND turn <= (SELECT turn FROM newest ORDER BY turn DESC OFFSET 7)
  ), remembered AS (
    INSERT INTO db.claims (p, field, claim_id, kept, worker, answer)
      SELECT c.p, of_field, of_claim, kept, of_worker, reply FROM longest
  )
  -- The entry may be early; it is corrected when it is handled.
  INSERT INTO db.entries (p, kind, member, due) SELECT c.p, 'k', of_field, kept FROM longest ON CONFLICT DO NOTHING;
END $$;

-- Keep a worker instance for its worker id, for `ttl` ms at least.
CREATE FUNCTION fn.keep_instance(c fn.context, instance bytea, of_worker bytea, ttl bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE db.claims SET kept = greatest(kept, c.now + ttl), worker = of_worker WHERE p = c.p AND field = instance AND turn = (
    SELECT max(turn) FROM db.claims WHERE p = c.p AND field = instance
  );
  IF NOT FOUND THEN
    PERFORM fn.keep_claim(c, instance, '', of_worker, '{}', ttl);
  END IF;
END $$;

-- Return whether a call has used its work budget, and took or dropped an entry, so that the next call continues behind it.
CREATE FUNCTION fn.is_spent(c fn.context) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT c.work <= 0 AND c.has_progressed
$$;

-- Return the context of a call that dropped an entry which cannot be handed out: 3 commands, and `further` for what happened.
CREATE FUNCTION fn.dropped_ready(c fn.context, further int) RETURNS fn.context LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  c.work := c.work - 3 - further;
  c.has_progressed := true;
  RETURN c;
END $$;

-- Remove the remembered claims of an instance when their time is over.
CREATE FUNCTION fn.forget_claims(c fn.context, of_field bytea) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  longest bigint := (SELECT max(kept) FROM db.claims WHERE p = c.p AND field = of_field);
BEGIN
  IF longest > c.now THEN
    PERFORM fn.note_entry(c, 'k', of_field, longest);
  ELSE
    DELETE FROM db.claims WHERE p = c.p AND field = of_field;
  END IF;
END $$;

-- Items -------------------------------------------------------------------------------------------------------------

-- Return the results of an execution's steps as name, value, name, value, ...; null if one of them is missing.
CREATE FUNCTION fn.journal(x db.executions) RETURNS bytea[] LANGUAGE sql AS $$
  WITH step AS MATERIALIZED (SELECT number, name, value FROM db.steps WHERE p = x.p AND uuid = x.uuid)
  SELECT CASE WHEN (SELECT count(value) FROM step) = coalesce(fn.num(x.steps), 0) THEN ARRAY(
    SELECT each FROM step, LATERAL unnest(ARRAY[name, value]) WITH ORDINALITY AS pair(each, nth) ORDER BY number, nth
  ) END
$$;

-- Return what the worker gets of one claimed execution. What plain work has not is null: pack{tags, deadline, timeout,
-- retry count, reclaim count, headers, flow} with '' for none, then the journal, and for a member of a flow its inputs as
-- fn.inputs returns them.
CREATE FUNCTION fn.claimed(c fn.context, x db.executions, journal bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  core bytea := fn.claimed_core(x, fn.reply(x.fence) || fn.reply(x.attempt) || fn.reply(x.expires));
BEGIN
  IF cardinality(journal) = 0
    AND coalesce(x.tags, x.deadline, x.timeout_at, x.retry_count, x.reclaim_count, x.headers, x.flow) IS NULL THEN
    RETURN core || fn.reply(NULL::bytea);
  END IF;
  RETURN core || fn.replies(VARIADIC ARRAY[
    fn.reply(fn.further_fields(x, x.timeout_at)), fn.answer(VARIADIC journal)
  ] || CASE WHEN x.flow_id IS NOT NULL THEN ARRAY[fn.inputs(c, x, '')] END);
END $$;

-- Return the fields of an execution that few have, packed, with the end of its attempt.
CREATE FUNCTION fn.further_fields(x db.executions, timeout_at bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.pack(
    coalesce(x.tags, ''), coalesce(x.deadline, ''), coalesce(timeout_at, ''), coalesce(x.retry_count, ''),
    coalesce(x.reclaim_count, ''), coalesce(x.headers, ''), coalesce(x.flow, '')
  )
$$;

-- Return what the worker gets of any execution; `lease` has the replies for its fence, its attempt and the end of its lease.
CREATE FUNCTION fn.claimed_core(x db.executions, lease bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT '*11\015\012$36\015\012'::bytea || fn.bytes(x.uuid) || '\015\012'::bytea || lease || fn.reply(x.class)
    || fn.reply(x.priority) || fn.reply(x.created) || fn.reply(x.payload) || fn.reply(x.codec) || fn.reply(x.policy)
$$;

-- Return the first field that keeps a checked record from being claimed, or null.
CREATE FUNCTION fn.damage_for_claim(x db.executions, journal bytea[]) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN NOT coalesce(fn.is_whole(x.created), false) THEN 'created'
    WHEN x.payload <> '' AND substring(x.payload FROM 1 FOR 1) <> '=' THEN 'payload'
    WHEN x.attempt IS NOT NULL AND journal IS NULL THEN 'steps'
  END
$$;

-- Taking ------------------------------------------------------------------------------------------------------------

-- Make a lease. `holder` is pack{worker id, instance, topic}.
CREATE FUNCTION fn.new_lease(id bytea, holder bytea, ttl bigint) RETURNS fn.lease LANGUAGE sql IMMUTABLE AS $$
  SELECT (id, fn.packed(coalesce(parts[1], '')) || fn.packed(coalesce(parts[2], '')), coalesce(parts[3], ''), ttl)::fn.lease
  FROM fn.unpack(holder) AS parts
$$;

-- Return a record under a lease. An interrupted attempt continues; after a lost lease a new attempt begins.
CREATE FUNCTION fn.take(c fn.context, x db.executions, lease fn.lease) RETURNS db.executions LANGUAGE plpgsql AS $$
DECLARE
  timeout bigint := fn.policy_timeout(x.policy);
  is_resumed boolean := x.state LIKE 'r%i';
  attempt text := '';
  past bytea;
BEGIN
  IF is_resumed THEN
    attempt := coalesce(fn.attempt_of(x.fence), '');
    x.attempt := fn.attempt_text(
      fn.of_attempt(x.attempt, 1), fn.of_attempt(x.attempt, 2), 'resumed', fn.of_attempt(x.attempt, 4)
    );
  ELSE
    IF x.attempt IS NOT NULL THEN
      past := fn.archive(c, x, CASE WHEN x.state LIKE 'a%' THEN 'interrupted_reclaimed' ELSE 'ended_failure' END);
    END IF;
    IF past IS NOT NULL THEN
      x.attempts := past;
      x.started := coalesce(x.started, fn.bytes(fn.of_attempt(x.attempt, 4)));
    END IF;
    x.attempt := fn.attempt_text(
      coalesce((fn.of_attempt(x.attempt, 1)::bigint + 1)::text, '0'),
      CASE WHEN x.state LIKE 'a%' THEN 'reclaim' WHEN x.state LIKE '%t' THEN 'retry' WHEN x.state LIKE '%p' THEN 'replay'
        ELSE 'initial' END,
      CASE WHEN x.state LIKE 'a%' THEN 'reclaimed' ELSE 'fresh' END, c.now::text
    );
    IF x.state LIKE 'a%' THEN
      x.reclaim_count := fn.bytes(coalesce(fn.num(x.reclaim_count), 0) + 1);
    END IF;
  END IF;
  IF timeout IS NOT NULL THEN
    -- While the attempt was suspended its time stood still.
    x.timeout_at := fn.bytes(c.now + CASE WHEN x.state LIKE '%i' THEN coalesce(fn.num(x.timeout_left), timeout) ELSE timeout END);
  END IF;
  IF x.idempotency_key IS NOT NULL AND fn.of_policy(x.policy, 14) = 's' THEN
    -- Another execution may have the key once this one has begun.
    DELETE FROM db.keys WHERE p = c.p AND key = x.idempotency_key AND uuid = x.uuid;
  END IF;
  x.timeout_left := NULL; x.reserved_for := NULL; x.reserved_until := NULL; x.slot_until := NULL;
  x.fence := lease.id || fn.bytes(':' || coalesce(fn.epoch_of(x.fence), 0) + 1 || ':' || attempt);
  x.state := 'alnnnr'; x.expires := fn.bytes(c.now + lease.ttl); x.holder := lease.holder; x.topic := lease.topic;
  RETURN x;
END $$;

-- Return whether an execution has used up its reclaims.
CREATE FUNCTION fn.is_exhausted(x db.executions) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT x.state LIKE 'a%'
    AND coalesce(fn.num(x.reclaim_count), 0) >= coalesce(fn.of_policy(x.policy, 9)::bigint, 100)
$$;

-- Return the record of an execution that ended because its reclaims are used up.
CREATE FUNCTION fn.exhaust(c fn.context, x db.executions) RETURNS db.executions LANGUAGE plpgsql AS $$
DECLARE
  why bytea := fn.why_lost(c, x);
BEGIN
  x := fn.finish(c, x, 'failed');
  x.error := 'reclaims_exhausted'; x.error_class := 'infra_crash'; x.error_detail := why;
  RETURN x;
END $$;

-- Check a ready execution for a claim, which has found it in a class; what ends here is ended. A record that can be handed out
-- is returned.
CREATE FUNCTION fn.claimable(
  c fn.context, x db.executions, of_class bytea, sound_class bytea, sound_policy bytea
) RETURNS fn.found
LANGUAGE plpgsql AS $$
DECLARE
  f fn.found;
  damaged text;
BEGIN
  IF fn.is_bare(x) THEN
    DELETE FROM db.executions WHERE p = c.p AND uuid = x.uuid;
    f.c := fn.dropped_ready(c, 0); f.failure := '';
    RETURN f;
  END IF;
  f := fn.checked(c, x.uuid, x, x.attempt IS NOT NULL, sound_class, sound_policy);
  IF f.failure IS NULL AND x.class <> of_class THEN
    damaged := 'class';
  ELSIF f.failure IS NULL THEN
    damaged := fn.damage_for_claim(x, CASE WHEN x.attempt IS NULL THEN '{}'::bytea[] ELSE fn.journal(x) END);
  END IF;
  IF damaged IS NOT NULL THEN
    f.failure := fn.set_aside(c, x.uuid, damaged);
  END IF;
  IF f.failure IS NOT NULL THEN
    f.c := fn.dropped_ready(c, 0);
    RETURN f;
  END IF;
  IF fn.is_foreign(fn.ascii(x.state)) THEN
    -- Only a newer release can handle the entry. Behind all others it does not hide them.
    UPDATE db.executions SET ready = fn.last_ready(c) + 5000 WHERE p = c.p AND uuid = x.uuid;
    f.c := fn.dropped_ready(c, 0);
    f.failure := '';
  ELSIF NOT fn.is_claimable(fn.ascii(x.state)) OR fn.num(x.reserved_until) IS NOT NULL THEN
    f.c := fn.dropped_ready(fn.put(c, x, x), 0);
    f.failure := '';
  ELSIF x.flow_id IS NOT NULL AND fn.is_taken_along(c, fn.flow(c, x.flow_id), x) THEN
    x := fn.cancel_with_flow(c, x);
    f.c := fn.dropped_ready(CASE WHEN x.uuid IS NULL THEN c ELSE fn.put(c, f.was, x) END, fn.cost_of_end(c));
    f.failure := '';
  ELSIF fn.num(x.deadline) <= c.now THEN
    f.c := fn.dropped_ready(fn.put(c, x, fn.expire(c, x)), fn.cost_of_end(c));
    f.failure := '';
  ELSIF fn.is_exhausted(x) THEN
    f.c := fn.dropped_ready(fn.put(c, x, fn.exhaust(c, x)), fn.cost_of_end(c));
    f.failure := '';
  END IF;
  RETURN f;
END $$;

-- Claim up to `wanted` ready executions of some classes of a lane, in their common order. A page of heads is read and locked
-- at a time, and one statement takes its plain executions. Entries that cannot be handed out are passed over, up to 256 in a
-- call. Classes behind closed gates are left out.
CREATE FUNCTION fn.claim_from(c fn.context, classes int[], gated boolean, wanted bigint, lease fn.lease) RETURNS fn.batch
LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  f fn.found;
  x db.executions;
  last fn.place := fn.first_place();
  page fn.page;
  is_bounded boolean := fn.has_bounds(c);
  began timestamptz;
  of_class db.classes;
  befores db.executions[] := '{}';
  afters db.executions[] := '{}';
  items bytea[] := '{}';
  ids uuid[] := '{}';
  plain uuid[] := '{}';
  before uuid[];
  nth int;
  gates fn.gate[] := '{}';
  passing fn.passing;
  goes_on boolean := NOT fn.is_spent(c);
BEGIN
  IF gated THEN
    passing := fn.lock_gates(c, classes);
    c := passing.c; gates := passing.gates;
    classes := fn.open_classes(gates, classes);
  END IF;
  IF goes_on THEN
    c.work := c.work - cardinality(classes);
  END IF;
  WHILE goes_on AND cardinality(items) < wanted AND c.passed < 256 LOOP
    began := clock_timestamp();
    page := fn.heads(c, classes, last, least(wanted - cardinality(items) + c.passed, 100), is_bounded, lease);
    IF is_bounded AND page.last IS NULL AND cardinality(items) = 0 THEN
      is_bounded := false; last := fn.first_place();
      CONTINUE;
    END IF;
    IF clock_timestamp() - began > fn.a_long_search() THEN
      PERFORM fn.keep_bounds(c, page.ids, is_bounded);
    END IF;
    last := page.last; goes_on := last IS NOT NULL; nth := 0; before := ids;
    FOR i IN 1 .. cardinality(page.ids) LOOP
      IF page.items[i] IS NULL THEN
        nth := nth + 1;
      END IF;
      -- Another call may have changed its place before it was locked, so that it is behind the earlier page as well.
      CONTINUE WHEN page.ids[i] = ANY (before);
      IF page.items[i] IS NOT NULL THEN
        c.work := c.work - 2 - page.sizes[i];
        plain := plain || page.ids[i]; ids := ids || page.ids[i]; items := items || page.items[i];
        c.has_progressed := true;
      ELSE
        x := (page.records)[nth];
        CONTINUE WHEN x.gated AND x.class_id <> ALL (classes);
        IF x.class_id IS DISTINCT FROM of_class.id THEN
          SELECT * INTO of_class FROM db.classes WHERE id = x.class_id;
        END IF;
        f := fn.claimable(c, x, of_class.class, (f.x).class, (f.x).policy);
        c := f.c;
        IF f.failure IS NOT NULL THEN
          c.passed := c.passed + 1;
        ELSE
          x := fn.take(c, f.x, lease);
          IF x.gated THEN
            passing := fn.pass_gates(c, f.was, x, gates);
            c := passing.c; x := passing.x; gates := passing.gates;
            classes := fn.open_classes(gates, classes);
          END IF;
          c.work := c.work - 2 - (coalesce(octet_length(x.payload), 0) + coalesce(fn.num(x.journal_bytes), 0)) / 8192.0;
          befores := befores || f.was; afters := afters || x; ids := ids || x.uuid;
          items := items || fn.claimed(c, x, CASE WHEN x.steps IS NULL THEN '{}'::bytea[] ELSE fn.journal(x) END);
          c.has_progressed := true;
        END IF;
      END IF;
      goes_on := cardinality(items) < wanted AND c.passed < 256 AND NOT fn.is_spent(c);
      EXIT WHEN NOT goes_on;
    END LOOP;
  END LOOP;
  IF cardinality(plain) > 0 THEN
    c := fn.take_plain(c, plain, lease);
  END IF;
  c := fn.put_all(c, befores, afters);
  b.c := CASE WHEN gated THEN fn.write_gates(c, gates) ELSE c END;
  b.items := items; b.count := cardinality(items);
  b.ids := ARRAY(SELECT fn.bytes(id) FROM unnest(ids) AS id);
  RETURN b;
END $$;

-- Return what is still leased of a claim that was answered before.
CREATE FUNCTION fn.claimed_before(c fn.context, claim_id bytea, ids bytea[]) RETURNS bytea[] LANGUAGE plpgsql AS $$
DECLARE
  items bytea[] := '{}';
  f fn.found;
  journal bytea[];
  id bytea;
BEGIN
  FOREACH id IN ARRAY ids LOOP
    f := fn.load(c, fn.id(id), true);
    journal := fn.journal(f.x);
    IF f.failure IS NULL AND fn.damage_for_claim(f.x, journal) IS NOT NULL THEN
      f.failure := fn.set_aside(c, f.x.uuid, fn.damage_for_claim(f.x, journal));
    END IF;
    IF f.failure IS NULL AND fn.is_leased(fn.ascii((f.x).state)) AND fn.num((f.x).expires) > c.now
      AND fn.lease_of((f.x).fence) = fn.ascii(claim_id) THEN
      items := items || fn.claimed(c, f.x, journal);
    END IF;
  END LOOP;
  RETURN items;
END $$;
