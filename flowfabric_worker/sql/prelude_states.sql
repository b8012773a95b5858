-- The state of an execution: six letters for its six dimensions, and the public state.
--
-- phase r runnable, a active, s suspended, t terminal; ownership u unowned, l leased, x lapsed, v revoked; eligibility e
-- now, t at a time, d dependencies, b budget, q quota, r route, l lane, o operator, n none; the reason for blocking;
-- outcome n none, s success, f failed, c cancelled, e expired, k skipped; attempt n none, f first, r running,
-- i interrupted, t retry, p replay, z terminal.
--
-- States that wait for an attempt, without the last letter: ruewn ready, rutdn delayed, rutbn in back-off.

CREATE FUNCTION fn.word(letter text, VARIADIC words text[]) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce((SELECT substring(word FROM 3) FROM unnest(words) AS word WHERE left(word, 1) = letter), letter)
$$;

CREATE FUNCTION fn.phase(state text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.word(left(state, 1), 'r runnable', 'a active', 's suspended', 't terminal', 'b submitted')
$$;

CREATE FUNCTION fn.outcome(state text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.word(substring(state FROM 5 FOR 1), 'n none', 's success', 'f failed', 'c cancelled', 'e expired', 'k skipped')
$$;

-- Derive the public state from the six dimensions. It is never stored in a record.
CREATE FUNCTION fn.public_state(state text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN state LIKE 't%' THEN CASE substring(state FROM 5 FOR 1)
      WHEN 's' THEN 'completed' WHEN 'c' THEN 'cancelled' WHEN 'e' THEN 'expired' WHEN 'k' THEN 'skipped' ELSE 'failed' END
    WHEN state LIKE 's%' THEN 'suspended'
    WHEN state LIKE 'a%' THEN 'active'
    ELSE CASE substring(state FROM 3 FOR 1)
      WHEN 't' THEN 'delayed' WHEN 'd' THEN 'waiting_children' WHEN 'b' THEN 'rate_limited' WHEN 'q' THEN 'rate_limited'
      ELSE 'waiting' END
  END
$$;

CREATE FUNCTION fn.is_claimable(state text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT state LIKE 'r_e%' OR state LIKE '_x%' OR state LIKE '_v%'
$$;

CREATE FUNCTION fn.is_leased(state text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT state LIKE '_l%' $$;

-- Return whether a newer release wrote a state, so that this release must not touch the execution.
CREATE FUNCTION fn.is_foreign(state text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT state !~ '^[rast]' $$;

-- Return the state of an execution that ended. Without an attempt it keeps the kind of attempt that it waited for.
CREATE FUNCTION fn.ended_state(outcome text, x db.executions) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE outcome
    WHEN 'success' THEN 'tunns'::bytea WHEN 'failed' THEN 'tunnf' WHEN 'cancelled' THEN 'tunnc' WHEN 'expired' THEN 'tunne'
    ELSE 'tunnk' END
    || CASE WHEN x.attempt IS NULL THEN substring(x.state FROM 6) ELSE 'z'::bytea END
$$;
