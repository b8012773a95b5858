-- The feed: every end of an execution in order, and waiting for one.

-- watch_executions: ask to be told when executions end.
-- Arguments: topic, pack{namespace}, the uuids.
-- Replies per uuid: 'ended' if it has ended, 'watched' if the topic will be told, 'missing' if there is none.
CREATE FUNCTION fn.watch_executions(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f fn.found;
  topics bytea[];
  answers bytea[] := '{}';
BEGIN
  c := fn.lock_items(c, args[3:], 1, false);
  FOR at IN 3 .. cardinality(args) LOOP
    f := fn.load(c, fn.id(args[at]));
    c := f.c;
    IF f.failure IS NOT NULL OR (f.x).namespace <> args[2] OR fn.is_hidden(f.x) THEN
      answers := answers || fn.answer('missing');
    ELSIF (f.x).state LIKE 't%' THEN
      answers := answers || fn.answer('ended');
    ELSE
      -- A process has one topic, however many of its threads wait.
      topics := args[1] || array_remove(fn.unpack(coalesce((f.x).watchers, '')), args[1]);
      UPDATE db.executions SET watchers = fn.pack(VARIADIC topics[:64]) WHERE p = c.p AND uuid = (f.x).uuid;
      answers := answers || fn.answer('watched');
    END IF;
  END LOOP;
  PERFORM fn.skip_flush();
  c := fn.flush(c);
  RETURN fn.replies(VARIADIC answers);
END $$;

-- read_feed: read a page of the feed, or wait for the next end.
-- Arguments: after (an entry's id) or '', limit, waiter, how long to wait in ms, '1' if the server counts the subscribers
-- of a topic.
-- Replies: 'ok', then per end: id, field, value, field, value.
-- Errors: cursor_expired.
CREATE FUNCTION fn.read_feed(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  after_ms bigint := coalesce(nullif(split_part(fn.ascii(args[1]), '-', 1), '')::bigint, 0);
  after_n bigint := coalesce(nullif(split_part(fn.ascii(args[1]), '-', 2), '')::bigint, -1);
  trimmed record;
  rows bytea[];
BEGIN
  SELECT trimmed_ms, trimmed_n INTO trimmed FROM db.partitions WHERE p = c.p;
  IF args[1] <> '' AND (after_ms, after_n) < (trimmed.trimmed_ms, trimmed.trimmed_n) THEN
    RETURN fn.failure('cursor_expired', args[1]);
  END IF;
  IF args[3] <> '' THEN
    c := fn.unwait(c, convert_from(args[3], 'UTF8'));
  END IF;
  rows := fn.read_ends(c, after_ms, after_n, fn.num(args[2]));
  c := fn.flush(c);
  IF cardinality(rows) = 0 AND fn.num(args[4]) > 0 THEN
    PERFORM fn.lock_waiters(c);
    rows := fn.read_ends(c, after_ms, after_n, fn.num(args[2]));
    IF cardinality(rows) = 0 THEN
      PERFORM fn.register_waiter(c, convert_from(args[3], 'UTF8'), 'feed', fn.num(args[4]), '{}', '{}', false, args[5] = '1');
    END IF;
  END IF;
  RETURN fn.replies(VARIADIC fn.reply('ok'::text) || rows);
END $$;

-- Return a page of ends behind a place, after numbering what is new: as many as asked for, and none behind 2 MiB of tags.
CREATE FUNCTION fn.read_ends(c fn.context, after_ms bigint, after_n bigint, most bigint) RETURNS bytea[]
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM fn.number_ends(c);
  RETURN ARRAY(
    SELECT fn.answer(VARIADIC
      ARRAY[fn.bytes(ms || '-' || n), 'execution'::bytea, fn.bytes(uuid), 'outcome', outcome, 'class', class]
      || CASE WHEN tags IS NOT NULL THEN ARRAY['tags'::bytea, tags] ELSE '{}' END
      || CASE WHEN ms <> ended THEN ARRAY['ended'::bytea, fn.bytes(ended)] ELSE '{}' END)
    FROM (
      SELECT *, sum(octet_length(tags)) OVER (ORDER BY ms, n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
      FROM (
        SELECT * FROM db.feed WHERE p = c.p AND ms IS NOT NULL AND (ms, n) > (after_ms, after_n) ORDER BY ms, n LIMIT most
      ) AS page
    ) AS ends WHERE coalesce(before, 0) < 2097152 ORDER BY ms, n
  );
END $$;

-- feed_places: return the two ids behind which a reader of the feed can begin. A place need not be an entry; a cursor at
-- such a place expires when entries after it are trimmed.
-- Replies: the place behind the newest end, and the place before the oldest end that is kept.
CREATE FUNCTION fn.feed_places(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  part db.partitions;
BEGIN
  PERFORM fn.number_ends(c);
  SELECT * INTO part FROM db.partitions WHERE p = c.p;
  RETURN fn.answer(
    fn.bytes(part.feed_ms || '-' || part.feed_n),
    fn.bytes(coalesce(part.trimmed_ms, 0) || '-' || coalesce(part.trimmed_n, 0))
  );
END $$;
