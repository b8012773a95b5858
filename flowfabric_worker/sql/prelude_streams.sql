-- Streams as the other areas see them: why the stream of an attempt is closed, and which readers are woken.

-- Return whether the id of one frame is older than that of another. The numbers in ids have up to 20 digits.
CREATE FUNCTION fn.id_ms(id bytea) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT least(split_part(encode(id, 'escape'), '-', 1)::numeric, 9223372036854775807)::bigint
$$;
CREATE FUNCTION fn.id_n(id bytea) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT least(split_part(encode(id, 'escape'), '-', 2)::numeric, 9223372036854775807)::bigint
$$;
CREATE FUNCTION fn.is_older(id bytea, other bytea) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT (fn.id_ms(id), fn.id_n(id)) < (fn.id_ms(other), fn.id_n(other))
$$;

-- Wake the processes that wait for frames of an execution, or for the end of an attempt. A process that reads on and finds
-- nothing registers again.
CREATE FUNCTION fn.wake_tails(c fn.context, x db.executions) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  parts bytea[];
BEGIN
  IF x.stream IS NULL THEN
    RETURN;
  END IF;
  SELECT fn.unpack(readers) INTO parts FROM db.streams WHERE p = c.p AND uuid = x.uuid;
  IF parts IS NULL THEN
    RETURN;
  END IF;
  UPDATE db.streams SET readers = NULL WHERE p = c.p AND uuid = x.uuid;
  FOR i IN 1 .. cardinality(parts) - 1 BY 2 LOOP
    IF fn.is_whole(parts[i + 1]) AND fn.num(parts[i + 1]) > c.now THEN
      PERFORM fn.tell(convert_from(parts[i], 'UTF8'), format('frames {fp:%s}:%s', c.p, x.uuid));
    END IF;
  END LOOP;
END $$;

-- Return why the end of an execution closes a stream.
CREATE FUNCTION fn.reason_of_end(x db.executions) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE substring(fn.ascii(x.state) FROM 5 FOR 1)
    WHEN 's' THEN 'attempt_success' WHEN 'c' THEN 'attempt_cancelled' WHEN 'k' THEN 'attempt_cancelled' WHEN 'e' THEN 'expired'
    ELSE CASE WHEN x.error_class = 'timeout' THEN 'timed_out' ELSE 'attempt_failure' END END
$$;

-- Return why the stream of a past attempt is closed, and since when. The reason is '' if the attempt is no longer among those
-- that the record keeps.
CREATE FUNCTION fn.why_past_closed(x db.executions, of_attempt bytea) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
  WITH past AS (
    SELECT fn.unpack(entry) AS parts, nth FROM unnest(fn.unpack(coalesce(x.attempts, ''))) WITH ORDINALITY AS each(entry, nth)
  )
  SELECT coalesce(
    (SELECT ARRAY[coalesce(fn.ascii(parts[9]), 'attempt_failure'), fn.ascii(parts[5])] FROM past
      WHERE parts[1] = of_attempt ORDER BY nth DESC LIMIT 1),
    ARRAY['', coalesce((SELECT fn.ascii(parts[4]) FROM past ORDER BY nth LIMIT 1), '0')]
  )
$$;

-- Return why the stream of an attempt is closed, and since when; null while it is open. The stream of an attempt that has not
-- begun is closed by the end of the execution.
CREATE FUNCTION fn.why_attempt_closed(x db.executions, of_attempt bytea) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN present <> '' AND (fn.num(of_attempt) < present::bigint OR of_attempt = fn.bytes(present)
      AND fn.of_attempt(x.attempt, 4) = '') THEN fn.why_past_closed(x, of_attempt)
    WHEN of_attempt = fn.bytes(present) THEN CASE
      WHEN fn.of_attempt(x.attempt, 5) <> ''
        THEN ARRAY[coalesce(fn.ascii(x.closed), 'attempt_failure'), fn.of_attempt(x.attempt, 5)]
      WHEN x.state LIKE 't%' THEN ARRAY[fn.reason_of_end(x), fn.ascii(x.ended)] END
    WHEN x.state LIKE 't%' THEN ARRAY[fn.reason_of_end(x), fn.ascii(x.ended)]
  END FROM (SELECT coalesce(fn.of_attempt(x.attempt, 1), '') AS present) AS now
$$;
