-- The registered workers and the published tasks. A worker is pack{namespace} and its instance id. A task is
-- pack{namespace}, the part of its name behind the last dot, a line feed, and its whole name.

-- The entry of a worker, unpacked: expires at, reason of death, registered at, description, remembered calls. Further
-- parts, which a newer release wrote, are kept.

-- Return the entry of a worker as its parts, or null if there is none or it is damaged.
CREATE FUNCTION fn.worker_parts(entry bytea) RETURNS bytea[] LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN cardinality(parts) >= 5 AND fn.is_whole(parts[1]) AND fn.is_whole(parts[3]) THEN parts END
  FROM fn.unpack(entry) AS parts
$$;

-- Return the failure that a worker is not registered, or that its entry is damaged.
CREATE FUNCTION fn.no_worker(c fn.context, of_worker bytea) RETURNS bytea LANGUAGE sql AS $$
  SELECT CASE WHEN EXISTS (SELECT FROM db.workers WHERE p = c.p AND worker = of_worker)
    THEN fn.failure('corruption', '', 'worker '::bytea || fn.behind_first(of_worker))
    ELSE fn.failure('worker_not_found', fn.behind_first(of_worker)) END
$$;

-- Return why a worker died, '' if it did not or that is unknown.
CREATE FUNCTION fn.worker_death(c fn.context, of_worker bytea) RETURNS bytea LANGUAGE sql AS $$
  SELECT coalesce(
    (SELECT (fn.worker_parts(entry))[2] FROM db.workers WHERE p = c.p AND worker = of_worker),
    (SELECT (fn.worker_parts(entry))[2] FROM db.deaths WHERE p = c.p AND worker = of_worker), ''
  )
$$;

-- Write the entry of a worker.
CREATE FUNCTION fn.write_worker(c fn.context, of_worker bytea, parts bytea[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO db.workers (p, worker, entry) VALUES (c.p, of_worker, fn.pack(VARIADIC parts))
    ON CONFLICT (p, worker) DO UPDATE SET entry = excluded.entry;
  PERFORM fn.note_entry(c, 'w', of_worker, fn.num(parts[1]) + fn.a_day());
END $$;

-- Lock and return the parts of a worker's entry.
CREATE FUNCTION fn.read_worker(c fn.context, of_worker bytea) RETURNS bytea[] LANGUAGE sql AS $$
  SELECT fn.worker_parts(entry) FROM db.workers WHERE p = c.p AND worker = of_worker FOR UPDATE
$$;

-- register_worker: register a worker instance, or refresh its registration.
-- Arguments: worker, description, how long it is alive in ms, call id.
-- Replies: 'registered' or 'refreshed'.
-- Errors: instance_of_other_worker.
CREATE FUNCTION fn.register_worker(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  parts bytea[] := fn.read_worker(c, args[1]);
  before bytea[] := fn.recall(parts[5], args[4]);
  answer bytea := CASE WHEN parts IS NULL THEN 'registered' ELSE 'refreshed' END;
BEGIN
  IF before IS NOT NULL THEN
    RETURN fn.answer(VARIADIC before);
  ELSIF parts[2] = '' AND fn.num(parts[1]) > c.now AND (fn.unpack(parts[4]))[1] IS DISTINCT FROM (fn.unpack(args[2]))[1] THEN
    RETURN fn.failure('instance_of_other_worker', fn.behind_first(args[1]), (fn.unpack(parts[4]))[1]);
  END IF;
  parts := coalesce(parts, ARRAY['', '', fn.bytes(c.now), '', '']);
  parts[1] := fn.bytes(c.now + fn.num(args[3]));
  parts[2] := '';
  parts[4] := args[2];
  parts[5] := fn.remember(parts[5], args[4], answer);
  PERFORM fn.write_worker(c, args[1], parts);
  RETURN fn.answer(answer);
END $$;

-- heartbeat_worker: extend the registration of a worker instance.
-- Arguments: worker, how long it is alive in ms.
-- Replies: 'ok', the moment at which the registration expires.
-- Errors: worker_not_found, worker_dead, corruption.
CREATE FUNCTION fn.heartbeat_worker(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  parts bytea[] := fn.read_worker(c, args[1]);
BEGIN
  IF parts IS NULL THEN
    RETURN fn.no_worker(c, args[1]);
  ELSIF parts[2] <> '' THEN
    RETURN fn.failure('worker_dead', fn.behind_first(args[1]));
  END IF;
  parts[1] := fn.bytes(c.now + fn.num(args[2]));
  PERFORM fn.write_worker(c, args[1], parts);
  RETURN fn.answer('ok', parts[1]);
END $$;

-- mark_worker_dead: record that a worker instance died, and why.
-- Arguments: worker, reason, call id.
-- Replies: 'marked', or 'already' if it was marked before.
-- Errors: worker_not_found, corruption.
CREATE FUNCTION fn.mark_worker_dead(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  parts bytea[] := fn.read_worker(c, args[1]);
  before bytea[] := fn.recall(parts[5], args[3]);
BEGIN
  IF parts IS NULL THEN
    RETURN fn.no_worker(c, args[1]);
  ELSIF before IS NOT NULL OR parts[2] <> '' THEN
    RETURN fn.answer(VARIADIC coalesce(before, ARRAY['already'::bytea]));
  END IF;
  parts[1] := fn.bytes(least(fn.num(parts[1]), c.now));
  parts[2] := args[2];
  parts[5] := fn.remember(parts[5], args[3], 'marked');
  PERFORM fn.write_worker(c, args[1], parts);
  RETURN fn.answer('marked');
END $$;

-- note_death: record in a partition without the registry why a worker died.
-- Arguments: worker, reason, call id.
-- Replies: 'ok'.
CREATE FUNCTION fn.note_death(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  now bytea := fn.bytes(c.now);
BEGIN
  INSERT INTO db.deaths (p, worker, entry)
    VALUES (c.p, args[1], fn.pack(now, args[2], now, '', fn.remember(NULL, args[3], 'ok')))
    ON CONFLICT (p, worker) DO UPDATE SET entry = excluded.entry;
  PERFORM fn.note_entry(c, 'w', args[1], c.now + fn.a_day());
  RETURN fn.answer('ok');
END $$;

-- list_workers: read a page of a namespace's workers.
-- Arguments: pack{namespace}, after (a worker) or '', limit.
-- Replies: '1' if there may be more workers, else '0'; then per worker: worker, expires at, reason of death or '',
-- registered at, description, 1 if it is alive, else 0. A worker with a damaged or missing entry is its name alone.
CREATE FUNCTION fn.list_workers(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  found db.workers;
  parts bytea[];
  rows bytea[] := '{}';
  more boolean := false;
BEGIN
  FOR found IN
    SELECT * FROM db.workers WHERE p = c.p AND worker >= args[1] AND worker > args[2] AND worker < args[1] || '\xff'::bytea
      ORDER BY worker LIMIT fn.num(args[3])
  LOOP
    more := c.work <= 0 AND cardinality(rows) > 0;
    EXIT WHEN more;
    parts := fn.worker_parts(found.entry);
    c.work := c.work - 1 - fn.weight(found.worker, coalesce(found.entry, ''));
    rows := rows || CASE WHEN parts IS NULL THEN fn.answer(found.worker) ELSE fn.replies(
      fn.reply(found.worker), fn.reply(parts[1]), fn.reply(parts[2]), fn.reply(parts[3]), fn.reply(parts[4]),
      fn.reply(CASE WHEN parts[2] = '' AND fn.num(parts[1]) > c.now THEN 1::bigint ELSE 0 END)
    ) END;
  END LOOP;
  RETURN fn.replies(VARIADIC
    fn.reply(CASE WHEN more OR cardinality(rows) = fn.num(args[3]) THEN '1'::text ELSE '0' END) || rows);
END $$;

-- Remove a worker from the list when its time is over.
CREATE FUNCTION fn.forget_worker(c fn.context, of_worker bytea) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  until bigint := (
    SELECT max(fn.num((fn.worker_parts(entry))[1])) + fn.a_day() FROM (
      SELECT entry FROM db.workers WHERE p = c.p AND worker = of_worker
      UNION ALL SELECT entry FROM db.deaths WHERE p = c.p AND worker = of_worker
    ) AS entries
  );
BEGIN
  IF until > c.now THEN
    PERFORM fn.note_entry(c, 'w', of_worker, until);
    RETURN;
  END IF;
  DELETE FROM db.workers WHERE p = c.p AND worker = of_worker;
  DELETE FROM db.deaths WHERE p = c.p AND worker = of_worker;
END $$;

-- Tasks ---------------------------------------------------------------------------------------------------------------

-- Return the entry of a task as its parts, expires at, published at, description; null if there is none or it is damaged.
CREATE FUNCTION fn.task_parts(entry bytea) RETURNS bytea[] LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN cardinality(parts) >= 3 AND fn.is_whole(parts[1]) AND fn.is_whole(parts[2]) THEN parts END
  FROM fn.unpack(entry) AS parts
$$;

-- publish_tasks: store how tasks are submitted. The last description of a task stands.
-- Arguments per item: task, description, how long it is kept in ms.
-- Replies per item: 'published'.
-- Errors per item: too_many_tasks.
CREATE FUNCTION fn.publish_tasks(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  answers bytea[] := '{}';
  space bytea;
BEGIN
  FOR at IN 1 .. cardinality(args) BY 3 LOOP
    space := fn.pack(fn.unpack_first(args[at]));
    IF NOT EXISTS (SELECT FROM db.tasks WHERE p = c.p AND task = args[at])
      AND (SELECT count(*) FROM db.tasks WHERE p = c.p AND task >= space AND task < space || '\xff'::bytea) >= 10000 THEN
      answers := answers || fn.failure('too_many_tasks', '10000');
      CONTINUE;
    END IF;
    INSERT INTO db.tasks (p, task, entry)
      VALUES (c.p, args[at], fn.pack(fn.bytes(c.now + fn.num(args[at + 2])), fn.bytes(c.now), args[at + 1]))
      ON CONFLICT (p, task) DO UPDATE SET entry = excluded.entry;
    PERFORM fn.note_entry(c, 't', args[at], c.now + fn.num(args[at + 2]));
    answers := answers || fn.answer('published');
  END LOOP;
  RETURN fn.replies(VARIADIC answers);
END $$;

-- list_tasks: read a page of published tasks.
-- Arguments: the first and the last bound ('[' or '(' and a task), limit.
-- Replies: '1' if there may be more tasks, else '0'; then per task: task, expires at, published at, description, 1 if it
-- has not expired, else 0. A task with a damaged or missing entry is its name alone.
CREATE FUNCTION fn.list_tasks(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  found db.tasks;
  parts bytea[];
  rows bytea[] := '{}';
  more boolean := false;
BEGIN
  FOR found IN
    SELECT * FROM db.tasks WHERE p = c.p AND task >= substring(args[1] FROM 2) AND task <= substring(args[2] FROM 2)
      AND (args[1] LIKE '[%' OR task <> substring(args[1] FROM 2)) AND (args[2] LIKE '[%' OR task <> substring(args[2] FROM 2))
      ORDER BY task LIMIT fn.num(args[3])
  LOOP
    more := c.work <= 0 AND cardinality(rows) > 0;
    EXIT WHEN more;
    parts := fn.task_parts(found.entry);
    c.work := c.work - 1 - fn.weight(found.task, coalesce(found.entry, ''));
    rows := rows || CASE WHEN parts IS NULL THEN fn.answer(found.task) ELSE fn.replies(
      fn.reply(found.task), fn.reply(parts[1]), fn.reply(parts[2]), fn.reply(parts[3]),
      fn.reply(CASE WHEN fn.num(parts[1]) > c.now THEN 1::bigint ELSE 0 END)
    ) END;
  END LOOP;
  RETURN fn.replies(VARIADIC
    fn.reply(CASE WHEN more OR cardinality(rows) = fn.num(args[3]) THEN '1'::text ELSE '0' END) || rows);
END $$;

-- Remove a task that has not been published again in time.
CREATE FUNCTION fn.forget_task(c fn.context, of_task bytea) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  expires bigint := (SELECT fn.num((fn.task_parts(entry))[1]) FROM db.tasks WHERE p = c.p AND task = of_task);
BEGIN
  IF expires > c.now THEN
    PERFORM fn.note_entry(c, 't', of_task, expires);
  ELSE
    DELETE FROM db.tasks WHERE p = c.p AND task = of_task;
  END IF;
END $$;
