-- What the members of a flow cause to each other: their ends, replays and cancellations, as jobs.
--
-- A job has a name and is about a flow, or about a member as '<flow>:<uuid>'. It runs before its call ends, as far as the
-- call's work budget allows; the rest becomes a due entry of kind j with the place that the job has reached. A job may run
-- again from its beginning without an effect, so it is enough that a job is never lost.

-- Members -----------------------------------------------------------------------------------------------------------

-- Return a member that waited for its edges and runs now, or when its delay is over.
CREATE FUNCTION fn.let_run(c fn.context, x db.executions) RETURNS db.executions LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  x.state := CASE
    WHEN coalesce(fn.num(x.delay_until), 0) <= c.now THEN 'ruewn'::bytea WHEN x.state LIKE '%t' THEN 'rutbn' ELSE 'rutdn' END
    || substring(x.state FROM 6);
  x.mutated := fn.bytes(c.now);
  RETURN x;
END $$;

-- Return a member that ends because of what its flow decided; null if it cannot, since its suspension is damaged.
CREATE FUNCTION fn.end_member(c fn.context, x db.executions, outcome text, why bytea) RETURNS db.executions
LANGUAGE plpgsql AS $$
BEGIN
  IF x.state LIKE 's%' THEN
    BEGIN
      x := fn.finish(c, x, outcome, true);
    EXCEPTION WHEN data_exception THEN
      PERFORM fn.set_aside(c, x.uuid, 'record');
      RETURN NULL;
    END;
  ELSE
    x := fn.finish(c, x, outcome, true);
  END IF;
  IF outcome = 'skipped' THEN
    x.error := why;
  ELSE
    x.cancel_reason := why; x.cancelled_by := 'flow';
  END IF;
  RETURN x;
END $$;

-- Return a skipped member that waits for its edges again.
CREATE FUNCTION fn.waiting_again(c fn.context, x db.executions) RETURNS db.executions LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  x.state := 'rudhnp'; x.error := NULL; x.ended := NULL; x.mutated := fn.bytes(c.now); x.place := fn.bytes(c.now);
  RETURN x;
END $$;

-- Return whether a flow that was cancelled takes a member along. Under cancel_pending, it leaves those that a worker holds.
CREATE FUNCTION fn.is_taken_along(c fn.context, f db.flows, x db.executions) RETURNS boolean LANGUAGE sql AS $$
  SELECT fn.is_cancelling(f) AND x.state NOT LIKE 't%'
    AND (f.cancel_policy = 'cancel_all' OR NOT (fn.is_leased(fn.ascii(x.state)) AND fn.num(x.expires) > c.now))
    AND NOT EXISTS (SELECT FROM db.acknowledged AS a WHERE a.p = c.p AND a.flow = f.flow AND a.uuid = x.uuid)
$$;

-- Return a member that its cancelled flow takes along, ended. No worker holds it.
CREATE FUNCTION fn.cancel_with_flow(c fn.context, x db.executions) RETURNS db.executions LANGUAGE sql AS $$
  SELECT fn.end_member(c, x, 'cancelled', (fn.flow(c, x.flow_id)).cancel_reason)
$$;

-- Return a member that its cancelled flow takes along, if its lease ends while it continues.
CREATE FUNCTION fn.follow_cancellation(c fn.context, was db.executions, x db.executions) RETURNS db.executions
LANGUAGE plpgsql AS $$
BEGIN
  IF fn.is_leased(fn.ascii(was.state)) AND NOT fn.is_leased(fn.ascii(x.state)) AND x.state NOT LIKE 't%'
    AND fn.is_taken_along(c, fn.flow(c, x.flow_id), x) THEN
    RETURN coalesce(fn.cancel_with_flow(c, x), x);
  END IF;
  RETURN x;
END $$;

-- Note that an execution has ended: what it leads to as a member, and what becomes of its children, is done before the call ends.
CREATE FUNCTION fn.note_end(c fn.context, x db.executions) RETURNS fn.context LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  IF x.flow_id IS NOT NULL THEN
    c := fn.enqueue(c, 'ended:' || x.flow_id || ':' || x.uuid);
  END IF;
  IF fn.children_of(x) IS NOT NULL THEN
    c := fn.enqueue(c, 'parent:' || fn.children_of(x) || ':' || x.uuid);
  END IF;
  RETURN c;
END $$;

-- Return whether a member that is replayed waits for its edges: it ended before they let it run.
CREATE FUNCTION fn.waits_for_edges(x db.executions) RETURNS boolean LANGUAGE sql AS $$
  SELECT EXISTS (
    SELECT FROM db.groups WHERE p = x.p AND flow = x.flow_id AND down = x.uuid AND force AND state <> 'satisfied'
  )
$$;

-- Open the flow of a member that is replayed. An impossible group begins another life, in which only successes count.
CREATE FUNCTION fn.replay_member(c fn.context, x db.executions) RETURNS fn.context LANGUAGE plpgsql AS $$
BEGIN
  UPDATE db.flows SET cancel_policy = NULL, cancel_reason = NULL, cancelled_at = NULL,
    state = CASE WHEN cancel_policy IS NULL THEN state ELSE 'open' END WHERE p = c.p AND flow = x.flow_id;
  DELETE FROM db.acknowledged WHERE p = c.p AND flow = x.flow_id AND uuid = x.uuid;
  UPDATE db.groups SET life = life + 1, bad = 0, skip = 0, state = 'pending', decided = NULL
    WHERE p = c.p AND flow = x.flow_id AND down = x.uuid AND force AND state = 'impossible';
  RETURN fn.enqueue(c, 'opened:' || x.flow_id || ':' || x.uuid);
END $$;

-- Jobs --------------------------------------------------------------------------------------------------------------

-- Let a job run before the call ends, from its beginning or from a place.
CREATE FUNCTION fn.enqueue(c fn.context, job text, place bytea DEFAULT '') RETURNS fn.context LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  c.jobs := c.jobs || job; c.places := c.places || place;
  RETURN c;
END $$;

-- Leave a job to a later call.
CREATE FUNCTION fn.postpone_job(c fn.context, job text, of_place bytea, moment bigint) RETURNS fn.context LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO db.entries (p, due_in, kind, member, due, place) VALUES (c.p, 'd', 'j', fn.bytes(job), moment, of_place)
    ON CONFLICT (p, due_in, kind, member) DO UPDATE SET due = least(entries.due, excluded.due), place = '';
  c.first_count := CASE WHEN c.first_due = moment THEN c.first_count + 1 ELSE 1 END;
  c.first_due := least(c.first_due, moment);
  RETURN c;
END $$;

-- Return whether this release knows a job.
CREATE FUNCTION fn.is_job(job text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT job ~ '^((ended|opened|others|parent):[0-9a-f-]{36}:[0-9a-f-]{36}|(roots|cancel):[0-9a-f-]{36})$'
$$;

-- Run the jobs of this call within its budget, and end or open the flows that they concern.
CREATE FUNCTION fn.run_jobs(c fn.context) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  handled bigint := 0;
  b fn.batch;
  job text;
  place bytea;
  f db.flows;
BEGIN
  WHILE cardinality(c.jobs) > 0 LOOP
    job := c.jobs[1]; place := c.places[1];
    c.jobs := c.jobs[2:]; c.places := c.places[2:];
    c := fn.try_flow(c, split_part(job, ':', 2)::uuid);
    f := fn.flow(c, split_part(job, ':', 2)::uuid);
    IF f.flow IS NULL THEN
      CONTINUE;
    ELSIF f.flow <> ALL (c.flows) THEN
      c := fn.postpone_job(c, job, place, c.now + 10);
    ELSIF c.work <= 0 AND handled >= 32 THEN
      c := fn.postpone_job(c, job, place, c.now);
    ELSE
      b := fn.run_job(c, f, job, place, greatest(32 - handled, trunc(c.work / 4)::bigint, 1));
      c := b.c; handled := handled + b.count;
      c.work := c.work - 4 * b.count;
      IF f.flow <> ALL (c.settles) THEN
        c.settles := c.settles || f.flow;
      END IF;
    END IF;
  END LOOP;
  IF cardinality(c.settles) > 0 THEN
    PERFORM fn.settle_flow(c, flow) FROM unnest(c.settles) AS flow;
    c.settles := '{}';
  END IF;
  RETURN c;
END $$;

-- Run a job on up to `most` edges or members, and return how many there were. What is left of it is enqueued.
CREATE FUNCTION fn.run_job(c fn.context, f db.flows, job text, place bytea, most bigint) RETURNS fn.batch
LANGUAGE plpgsql AS $$
DECLARE
  name text := split_part(job, ':', 1);
  about uuid := nullif(split_part(job, ':', 3), '')::uuid;
  b fn.batch;
BEGIN
  IF name = 'ended' THEN
    RETURN fn.run_ended(c, f, about, place, most);
  ELSIF name = 'opened' THEN
    RETURN fn.run_opened(c, f, about, place, most);
  ELSIF name = 'others' THEN
    RETURN fn.run_others(c, f, about, place, most);
  ELSIF name = 'roots' THEN
    RETURN fn.run_roots(c, f, most);
  ELSIF name = 'cancel' THEN
    RETURN fn.run_cancel(c, f, place, most);
  ELSIF name = 'parent' THEN
    RETURN fn.run_parent(c, f, about);
  END IF;
  b.c := c; b.count := 0;
  RETURN b;
END $$;

-- ended: resolve the edges that leave members which have ended. All such jobs of a flow that begin are run together.
CREATE FUNCTION fn.run_ended(c fn.context, f db.flows, about uuid, place bytea, most bigint) RETURNS fn.batch
LANGUAGE plpgsql AS $$
DECLARE
  prefix text := 'ended:' || f.flow || ':';
  ups uuid[] := ARRAY[about] || ARRAY(
    SELECT DISTINCT ON (nth) substring(job FROM length(prefix) + 1)::uuid
    FROM unnest(c.jobs, c.places) WITH ORDINALITY AS queued(job, place, nth)
    WHERE starts_with(job, prefix) AND queued.place = '' AND job <> prefix || about ORDER BY nth
  );
  r fn.resolved;
  b fn.batch;
BEGIN
  SELECT coalesce(array_agg(job ORDER BY nth), '{}'), coalesce(array_agg(queued.place ORDER BY nth), '{}')
    INTO c.jobs, c.places FROM unnest(c.jobs, c.places) WITH ORDINALITY AS queued(job, place, nth)
    WHERE NOT (starts_with(job, prefix) AND queued.place = '');
  r := fn.resolve(c, f, ups, place, most);
  IF r.count = most THEN
    c := fn.enqueue(c, prefix || ups[r.last_nth], r.last_id);
    FOR i IN r.last_nth + 1 .. cardinality(ups) LOOP
      c := fn.enqueue(c, prefix || ups[i]);
    END LOOP;
  END IF;
  b.c := fn.carry_out(c, f, r); b.count := r.count;
  RETURN b;
END $$;

-- opened: let what was skipped behind a member that runs or waits again wait for it.
CREATE FUNCTION fn.run_opened(c fn.context, f db.flows, about uuid, place bytea, most bigint) RETURNS fn.batch
LANGUAGE plpgsql AS $$
DECLARE
  r fn.resolved;
  b fn.batch;
BEGIN
  b.c := c; b.count := 0;
  IF EXISTS (SELECT FROM db.executions WHERE p = c.p AND uuid = about AND state NOT LIKE 't%') THEN
    r := fn.unresolve(c, f, about, place, most);
    IF r.count = most THEN
      c := fn.enqueue(c, 'opened:' || f.flow || ':' || about, r.last_id);
    END IF;
    b.c := fn.carry_out(c, f, r); b.count := r.count;
  END IF;
  RETURN b;
END $$;

-- Carry out what groups have come to: their members run, are skipped, are cancelled with their flow, or wait again. Members whose
-- groups are damaged are set aside.
CREATE FUNCTION fn.carry_out(c fn.context, f db.flows, r fn.resolved) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  records db.executions[];
  was db.executions;
  x db.executions;
  befores db.executions[] := '{}';
  afters db.executions[] := '{}';
  damaged uuid;
BEGIN
  FOREACH damaged IN ARRAY r.damaged LOOP
    PERFORM fn.set_aside(c, damaged, 'group');
  END LOOP;
  IF cardinality(r.downs) = 0 THEN
    RETURN c;
  END IF;
  records := fn.load_all(c, r.downs);
  FOR i IN 1 .. cardinality(r.downs) LOOP
    was := records[i]; x := was;
    IF (fn.checked(c, r.downs[i], x, false)).failure IS NULL THEN
      IF x.state LIKE 't___k%' AND r.states[i] <> 'impossible' THEN
        x := fn.waiting_again(c, x);
        c := fn.enqueue(c, 'opened:' || f.flow || ':' || x.uuid);
      END IF;
      x := fn.carried_out(c, f, x, r.states[i], r.deciders[i]);
      IF x.state <> was.state THEN
        befores := befores || was; afters := afters || x;
      END IF;
    END IF;
    IF r.cancels[i] THEN
      c := fn.enqueue(c, 'others:' || f.flow || ':' || r.downs[i]);
    END IF;
  END LOOP;
  RETURN fn.put_all(c, befores, afters);
END $$;

-- Return a member that still waits for its edges, after its group has come to a state.
CREATE FUNCTION fn.carried_out(c fn.context, f db.flows, x db.executions, state text, decider uuid) RETURNS db.executions
LANGUAGE sql AS $$
  SELECT CASE
    WHEN x.state NOT LIKE 'r_d%' OR state = 'pending' THEN x
    WHEN fn.is_cancelling(f) AND x.flow_id = f.flow THEN fn.end_member(c, x, 'cancelled', f.cancel_reason)
    WHEN state = 'satisfied' THEN fn.let_run(c, x)
    ELSE fn.end_member(c, x, 'skipped', fn.bytes(format('dependency_impossible {fp:%s}:%s', c.p, decider)))
  END
$$;

-- Cancel some members for a reason. Those that another call has locked are left; return how many were cancelled.
CREATE FUNCTION fn.cancel_members(c fn.context, uuids uuid[], why bytea) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  x db.executions;
  ended db.executions;
  befores db.executions[] := '{}';
  afters db.executions[] := '{}';
BEGIN
  b.count := 0;
  FOR x IN SELECT * FROM db.executions WHERE p = c.p AND uuid = ANY (uuids) ORDER BY uuid FOR UPDATE SKIP LOCKED LOOP
    b.count := b.count + 1;
    CONTINUE WHEN x.state LIKE 't%' OR (fn.checked(c, x.uuid, x, false)).failure IS NOT NULL;
    ended := fn.end_member(c, x, 'cancelled', why);
    IF ended.uuid IS NOT NULL THEN
      befores := befores || x; afters := afters || ended;
    END IF;
  END LOOP;
  b.c := fn.put_all(c, befores, afters);
  RETURN b;
END $$;

-- others: cancel the other upstream executions of a group that was decided, unless another group still needs them.
CREATE FUNCTION fn.run_others(c fn.context, f db.flows, about uuid, place bytea, most bigint) RETURNS fn.batch
LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  g db.groups;
  ids bytea[];
  ups uuid[];
BEGIN
  b.c := c; b.count := 0;
  g := fn.group_of(c, f.flow, about);
  IF coalesce(g.state = 'pending', true) THEN
    RETURN b;
  END IF;
  ids := ARRAY(SELECT id FROM db.edges WHERE p = c.p AND flow = f.flow AND down = about AND id > place ORDER BY id LIMIT most);
  ups := ARRAY(
    SELECT e.up FROM db.edges AS e, LATERAL (SELECT state FROM db.executions WHERE p = c.p AND uuid = e.up LIMIT 1) AS x
    WHERE e.p = c.p AND e.flow = f.flow AND e.id = ANY (ids) AND x.state NOT LIKE 't%'
      AND fn.effective(e.result, e.life, g.policy, g.life) = '' AND NOT EXISTS (
        SELECT FROM db.edges AS other, LATERAL (
          SELECT state FROM db.groups WHERE p = c.p AND flow = f.flow AND down = other.down LIMIT 1
        ) AS fed WHERE other.p = c.p AND other.flow = f.flow AND other.up = e.up AND other.down <> about AND fed.state = 'pending'
      )
  );
  b := fn.cancel_members(c, ups, CASE g.policy
    WHEN 'all_of' THEN fn.bytes(format('sibling_failed {fp:%s}:%s', c.p, g.decided))
    ELSE 'sibling_quorum_'::bytea || fn.bytes(g.state) END);
  IF b.count < cardinality(ups) THEN
    b.c := fn.postpone_job(b.c, 'others:' || f.flow || ':' || about, '', c.now + 10);
  END IF;
  IF cardinality(ids) = most THEN
    b.c := fn.enqueue(b.c, 'others:' || f.flow || ':' || about, ids[most]);
  END IF;
  b.count := cardinality(ids);
  RETURN b;
END $$;

-- roots: let the members of a whole graph run to which no edge leads.
CREATE FUNCTION fn.run_roots(c fn.context, f db.flows, most bigint) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  x db.executions;
  befores db.executions[] := '{}';
  afters db.executions[] := '{}';
BEGIN
  b.count := 0;
  FOR x IN
    SELECT * FROM db.executions WHERE p = c.p AND flow_id = f.flow AND is_root ORDER BY uuid LIMIT most FOR UPDATE
  LOOP
    b.count := b.count + 1;
    CONTINUE WHEN (fn.checked(c, x.uuid, x, false)).failure IS NOT NULL;
    befores := befores || x; afters := afters || CASE WHEN x.state LIKE 'r_d%' THEN fn.let_run(c, x) ELSE x END;
  END LOOP;
  b.c := fn.put_all(c, befores, afters);
  IF b.count = most THEN
    b.c := fn.enqueue(b.c, 'roots:' || f.flow);
  END IF;
  RETURN b;
END $$;

-- cancel: cancel the members of a cancelled flow, as its policy says.
CREATE FUNCTION fn.run_cancel(c fn.context, f db.flows, reached bytea, most bigint) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  page uuid[];
  uuids uuid[];
BEGIN
  b.c := c; b.count := 0;
  IF NOT fn.is_cancelling(f) THEN
    RETURN b;
  END IF;
  page := ARRAY(
    SELECT uuid FROM db.executions WHERE p = c.p AND flow_id = f.flow AND (reached = '' OR uuid > fn.id(nullif(reached, '')))
      ORDER BY uuid LIMIT most
  );
  uuids := ARRAY(
    SELECT uuid FROM db.executions AS x WHERE p = c.p AND uuid = ANY (page) AND fn.is_taken_along(c, f, x)
  );
  b := fn.cancel_members(c, uuids, f.cancel_reason);
  IF b.count < cardinality(uuids) THEN
    b.c := fn.postpone_job(b.c, 'cancel:' || f.flow, '', c.now + 10);
  END IF;
  b.count := cardinality(page);
  IF b.count = most THEN
    b.c := fn.enqueue(b.c, 'cancel:' || f.flow, fn.bytes(page[most]));
  END IF;
  RETURN b;
END $$;
