-- The feed of ends: how an end is announced, and how committed ends are numbered.

-- Announce the ends among some changes: write them into the feed, and tell the topics that wait for them.
CREATE FUNCTION fn.announce_all(c fn.context, befores db.executions[], afters db.executions[]) RETURNS fn.context
LANGUAGE plpgsql AS $$
DECLARE
  ends db.executions[] := '{}';
BEGIN
  FOR i IN 1 .. cardinality(afters) LOOP
    IF (afters[i]).state LIKE 't%' AND (befores[i]).state NOT LIKE 't%' THEN
      ends := ends || afters[i];
      c := fn.announce(c, befores[i], afters[i]);
      IF (afters[i]).budgets IS NOT NULL THEN
        c := fn.end_shares(c, afters[i], false);
      END IF;
    END IF;
  END LOOP;
  IF cardinality(ends) > 0 THEN
    INSERT INTO db.feed (p, ended, uuid, outcome, class, tags)
      SELECT c.p, c.now, x.uuid, fn.bytes(fn.outcome(fn.ascii(x.state))), x.class, nullif(x.tags, '') FROM unnest(ends) AS x;
    c := fn.note_ends(c, cardinality(ends));
  END IF;
  RETURN c;
END $$;

-- Note that a call wrote some ends into the feed.
CREATE FUNCTION fn.note_ends(c fn.context, count int) RETURNS fn.context LANGUAGE plpgsql AS $$
BEGIN
  IF NOT c.announced THEN
    INSERT INTO db.entries (p, kind, member, due) VALUES (c.p, 'f', '', c.now + fn.feed_pause(c)) ON CONFLICT DO NOTHING;
  END IF;
  c.ended := c.ended + count;
  c.announced := true;
  RETURN c;
END $$;

-- Tell of one end: the topics that wait for it, and the call that collects ends.
CREATE FUNCTION fn.announce(c fn.context, was db.executions, x db.executions) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  topic bytea;
BEGIN
  IF was.watchers IS NOT NULL THEN
    FOREACH topic IN ARRAY coalesce(fn.unpack(was.watchers), '{}') LOOP
      PERFORM fn.tell(convert_from(topic, 'UTF8'), format('done {fp:%s}:%s', c.p, x.uuid));
    END LOOP;
  END IF;
  IF c.collects AND NOT (fn.is_leased(fn.ascii(was.state)) AND fn.num(was.expires) > c.now) THEN
    -- The holder of a lease learns of the end by itself; any other end is told by the claim that causes it.
    c.ends := c.ends || fn.answer(
      fn.bytes(x.uuid), x.class, fn.bytes(fn.public_state(fn.ascii(x.state))),
      fn.bytes(coalesce(fn.of_attempt(x.attempt, 1), '0')), coalesce(x.retry_count, '0'), coalesce(x.tags, ''),
      coalesce(x.error, ''), coalesce(x.error_detail, '')
    );
  END IF;
  RETURN c;
END $$;

-- Return how long the feed may stay untrimmed, in ms.
CREATE FUNCTION fn.feed_pause(c fn.context) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT least(fn.an_hour(), greatest(1000, c.feed_age / 4))
$$;

-- Number up to 1000 of the committed ends that have no number yet, in the order in which they were written. One session
-- numbers at a time; another one reads what is numbered.
CREATE FUNCTION fn.number_ends(c fn.context) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  last_ms bigint;
  last_n bigint;
BEGIN
  IF NOT EXISTS (SELECT FROM db.feed WHERE p = c.p AND ms IS NULL) THEN
    RETURN;
  END IF;
  PERFORM pg_advisory_xact_lock('db.feed'::regclass::oid::int, c.p);
  SELECT feed_ms, feed_n INTO last_ms, last_n FROM db.partitions WHERE p = c.p;
  WITH new AS MATERIALIZED (
    SELECT seq, greatest(last_ms, max(ended) OVER (ORDER BY seq)) AS ms FROM (
      SELECT seq, ended FROM db.feed WHERE p = c.p AND ms IS NULL ORDER BY seq LIMIT 1000
    ) AS unnumbered
  ), numbered AS MATERIALIZED (
    SELECT seq, ms, row_number() OVER (PARTITION BY ms ORDER BY seq) - 1 + CASE ms WHEN last_ms THEN last_n + 1 ELSE 0 END AS n
    FROM new
  ), written AS (
    UPDATE db.feed SET ms = numbered.ms, n = numbered.n FROM numbered WHERE feed.seq = numbered.seq
  )
  SELECT ms, n INTO last_ms, last_n FROM numbered ORDER BY seq DESC LIMIT 1;
  IF FOUND THEN
    UPDATE db.partitions SET feed_ms = last_ms, feed_n = last_n WHERE p = c.p;
  END IF;
END $$;

-- Trim the feed to its age, in bounded pieces. The place of the newest removed entry is kept: an older cursor has missed some.
CREATE FUNCTION fn.trim_feed(c fn.context) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  gone record;
  trimmed int;
BEGIN
  PERFORM fn.number_ends(c);
  WITH old AS MATERIALIZED (
    SELECT seq FROM db.feed WHERE p = c.p AND ms < c.now - c.feed_age ORDER BY ms, n LIMIT 10000
  ), removed AS (
    DELETE FROM db.feed USING old WHERE feed.seq = old.seq RETURNING ms, n
  )
  SELECT count(*) OVER () AS count, ms, n INTO gone FROM removed ORDER BY ms DESC, n DESC LIMIT 1;
  trimmed := coalesce(gone.count, 0);
  IF trimmed > 0 THEN
    UPDATE db.partitions SET trimmed_ms = gone.ms, trimmed_n = gone.n WHERE p = c.p;
  END IF;
  IF EXISTS (SELECT FROM db.feed WHERE p = c.p) THEN
    PERFORM fn.note_entry(c, 'f', '', CASE WHEN trimmed > 0 THEN c.now ELSE c.now + fn.feed_pause(c) END);
  END IF;
END $$;
