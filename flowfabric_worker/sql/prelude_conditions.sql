-- Resume conditions, counted leaf by leaf. `evaluate` in engine/conditions.py defines what a condition means, and a property
-- test compares the two.
--
-- A condition comes as pack{word, ...} in postfix order, as engine/conditions.py writes it. Conditions are joined by
-- all_of alone, at any depth, so one is met when all of its leaves are. A leaf is met for good once it has counted what it
-- needs: a signal adds to the leaves that it matches, and no signal is ever looked at again.

-- Raise the error that a stored suspension is damaged.
CREATE FUNCTION fn.damaged() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'a stored suspension is damaged' USING ERRCODE = 'data_exception';
END $$;

-- Return texts that must be packed well.
CREATE FUNCTION fn.unpacked(packed bytea) RETURNS bytea[] LANGUAGE plpgsql AS $$
DECLARE
  parts bytea[] := fn.unpack(packed);
BEGIN
  IF parts IS NULL THEN
    PERFORM fn.damaged();
  END IF;
  RETURN parts;
END $$;

-- Return whether a stored text may be a word of a newer release; any other text is damage.
CREATE FUNCTION fn.is_word(word bytea) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce(fn.ascii(word) ~ '^[a-z][a-z_]*$', false)
$$;

-- Return the leaves of a condition. What no signal can meet is a leaf that matches nothing; a word that only a newer release
-- knows is a leaf of the kind 'foreign', behind which nothing is read.
CREATE FUNCTION fn.leaves(condition bytea) RETURNS fn.leaf[] LANGUAGE plpgsql AS $$
DECLARE
  words bytea[] := fn.unpacked(condition);
  leaves fn.leaf[] := '{}';
  at int := 1;
  count int;
BEGIN
  WHILE at <= cardinality(words) LOOP
    IF words[at] = 'all_of' THEN
      at := at + 2;
    ELSIF words[at] IN ('operator_only', 'timeout_only') THEN
      leaves := leaves || ROW(1, 'signals', '', '{}')::fn.leaf;
      at := at + 1;
    ELSIF words[at] = 'single' THEN
      leaves := leaves || ROW(1, 'signals', words[at + 2], words[at + 1 : at + 1])::fn.leaf;
      at := at + 3;
    ELSIF words[at] <> 'count' THEN
      IF NOT fn.is_word(words[at]) THEN
        PERFORM fn.damaged();
      END IF;
      RETURN leaves || ROW(1, 'foreign', '', '{}')::fn.leaf;
    ELSE
      count := fn.num(words[at + 4]);
      IF count IS NULL THEN
        PERFORM fn.damaged();
      END IF;
      leaves := leaves || ROW(fn.num(words[at + 1]), words[at + 2], words[at + 3], words[at + 5 : at + 4 + count])::fn.leaf;
      at := at + 5 + count;
    END IF;
  END LOOP;
  RETURN leaves;
END $$;

-- Return the counts of some leaves from their stored form, '<count>,<count>,...', which is '' before the first signal.
CREATE FUNCTION fn.read_counts(stored bytea, leaves fn.leaf[]) RETURNS int[] LANGUAGE sql IMMUTABLE AS $$
  SELECT ARRAY(
    SELECT coalesce(substring(split_part(fn.ascii(stored), ',', i) FROM '[0-9]{1,9}')::int, 0)
    FROM generate_series(1, cardinality(leaves)) AS i ORDER BY i
  )
$$;

CREATE FUNCTION fn.counts_text(counts int[]) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.bytes(array_to_string(counts, ','))
$$;

-- Return whether a signal has a name that a leaf takes. A leaf named by a tab takes the signals named as their waitpoint, and
-- decisions; one named by a line feed takes decisions only.
CREATE FUNCTION fn.has_name(leaf fn.leaf, signal fn.signal) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE leaf.name
    WHEN '\x09' THEN signal.name = signal.waitpoint_name OR signal.category = 'approval'
    WHEN '\x0a' THEN signal.category = 'approval'
    ELSE leaf.name IN ('', signal.name) END
$$;

-- Add a signal to the counts of the leaves that it matches; return the counts, or null if it matched none.
CREATE FUNCTION fn.count_signal(
  c fn.context, execution uuid, suspension int, leaves fn.leaf[], counts int[], signal fn.signal
) RETURNS int[] LANGUAGE plpgsql AS $$
DECLARE
  leaf fn.leaf;
  has_matched boolean := false;
BEGIN
  FOR i IN 1 .. cardinality(leaves) LOOP
    leaf := leaves[i];
    IF signal.waitpoint_name = ANY (leaf.names) AND fn.has_name(leaf, signal) THEN
      has_matched := true;
      IF counts[i] < leaf.needed THEN
        IF leaf.kind IN ('waitpoints', 'sources') THEN
          INSERT INTO db.counted (p, uuid, number, leaf, what) VALUES (
            c.p, execution, suspension, i,
            CASE leaf.kind WHEN 'sources' THEN fn.pack(signal.source_type, signal.source) ELSE signal.waitpoint_name END
          ) ON CONFLICT DO NOTHING;
          CONTINUE WHEN NOT FOUND;
        END IF;
        counts[i] := counts[i] + 1;
      END IF;
    END IF;
  END LOOP;
  RETURN CASE WHEN has_matched THEN counts END;
END $$;

-- Return whether counts meet a condition.
CREATE FUNCTION fn.is_met(leaves fn.leaf[], counts int[]) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce(bool_and(counts[i] >= (leaves[i]).needed), true) FROM generate_series(1, cardinality(leaves)) AS i
$$;
