-- What the holder of a lease does with its execution. Every call may be refused with the errors of fn.fenced:
-- execution_not_found, execution_not_active, lease_revoked, lease_expired, stale_lease.

-- Lock the executions of a call's items in the order of their ids, and before them their flows if the call may end them. Items
-- have `width` arguments, the uuid first.
CREATE FUNCTION fn.lock_items(c fn.context, args bytea[], width int, is_end boolean) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  ids uuid[] := ARRAY(SELECT fn.id(args[at]) FROM generate_series(1, cardinality(args), width) AS at);
BEGIN
  c := fn.lock_flows(c, ids, is_end);
  IF cardinality(ids) > 1 THEN
    PERFORM FROM db.executions WHERE p = c.p AND uuid = ANY (ids) ORDER BY uuid FOR UPDATE;
  END IF;
  RETURN c;
END $$;

-- Return whether a call can handle one more item, after `handled` items.
CREATE FUNCTION fn.has_space(c fn.context, handled int) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT handled < 100 AND (c.work > 0 OR handled = 0)
$$;

-- Return the executions of the items that a call handles within its budget, where each takes `commands` commands and its bytes.
CREATE FUNCTION fn.ids_within(c fn.context, args bytea[], width int, commands int) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
  sizes double precision[] := fn.sizes(args, width);
  ids uuid[] := '{}';
BEGIN
  FOR i IN 1 .. cardinality(sizes) LOOP
    EXIT WHEN NOT fn.has_space(c, i - 1);
    ids := ids || fn.id(args[width * i - width + 1]);
    c.work := c.work - commands - sizes[i];
  END LOOP;
  RETURN ids;
END $$;

-- Return the replies to the items of a call. Those beyond its budget are refused.
CREATE FUNCTION fn.item_replies(answers bytea[], items int) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.replies(VARIADIC answers || array_fill(fn.failure('batch_full'), ARRAY[items - cardinality(answers)]))
$$;

-- renew_many: extend leases from now on.
-- Arguments per item: uuid, fence, lease in ms.
-- Replies per item: 'renewed', the moment at which the lease expires.
-- Errors per item: those of fn.fenced.
CREATE FUNCTION fn.renew_many(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  ids uuid[] := fn.ids_within(c, args, 3, 2);
  records db.executions[];
  befores db.executions[] := '{}';
  afters db.executions[] := '{}';
  answers bytea[] := '{}';
  f fn.found;
  x db.executions;
  at int;
BEGIN
  c := fn.lock_flows(c, ids, false);
  records := fn.load_all(c, ids);
  FOR i IN 1 .. cardinality(ids) LOOP
    at := 3 * i - 2;
    f := fn.loaded(c, ids[i], records[i], false, x.class, x.policy);
    f := fn.fenced_record(c, f, ids[i], args[at + 1], NULL, NULL);
    c := f.c;
    IF f.failure IS NULL THEN
      x := f.x;
      x.expires := fn.bytes(c.now + fn.num(args[at + 2])); x.mutated := fn.bytes(c.now);
      befores := befores || f.was; afters := afters || x;
      f.failure := fn.answer('renewed', x.expires);
    END IF;
    answers := answers || f.failure;
  END LOOP;
  PERFORM fn.flush(fn.put_all(c, befores, afters));
  RETURN fn.item_replies(answers, cardinality(args) / 3);
END $$;

-- progress: record how far the handler has come.
-- Arguments: uuid, fence, percent or '', '=' + message or '', call id.
-- Replies: 'ok'.
-- Errors: those of fn.fenced.
CREATE FUNCTION fn.progress(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found := fn.fenced(c, fn.id(args[1]), args[2], NULL, args[5]);
  x db.executions := f.x;
BEGIN
  c := f.c;
  IF f.failure IS NULL AND (args[3] <> '' OR args[4] <> '') THEN
    x.progress_percent := coalesce(nullif(args[3], ''), x.progress_percent);
    IF args[4] <> '' THEN
      x.progress_message := substring(args[4] FROM 2);
    END IF;
    x.progress_at := fn.bytes(c.now); x.mutated := fn.bytes(c.now);
    x.reported := fn.remember(x.reported, args[5], 'ok');
    c := fn.put(c, f.was, x);
  END IF;
  c := fn.flush(c);
  RETURN coalesce(f.failure, fn.answer('ok'));
END $$;

-- complete_many: end executions with success.
-- Arguments per item: uuid, fence, '=' + result or ''.
-- Replies per item: 'completed'.
-- Errors per item: those of fn.fenced.
CREATE FUNCTION fn.complete_many(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  ids uuid[] := fn.ids_within(c, args, 3, fn.cost_of_end(c));
  records db.executions[];
  befores db.executions[] := '{}';
  afters db.executions[] := '{}';
  is_plain boolean[];
  plain uuid[] := '{}';
  results bytea[] := '{}';
  nth int := 0;
  completed bytea := fn.answer('completed');
  answers bytea[] := '{}';
  f fn.found;
  x db.executions;
  at int;
BEGIN
  c := fn.lock_flows(c, ids, true);
  is_plain := fn.lock_held(c, ids, ARRAY(SELECT args[3 * i - 1] FROM generate_series(1, cardinality(ids)) AS i ORDER BY i));
  records := fn.load_all(c, ARRAY(SELECT ids[i] FROM generate_series(1, cardinality(ids)) AS i WHERE NOT is_plain[i] ORDER BY i));
  FOR i IN 1 .. cardinality(ids) LOOP
    at := 3 * i - 2;
    IF is_plain[i] THEN
      plain := plain || ids[i]; results := results || args[at + 2]; answers := answers || completed;
      CONTINUE;
    END IF;
    nth := nth + 1;
    f := fn.loaded(c, ids[i], records[nth], false, x.class, x.policy);
    f := fn.fenced_record(c, f, ids[i], args[at + 1], 'complete', NULL);
    c := f.c;
    IF f.failure IS NULL THEN
      x := fn.finish(c, f.x, 'success');
      x.result := args[at + 2];
      befores := befores || f.was; afters := afters || x;
      f.failure := completed;
    END IF;
    answers := answers || f.failure;
  END LOOP;
  PERFORM fn.flush(fn.put_all(fn.complete_plain(c, plain, results), befores, afters));
  RETURN fn.item_replies(answers, cardinality(args) / 3);
END $$;

-- fail_many: end attempts as failed. The policy of each execution decides whether it is tried again.
-- Arguments per item: uuid, fence, class, message, detail, retry after in ms or '', draw in [0, 1) for the jitter.
-- Replies per item: 'retry' and when, 'failed', or 'cancelled'.
-- Errors per item: those of fn.fenced.
CREATE FUNCTION fn.fail_many(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  ids uuid[] := fn.ids_within(c, args, 7, fn.cost_of_end(c));
  records db.executions[];
  befores db.executions[] := '{}';
  afters db.executions[] := '{}';
  answers bytea[] := '{}';
  f fn.found;
  x db.executions;
  at int;
BEGIN
  c := fn.lock_flows(c, ids, true);
  records := fn.load_all(c, ids);
  FOR i IN 1 .. cardinality(ids) LOOP
    at := 7 * i - 6;
    f := fn.loaded(c, ids[i], records[i], false, x.class, x.policy);
    f := fn.fenced_record(c, f, ids[i], args[at + 1], 'fail', NULL);
    c := f.c;
    IF f.failure IS NULL THEN
      x := fn.fail_attempt(
        c, f.x, fn.ascii(args[at + 2]), args[at + 3], args[at + 4], fn.num(args[at + 5]), fn.ascii(args[at + 6])::float8, false
      );
      x := fn.remember_end(x, 'fail', args[at + 1], VARIADIC fn.fail_answer(c, x));
      befores := befores || f.was; afters := afters || x;
      f.failure := fn.answer(VARIADIC fn.fail_answer(c, x));
    END IF;
    answers := answers || f.failure;
  END LOOP;
  PERFORM fn.flush(fn.put_all(c, befores, afters));
  RETURN fn.item_replies(answers, cardinality(args) / 7);
END $$;

-- cancel: end an execution as cancelled by its holder.
-- Arguments: uuid, fence, reason.
-- Replies: 'cancelled'.
-- Errors: those of fn.fenced.
CREATE FUNCTION fn.cancel(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.lock_flows(fn.begin(partition), ARRAY[fn.id(args[1])], true);
  f fn.found := fn.fenced(c, fn.id(args[1]), args[2], 'cancel', NULL);
  x db.executions;
BEGIN
  c := f.c;
  IF f.failure IS NULL THEN
    x := fn.finish(c, fn.remember_end(f.x, 'cancel', args[2], 'cancelled'), 'cancelled');
    x.cancel_reason := args[3]; x.cancelled_by := 'lease_holder';
    c := fn.put(c, f.was, x);
  END IF;
  c := fn.flush(c);
  RETURN coalesce(f.failure, fn.answer('cancelled'));
END $$;

-- Return a record whose lease has ended and whose attempt continues later: at a moment, or at once if that has passed.
CREATE FUNCTION fn.interrupt(c fn.context, x db.executions, ending text, of_fence bytea, until bigint)
RETURNS db.executions LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  x.state := 'ruewni'; x.mutated := fn.bytes(c.now);
  IF until > c.now THEN
    x.state := 'rutdni'; x.delay_until := fn.bytes(until);
  END IF;
  RETURN fn.remember_end(x, ending, of_fence, 'ok');
END $$;

-- Return a record whose holder gives its attempt up, counted as a reclaim, as if the worker had been lost.
CREATE FUNCTION fn.give_up(c fn.context, x db.executions, of_fence bytea, why bytea) RETURNS db.executions
LANGUAGE plpgsql AS $$
DECLARE
  before bytea := x.last;
BEGIN
  x := fn.remember_end(x, 'release', of_fence, 'lost', why);
  IF fn.is_exhausted(x) THEN
    -- The reason is read from the memory of this release, which then remembers the answer.
    x := fn.exhaust(c, fn.end_attempt(c, x, 'lease_expired'));
    x.last := before;
    RETURN fn.remember_end(x, 'release', of_fence, 'failed');
  END IF;
  x := fn.end_attempt(c, x, 'lease_expired');
  x.state := 'axnwni'; x.mutated := fn.bytes(c.now);
  RETURN x;
END $$;

-- Return whether a worker waits for work of a class.
CREATE FUNCTION fn.is_waited_for(c fn.context, of_class int) RETURNS boolean LANGUAGE sql AS $$
  SELECT EXISTS (SELECT FROM db.waiters WHERE p = c.p AND of_class = ANY (class_ids))
$$;

-- release_many: hand claims back. The execution keeps its place and its attempt, and no retry is used.
-- Arguments per item: uuid, fence, and when the execution is ready again: a moment; '?' for at once, but only if another
-- worker waits for such work; or '!' + reason, which ends the attempt and counts as a reclaim.
-- Replies per item: 'ok'; 'kept' if no worker waits for such work; 'lost' if it counted as a reclaim; 'failed' if it was
-- the last reclaim allowed.
-- Errors per item: those of fn.fenced.
CREATE FUNCTION fn.release_many(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  ids uuid[] := fn.ids_within(c, args, 3, 2);
  records db.executions[];
  befores db.executions[] := '{}';
  afters db.executions[] := '{}';
  answers bytea[] := '{}';
  f fn.found;
  x db.executions;
  at int;
BEGIN
  c := fn.lock_flows(c, ids, true);
  records := fn.load_all(c, ids);
  FOR i IN 1 .. cardinality(ids) LOOP
    at := 3 * i - 2;
    f := fn.loaded(c, ids[i], records[i], false, x.class, x.policy);
    f := fn.fenced_record(c, f, ids[i], args[at + 1], 'release', NULL);
    c := f.c;
    IF f.failure IS NULL AND args[at + 2] = '?' AND NOT fn.is_waited_for(c, (f.x).class_id) THEN
      f.failure := fn.answer('kept');
    ELSIF f.failure IS NULL THEN
      IF args[at + 2] LIKE '!%' THEN
        x := fn.give_up(c, f.x, args[at + 1], substring(args[at + 2] FROM 2));
      ELSE
        x := fn.interrupt(c, f.x, 'release', args[at + 1], fn.moment(args[at + 2], c.now));
      END IF;
      befores := befores || f.was; afters := afters || x;
      f.failure := fn.answer(VARIADIC fn.recall(x.last, 'release '::bytea || args[at + 1]));
    END IF;
    answers := answers || f.failure;
  END LOOP;
  PERFORM fn.flush(fn.put_all(c, befores, afters));
  RETURN fn.item_replies(answers, cardinality(args) / 3);
END $$;

-- delay: end a lease and let the attempt continue at a moment.
-- Arguments: uuid, fence, moment.
-- Replies: 'ok'.
-- Errors: those of fn.fenced.
CREATE FUNCTION fn.delay(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found := fn.fenced(c, fn.id(args[1]), args[2], 'delay', NULL);
BEGIN
  c := f.c;
  IF f.failure IS NULL THEN
    c := fn.put(c, f.was, fn.interrupt(c, f.x, 'delay', args[2], fn.moment(args[3], c.now)));
  END IF;
  c := fn.flush(c);
  RETURN coalesce(f.failure, fn.answer('ok'));
END $$;

-- wait_children: end a lease and let the attempt continue when enough children succeeded, or can succeed no more; or when
-- enough have ended. If that is so already, as without children, it is ready at once.
-- Arguments: uuid, fence, how many or '' for all, '1' if only ends count, call id, then the names of the children, none for all
-- that are not detached.
-- Replies: 'ok'.
-- Errors: those of fn.fenced.
CREATE FUNCTION fn.wait_children(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.lock_flows(fn.begin(partition), ARRAY[fn.id(args[1])], true);
  f fn.found := fn.fenced(c, fn.id(args[1]), args[2], 'wait_children', NULL);
  x db.executions;
BEGIN
  c := f.c;
  IF f.failure IS NULL THEN
    x := fn.interrupt(c, f.x, 'wait_children', args[2], NULL);
    IF NOT fn.await_children(c, x, fn.num(args[3]), coalesce(args[4] = '1', false), coalesce(args[6:], '{}')) THEN
      x.state := 'rudhni';
    END IF;
    c := fn.put(c, f.was, x);
  END IF;
  c := fn.flush(c);
  RETURN coalesce(f.failure, fn.answer('ok'));
END $$;

-- record_step: keep the result of a step for every later attempt. The first result of a name stands.
-- Arguments: uuid, fence, name, value, most steps, most bytes of the journal, call id.
-- Replies: 'recorded' or 'known', then the value that stands.
-- Errors: those of fn.fenced, journal_full.
CREATE FUNCTION fn.record_step(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found := fn.fenced(c, fn.id(args[1]), args[2], NULL, args[7]);
  x db.executions := f.x;
  known bytea := (SELECT value FROM db.steps WHERE p = c.p AND uuid = fn.id(args[1]) AND name = args[3]);
  count bigint := coalesce(fn.num(x.steps), 0) + 1;
  size bigint := coalesce(fn.num(x.journal_bytes), 0) + octet_length(args[3]) + octet_length(args[4]);
BEGIN
  c := f.c;
  IF f.failure = fn.answer('recorded') THEN
    RETURN fn.answer('recorded', coalesce(known, args[4]));
  ELSIF f.failure IS NULL AND known IS NOT NULL THEN
    f.failure := fn.answer('known', known);
  ELSIF f.failure IS NULL AND (count > fn.num(args[5]) OR size > fn.num(args[6])) THEN
    f.failure := fn.failure('journal_full', args[1], CASE WHEN count > fn.num(args[5]) THEN args[5] ELSE args[6] END);
  ELSIF f.failure IS NULL THEN
    INSERT INTO db.steps (p, uuid, name, number, value) VALUES (c.p, x.uuid, args[3], count, args[4]);
    x.steps := fn.bytes(count); x.journal_bytes := fn.bytes(size); x.mutated := fn.bytes(c.now);
    x.reported := fn.remember(x.reported, args[7], 'recorded');
    c := fn.put(c, f.was, x);
  END IF;
  c := fn.flush(c);
  RETURN coalesce(f.failure, fn.answer('recorded', args[4]));
END $$;
