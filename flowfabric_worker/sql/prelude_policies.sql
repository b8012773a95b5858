-- The policy of an execution, as its record stores it: its values, each followed by '|', in this order: max retries,
-- backoff, initial, maximum, multiplier, jitter, categories, timeout, max reclaims, max replays, retention, dedup window,
-- execution deadline, and 's' if its key is free once it has begun. Further values, which a newer release wrote, are ignored.

-- Return one value of a stored policy, or null.
CREATE FUNCTION fn.of_policy(policy bytea, place int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT nullif(split_part(encode(policy, 'escape'), '|', place), '')
$$;

CREATE FUNCTION fn.policy_timeout(policy bytea) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.of_policy(policy, 8)::bigint
$$;

-- Return whether a stored policy can be used.
CREATE FUNCTION fn.is_policy(policy bytea) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT policy = '' OR (
    encode(policy, 'escape') ~ '^([0-9]{0,15}[|])([^|]*[|])([0-9]{0,15}[|]){2}([^|]*[|]){3}([0-9]{0,15}[|]){6}([^|]*[|])*$'
    AND (
      fn.of_policy(policy, 1) IS NULL
      OR coalesce(
        fn.of_policy(policy, 2) IN ('fixed', 'exponential')
        AND fn.of_policy(policy, 3) IS NOT NULL
        AND fn.of_policy(policy, 4) IS NOT NULL
        AND fn.of_policy(policy, 5) ~ '^[0-9]+([.][0-9]+)?(e[+-]?[0-9]{1,3})?$',
        false
      )
    )
  )
$$;

-- Return the delay in ms before the next attempt. `draw` is a number in [0, 1) for the jitter.
CREATE FUNCTION fn.backoff(policy bytea, retry_count bigint, draw double precision) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  delay double precision := fn.of_policy(policy, 3);
  maximum double precision := fn.of_policy(policy, 4);
  multiplier double precision := fn.of_policy(policy, 5);
BEGIN
  IF fn.of_policy(policy, 2) = 'exponential' AND delay > 0 THEN
    -- A power that a number cannot hold is above every maximum.
    IF ln(delay) + retry_count * ln(greatest(multiplier, 1e-300)) > 600 THEN
      delay := maximum;
    ELSE
      delay := least(delay * power(multiplier, retry_count), maximum);
    END IF;
  END IF;
  IF fn.of_policy(policy, 6) = '1' THEN
    delay := delay / 2 + draw * delay / 2;
  END IF;
  RETURN trunc(delay);
END $$;

-- Return whether a failure is tried again. Without a number of retries, a failure that asks for a retry gets up to 3.
CREATE FUNCTION fn.may_retry(policy bytea, class text, retry_count bigint, asked boolean) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
  SELECT class NOT IN ('permanent', 'cancelled')
    AND retry_count < coalesce(fn.of_policy(policy, 1)::bigint, CASE WHEN asked THEN 3 ELSE 0 END)
    AND (fn.of_policy(policy, 7) IS NULL OR class = ANY (string_to_array(fn.of_policy(policy, 7), ',')))
$$;
