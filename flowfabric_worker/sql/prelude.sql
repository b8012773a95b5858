-- The encoding of arguments and replies, and the context of a call.
--
-- `db.` stands for the schema of the tables, `fn.` for the schema of this release's functions. An operation is a function
-- of a partition and an array of bytes, as in Lua. Its reply is a nested list of bytes and numbers, encoded as Valkey
-- encodes it (RESP2), so one decoder serves all stores.
--
-- Rows are locked in this order by every function: flows, see prelude_flows.sql; executions, in the order of their ids; quotas, in the
-- order of their names; budgets; the registries of classes and lanes; due entries; the partition's row; the advisory lock of the waiters.
-- Claims and upkeep skip locked rows. A claim locks its quotas first; upkeep handles an entry of a budget only if it gets that at once.

-- Constants ---------------------------------------------------------------------------------------------------------

-- Return the number behind a stored one that never repeats: the present moment, or one more. A damaged number is passed over.
CREATE FUNCTION fn.next_turn(value bigint, now bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN value < fn.max_count() THEN greatest(value + 1, now) ELSE now END
$$;

CREATE FUNCTION fn.an_hour() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 3600000::bigint';
CREATE FUNCTION fn.a_day() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 86400000::bigint';
-- How long a waiter waits at most before it looks again, in ms.
CREATE FUNCTION fn.fallback() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 10000::bigint';
-- How long an entry is postponed that only a newer release can handle, in ms.
CREATE FUNCTION fn.postponed() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 5000::bigint';

-- Values ------------------------------------------------------------------------------------------------------------

-- Return ASCII bytes as text; other bytes are escaped, so this never fails.
CREATE FUNCTION fn.ascii(value bytea) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT encode(value, 'escape') $$;

-- Return a stored number, or null if it is absent or empty. The caller has checked it.
CREATE FUNCTION fn.num(value bytea) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN value <> '' THEN encode(value, 'escape')::bigint END
$$;

-- Return the bytes of a text in UTF-8, which is the encoding of the database. `decode` makes them, because a function that uses
-- `convert_to`, `concat` or `format` is not inlined: the server takes these for less than immutable.
CREATE FUNCTION fn.bytes(value text) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT decode(replace(value, '\', '\\'), 'escape')
$$;
CREATE FUNCTION fn.bytes(value bigint) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$ SELECT decode(value::text, 'escape') $$;

CREATE FUNCTION fn.id(value bytea) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$ SELECT encode(value, 'escape')::uuid $$;
CREATE FUNCTION fn.bytes(value uuid) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$ SELECT decode(value::text, 'escape') $$;

-- Return whether a value is a whole number with few enough digits to be exact. Trimming is ten times as fast as a regular
-- expression.
CREATE FUNCTION fn.is_whole(value bytea) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT octet_length(value) BETWEEN 1 AND 15 AND ltrim(value, '0123456789'::bytea) = ''
$$;

-- Join texts into one, each behind its length, so that different lists never give the same text.
CREATE FUNCTION fn.pack(VARIADIC parts bytea[]) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce(string_agg(fn.packed(part), '' ORDER BY nth), '') FROM unnest(parts) WITH ORDINALITY AS each(part, nth)
$$;

-- Return one text as fn.pack joins it.
CREATE FUNCTION fn.packed(part bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT decode(octet_length(part)::text || ':', 'escape') || part
$$;

-- Return the texts that fn.pack joined, or null if the text is damaged.
CREATE FUNCTION fn.unpack(packed bytea) RETURNS bytea[] LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE
  parts bytea[] := '{}';
  at int := 1;
  colon int;
  digits text;
BEGIN
  WHILE at <= octet_length(packed) LOOP
    colon := position(':'::bytea IN substring(packed FROM at FOR 10));
    digits := encode(substring(packed FROM at FOR greatest(colon - 1, 0)), 'escape');
    IF octet_length(digits) NOT BETWEEN 1 AND 9 OR ltrim(digits, '0123456789') <> '' OR at + colon + digits::int - 1 > octet_length(packed) THEN
      RETURN NULL;
    END IF;
    parts := parts || substring(packed FROM at + colon FOR digits::int);
    at := at + colon + digits::int;
  END LOOP;
  RETURN parts;
END $$;

-- Return what follows the first of several packed texts.
CREATE FUNCTION fn.behind_first(packed bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT substring(packed FROM octet_length(fn.pack((fn.unpack_first(packed)))) + 1)
$$;

-- Return the first of several packed texts, whatever follows it.
CREATE FUNCTION fn.unpack_first(packed bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN size > 0 THEN substring(packed FROM size + 2 FOR encode(substring(packed FROM 1 FOR size), 'escape')::int)
    ELSE '' END
  FROM (SELECT position(':'::bytea IN packed) - 1 AS size) AS head
$$;

-- Return the moment that an argument means: '' none, '@ms' absolute, '+ms' from now by the store's clock.
CREATE FUNCTION fn.moment(value bytea, now bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE substring(value FROM 1 FOR 1)
    WHEN '@' THEN fn.num(substring(value FROM 2))
    WHEN '+' THEN now + fn.num(substring(value FROM 2))
  END
$$;

-- Replies -----------------------------------------------------------------------------------------------------------

CREATE FUNCTION fn.reply(value bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN value IS NULL THEN '$-1\015\012'::bytea
    ELSE decode('$' || octet_length(value)::text || E'\r\n', 'escape') || value || '\015\012'::bytea
  END
$$;

CREATE FUNCTION fn.reply(value text) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$ SELECT fn.reply(fn.bytes(value)) $$;

CREATE FUNCTION fn.reply(value bigint) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN value IS NULL THEN '$-1\015\012'::bytea ELSE decode(':' || value::text || E'\r\n', 'escape') END
$$;

-- Return the reply that lists some replies.
CREATE FUNCTION fn.replies(VARIADIC parts bytea[] DEFAULT '{}') RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT decode('*' || cardinality(parts)::text || E'\r\n', 'escape') || coalesce(string_agg(part, '' ORDER BY nth), '')
  FROM unnest(parts) WITH ORDINALITY AS each(part, nth)
$$;

-- Return the reply that lists some values.
CREATE FUNCTION fn.answer(VARIADIC parts bytea[] DEFAULT '{}') RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT decode('*' || cardinality(parts)::text || E'\r\n', 'escape')
    || coalesce(string_agg(fn.reply(part), '' ORDER BY nth), '')
  FROM unnest(parts) WITH ORDINALITY AS each(part, nth)
$$;

-- Return the reply that refuses a call or an item.
CREATE FUNCTION fn.failure(code text, VARIADIC details bytea[] DEFAULT '{}') RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.answer(VARIADIC ARRAY['error'::bytea, fn.bytes(code)] || details)
$$;

-- The context of one call -------------------------------------------------------------------------------------------

-- What a call notes until fn.flush. Wakes and the first due moment are notes of fn.put_all.
CREATE TYPE fn.context AS (
  p smallint, now bigint, is_real boolean, feed_age bigint,
  work double precision,       -- what is left of the work budget; a command counts as 1, and so do 8 KiB
  ended int,                   -- executions that ended
  removals int,                -- entries of the retention index that were handled
  wakes int[],                 -- a class id for each execution that became ready
  wakes_elsewhere int[],       -- a class id of another partition for each execution that a quota lets begin
  new_in bytea[],              -- lanes with new classes
  announced boolean, watch_ended boolean,
  first_due bigint, first_count int,  -- the first due moment that was noted, and how many entries have it
  passed int, is_cut_short boolean, has_progressed boolean,
  collects boolean, ends bytea[],     -- whether ended executions are collected, and the rows of those
  flows uuid[],                       -- the flows that the call holds
  jobs text[], places bytea[],        -- what is caused to members of flows, and from which place on
  settles uuid[]                      -- the flows that may have ended
);

-- An edge in the order in which a call resolves edges.
CREATE TYPE fn.link AS (nth bigint, id bytea);

-- What a page of edges came to: how many there were, whose and which the last was; the groups that changed their state, the
-- state and the upstream execution that decided it, and whether others are cancelled; and the members whose groups are damaged.
CREATE TYPE fn.resolved AS (
  count bigint, last_nth bigint, last_id bytea, downs uuid[], states text[], deciders uuid[], cancels boolean[], damaged uuid[]
);

-- What a function that handles many things returns: the context, how many it handled, and replies.
CREATE TYPE fn.batch AS (c fn.context, count bigint, items bytea[], ids bytea[]);

-- A record that was looked for: the reply to give if it cannot be used; else the record as it was found, and as it is now.
CREATE TYPE fn.found AS (c fn.context, failure bytea, was db.executions, x db.executions);

-- Where the executions of a class belong, and whether it has gates; no ids if its lane is full, or if the failure says that one of
-- its gates does not exist.
CREATE TYPE fn.home AS (c fn.context, class_id int, lane_id int, gated boolean, failure bytea);

-- A lane as a claim asks for it. `stale` is true if its classes are other than those that the caller knows, `gated` if one of them
-- has gates.
CREATE TYPE fn.lane AS (name bytea, most int, classes int[], paused boolean, stale boolean, gated boolean);

-- A lease, with everything that is the same for all executions of one claim.
CREATE TYPE fn.lease AS (id bytea, holder bytea, topic bytea, ttl bigint);

-- A place in the order of ready executions, and a page of these: the last place that was read; of those that could be locked the
-- ids, what a worker gets of each plain one or null, and how many commands its bytes count as; and the records of the others.
CREATE TYPE fn.place AS (ready bigint, uuid uuid);
CREATE TYPE fn.page AS (last fn.place, ids uuid[], items bytea[], sizes double precision[], records db.executions[]);

-- A leaf of a condition: it is met once it has counted `needed` signals, waitpoints or sources.
CREATE TYPE fn.leaf AS (needed int, kind bytea, name bytea, names bytea[]);

-- A waitpoint as it is stored; its state (new, reopened, pending, active, closed), why it closed, and whether for good.
CREATE TYPE fn.waitpoint AS (
  id bytea, name bytea, kid bytea, created bytea, expires bytea, activated bytea, suspension bytea, life bytea, first bytea,
  further bytea[], shown bytea, state text, why bytea, for_good boolean
);

-- A signal: the parts of its head in their order, its payload and its idempotency key.
CREATE TYPE fn.signal AS (
  id bytea, waitpoint bytea, waitpoint_name bytea, name bytea, category bytea, source_type bytea, source bytea,
  accepted bytea, correlation bytea, effect bytea, call bytea, payload bytea, key bytea
);

-- The stream of an attempt as it is stored, and what an append changes.
CREATE TYPE fn.stream AS (
  attempt bytea, state bytea[], last bytea, calls bytea, live bytea, deltas bytea, bound bigint, failure bytea,
  live_count int, delta_count int, document bytea, is_changed boolean
);

-- A frame to append: mode, head, payload, number or '', digest, pack{ttl in ms, least, most, alpha} of a live frame or ''.
CREATE TYPE fn.frame AS (mode bytea, head bytea, payload bytea, seq bytea, digest bytea, live bytea);

-- A budget: the reply to give if it cannot be used; else its address, the parts of its entry, its counters, its limits, when
-- it was to be reset when it was loaded, and the answer to a report.
CREATE TYPE fn.budget AS (
  failure bytea, address bytea, parts bytea[], counted bytea[], used bigint[], reserved bigint[], limited bytea[],
  hards bigint[], softs bigint[], due_before bytea, answer bytea[],
  has_space boolean,  -- it may have more space than before, so executions that wait for it may go on
  was_full boolean    -- it was full when it was loaded
);

-- A use of a budget on behalf of the holder of an execution, which may be in another partition.
CREATE TYPE fn.usage AS (
  what bytea, address bytea, call_id bytea, key bytea, amounts bytea[], hold bigint, uuid uuid, partition bytea, score bigint
);

-- What a use of a budget came to: the context, the budget, the answer, or the failure.
CREATE TYPE fn.used AS (c fn.context, b fn.budget, answer bytea[], failure bytea);

-- Return the context of a call: its clock and its work budget. It is one statement, because every call begins with it.
CREATE FUNCTION fn.begin(partition int) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  c fn.context;
BEGIN
  SELECT partition::smallint,
    -- A clock that is set back a little is held until it has caught up; set back by more, the earlier time was wrong.
    coalesce(clock, CASE WHEN latest > real.ms AND latest - real.ms <= 60000 THEN latest ELSE real.ms END),
    clock IS NULL, coalesce(feed_age, fn.a_day()), 300::double precision, 0, 0, '{}'::int[], '{}'::int[],
    '{}'::bytea[], false, false,
    NULL::bigint, 0, 0, false, false, false, '{}'::bytea[], '{}'::uuid[], '{}'::text[], '{}'::bytea[], '{}'::uuid[]
    INTO c FROM (SELECT trunc(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS ms) AS real
    LEFT JOIN db.partitions ON p = partition;
  RETURN c;
END $$;

-- Let the commit of a call not wait for the disk, because what it changed may be lost with the server: row locks, or hints that
-- their readers give again after they have lost their connection.
CREATE FUNCTION fn.skip_flush() RETURNS void LANGUAGE sql AS $$ SELECT set_config('synchronous_commit', 'off', true) $$;

-- Return how many things of `commands` commands each a share of the remaining budget allows: at least 1, at most `most`.
CREATE FUNCTION fn.allowed(c fn.context, most bigint, commands int, share double precision) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT least(most, greatest(1, trunc(c.work * share / commands)::bigint))
$$;

-- Return how many commands the bytes of some values count as.
CREATE FUNCTION fn.weight(VARIADIC parts bytea[]) RETURNS double precision LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce(sum(octet_length(part)), 0) / 8192.0::double precision FROM unnest(parts) AS part
$$;

-- Return the same for each item of a call, whose items have `width` arguments.
CREATE FUNCTION fn.sizes(args bytea[], width int) RETURNS double precision[] LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  sizes double precision[] := '{}';
  size int := 0;
BEGIN
  FOR i IN 1 .. cardinality(args) LOOP
    size := size + octet_length(args[i]);
    IF i % width = 0 THEN
      sizes := sizes || size / 8192.0::double precision; size := 0;
    END IF;
  END LOOP;
  RETURN sizes;
END $$;

-- Remembered calls --------------------------------------------------------------------------------------------------

-- Return what a call was answered according to a memory, or null if the call is new.
CREATE FUNCTION fn.recall(memory bytea, call_id bytea) RETURNS bytea[] LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  parts bytea[] := coalesce(fn.unpack(coalesce(memory, '')), '{}');
BEGIN
  FOR i IN 1 .. cardinality(parts) - 1 BY 2 LOOP
    IF parts[i] = call_id THEN
      RETURN fn.unpack(parts[i + 1]);
    END IF;
  END LOOP;
  RETURN NULL;
END $$;

-- Return the reply that a call was given before, or null if the call is new.
CREATE FUNCTION fn.reply_before(memory bytea, call_id bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.answer(VARIADIC before) FROM fn.recall(memory, call_id) AS before WHERE before IS NOT NULL
$$;

-- Return a memory with one more call, without the oldest call if it is full. A damaged memory starts empty.
CREATE FUNCTION fn.remember(memory bytea, call_id bytea, VARIADIC answer bytea[]) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  parts bytea[] := coalesce(fn.unpack(coalesce(memory, '')), '{}');
BEGIN
  IF cardinality(parts) % 2 = 1 THEN
    parts := '{}';
  END IF;
  WHILE cardinality(parts) >= 16 LOOP
    parts := parts[3:];
  END LOOP;
  RETURN fn.pack(VARIADIC parts || call_id || fn.pack(VARIADIC answer));
END $$;

-- Return whether a call removed something. The partition remembers it, since a removed record cannot.
CREATE FUNCTION fn.was_removed(c fn.context, call_id bytea) RETURNS boolean LANGUAGE sql AS $$
  SELECT fn.recall((SELECT removed FROM db.partitions WHERE p = c.p), call_id) IS NOT NULL
$$;

CREATE FUNCTION fn.remember_removal(c fn.context, call_id bytea) RETURNS void LANGUAGE sql AS $$
  UPDATE db.partitions SET removed = fn.remember(removed, call_id, 'removed') WHERE p = c.p
$$;

-- Note that something other than an execution has to be looked at.
CREATE FUNCTION fn.note_entry(c fn.context, of_kind text, of_member bytea, moment bigint) RETURNS void LANGUAGE sql AS $$
  INSERT INTO db.entries (p, due_in, kind, member, due) VALUES (c.p, 'r', of_kind, of_member, moment)
  ON CONFLICT (p, due_in, kind, member) DO UPDATE SET due = excluded.due WHERE db.entries.due <> excluded.due
$$;

-- Note that something other than an execution is due at a moment, or not at all if that is null, and that waiting workers may
-- have to look sooner.
CREATE FUNCTION fn.note_due(c fn.context, of_kind text, of_member bytea, moment bigint) RETURNS fn.context
LANGUAGE plpgsql AS $$
BEGIN
  IF moment IS NULL THEN
    DELETE FROM db.entries WHERE p = c.p AND due_in = 'd' AND kind = of_kind AND member = of_member;
    RETURN c;
  END IF;
  INSERT INTO db.entries (p, due_in, kind, member, due) VALUES (c.p, 'd', of_kind, of_member, moment)
    ON CONFLICT (p, due_in, kind, member) DO UPDATE SET due = excluded.due WHERE db.entries.due <> excluded.due;
  RETURN fn.note_moment(c, moment, 1);
END $$;

-- Note that `count` entries are due at a moment, so that waiting workers may have to look sooner.
CREATE FUNCTION fn.note_moment(c fn.context, moment bigint, count int) RETURNS fn.context LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  IF moment <= c.now + fn.fallback() AND moment <= coalesce(c.first_due, moment) THEN
    c.first_count := count + CASE WHEN moment = c.first_due THEN c.first_count ELSE 0 END;
    c.first_due := moment;
  END IF;
  RETURN c;
END $$;

CREATE FUNCTION fn.drop_entry(c fn.context, of_kind text, of_member bytea) RETURNS void LANGUAGE sql AS $$
  DELETE FROM db.entries WHERE p = c.p AND due_in = 'r' AND kind = of_kind AND member = of_member
$$;

-- Topics ------------------------------------------------------------------------------------------------------------

-- Return whether a connection listens on a topic. Listeners share an advisory lock, which ends with their connection.
CREATE FUNCTION fn.is_heard(topic text) RETURNS boolean LANGUAGE sql AS $$
  SELECT NOT pg_try_advisory_xact_lock(hashtextextended('@SCHEMA@' || ':' || topic, 1))
$$;

-- Send a message to a topic when this transaction commits. The channel of a topic is its name behind the schema's.
CREATE FUNCTION fn.tell(topic text, message text) RETURNS void LANGUAGE sql AS $$
  SELECT pg_notify('@SCHEMA@' || ':' || topic, message)
$$;
