-- How the heads of the ready work are found and locked.

-- Return a place before all others.
CREATE FUNCTION fn.first_place() RETURNS fn.place LANGUAGE sql IMMUTABLE AS $$
  SELECT (-9223372036854775808, '00000000-0000-0000-0000-000000000000')::fn.place
$$;

-- Lock and return the heads of some classes in their common order, behind a place. The heads are picked before any is locked, so
-- no row is locked that is not returned. Rows that another call has locked are passed over: only at the end is `last` null. Without
-- a lease, no execution counts as plain.
CREATE FUNCTION fn.heads(
  c fn.context, classes int[], behind fn.place, most bigint, is_bounded boolean, lease fn.lease
) RETURNS fn.page LANGUAGE plpgsql AS $$
DECLARE
  heads uuid[];
  page fn.page;
BEGIN
  WITH head AS MATERIALIZED (
    SELECT first.ready, first.uuid FROM unnest(classes) AS of_class, LATERAL (
      SELECT CASE WHEN is_bounded THEN (fn.bound(c, of_class)).ready END AS least OFFSET 0
    ) AS bound, LATERAL (
      SELECT e.ready, e.uuid FROM db.executions AS e
        WHERE p = c.p AND class_id = of_class AND ready IS NOT NULL AND ready <= fn.last_ready(c) AND (ready, uuid) > (
          greatest(behind.ready, least),
          CASE WHEN least > behind.ready THEN '00000000-0000-0000-0000-000000000000' ELSE behind.uuid END
        )
        ORDER BY e.ready, e.uuid LIMIT most
    ) AS first ORDER BY first.ready, first.uuid LIMIT most
  )
  SELECT ARRAY(SELECT uuid FROM head), (SELECT (ready, uuid)::fn.place FROM head ORDER BY ready DESC, uuid DESC LIMIT 1)
    INTO heads, page.last;
  IF cardinality(heads) = 0 THEN
    page.ids := '{}';
    RETURN page;
  END IF;
  page := fn.lock_ready(c, page, heads, lease);
  IF array_position(page.items, NULL) IS NOT NULL THEN
    page.records := ARRAY(
      SELECT e FROM db.executions AS e WHERE p = c.p AND uuid = ANY (
        ARRAY(SELECT id FROM unnest(page.ids, page.items) AS each(id, item) WHERE item IS NULL)
      ) ORDER BY ready, uuid
    );
  END IF;
  RETURN page;
END $$;

-- Lock ready executions that no other call has locked, and add them to a page.
CREATE FUNCTION fn.lock_ready(c fn.context, page fn.page, heads uuid[], lease fn.lease) RETURNS fn.page LANGUAGE plpgsql AS $$
DECLARE
  held bytea := fn.reply(fn.first_fence(lease)) || fn.reply(fn.first_attempt(c)) || fn.reply(fn.bytes(c.now + lease.ttl));
BEGIN
  WITH kind AS MATERIALIZED (
    SELECT k.id, k.class, first.policy, fn.bytes(c.now + fn.policy_timeout(first.policy)) AS timeout_at FROM (
      SELECT DISTINCT ON (class_id) class_id, policy FROM db.executions WHERE p = c.p AND uuid = ANY (heads) ORDER BY class_id
    ) AS first JOIN db.classes AS k ON k.id = first.class_id WHERE fn.is_class(k.class) AND fn.is_plain_policy(first.policy)
  ), locked AS MATERIALIZED (
    SELECT e.uuid, coalesce(octet_length(e.payload), 0) / 8192.0::double precision AS size, CASE
      WHEN fn.is_plain_ready(e, kind.class, kind.policy) THEN fn.claimed_core(e, held) || CASE
        WHEN coalesce(e.tags, e.headers, kind.timeout_at) IS NULL THEN fn.reply(NULL::bytea)
        ELSE fn.replies(fn.reply(fn.further_fields(e, kind.timeout_at)), fn.answer(VARIADIC '{}')) END
      END AS item
      FROM db.executions AS e LEFT JOIN kind ON lease.id IS NOT NULL AND kind.id = e.class_id
      WHERE e.p = c.p AND e.uuid = ANY (heads) AND e.ready IS NOT NULL ORDER BY e.ready, e.uuid FOR UPDATE OF e SKIP LOCKED
  )
  SELECT ARRAY(SELECT uuid FROM locked), ARRAY(SELECT item FROM locked), ARRAY(SELECT size FROM locked)
    INTO page.ids, page.items, page.sizes;
  RETURN page;
END $$;

-- Bounds ------------------------------------------------------------------------------------------------------------
--
-- While another session holds a snapshot, index entries of rows that were claimed since stay, and every search walks past them.
-- So a claim whose search took long notes the place at which it found work in each class, and the next searches begin there.
-- A bound is a hint: it is dropped after a second, when work becomes ready before it, and by a search that finds nothing.

CREATE TABLE fn.bounds (
  p smallint NOT NULL, class_id int NOT NULL, turn bigint GENERATED ALWAYS AS IDENTITY,
  ready bigint,           -- null once work became ready before it
  since bigint NOT NULL,  -- when the first search of its kind began
  PRIMARY KEY (p, class_id, turn)
);

CREATE FUNCTION fn.a_long_search() RETURNS interval LANGUAGE sql IMMUTABLE AS $$ SELECT interval '2 ms' $$;

CREATE FUNCTION fn.has_bounds(c fn.context) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  RETURN EXISTS (SELECT FROM fn.bounds WHERE p = c.p);
END $$;

-- Return the bound of a class; its parts are null if it has none.
CREATE FUNCTION fn.bound(c fn.context, of_class int) RETURNS fn.bounds LANGUAGE plpgsql AS $$
DECLARE
  found fn.bounds;
BEGIN
  SELECT * INTO found FROM fn.bounds WHERE p = c.p AND class_id = of_class ORDER BY turn DESC LIMIT 1;
  IF found.ready IS NULL OR found.since <= c.now - 1000 THEN
    RETURN NULL;
  END IF;
  RETURN found;
END $$;

-- Note the places at which a search found work.
CREATE FUNCTION fn.keep_bounds(c fn.context, ids uuid[], is_bounded boolean) RETURNS void LANGUAGE sql AS $$
  INSERT INTO fn.bounds (p, class_id, ready, since)
    SELECT c.p, class_id, min(ready), coalesce(CASE WHEN is_bounded THEN (fn.bound(c, class_id)).since END, c.now)
    FROM db.executions WHERE p = c.p AND uuid = ANY (ids) AND ready IS NOT NULL GROUP BY class_id
$$;

-- Drop the bounds that records which have become ready lie before.
CREATE FUNCTION fn.drop_bounds(c fn.context, records db.executions[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF fn.has_bounds(c) THEN
    INSERT INTO fn.bounds (p, class_id, since)
      SELECT c.p, class_id, c.now FROM (
        SELECT class_id, min(ready) AS ready FROM unnest(records) WHERE ready IS NOT NULL GROUP BY class_id
      ) AS became WHERE ready < (fn.bound(c, class_id)).ready;
  END IF;
END $$;

-- Remove the bounds that are too old to be used.
CREATE FUNCTION fn.forget_bounds(c fn.context) RETURNS void LANGUAGE sql AS $$
  DELETE FROM fn.bounds WHERE p = c.p AND since < c.now - 60000
$$;
