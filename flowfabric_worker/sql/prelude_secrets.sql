-- The secrets that sign waitpoint tokens. Tokens are signed and checked in Python; the functions only say whether the
-- secret that was used still holds.

-- Return secret, fingerprint and until of a stored secret, or null if it is damaged.
CREATE FUNCTION fn.secret_parts(stored bytea) RETURNS bytea[] LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN cardinality(parts) >= 3 AND fn.ascii(parts[1]) ~ '^([0-9a-fA-F]{2})+$'
    AND (parts[3] = '' OR fn.is_whole(parts[3])) THEN parts END
  FROM fn.unpack(stored) AS parts
$$;

-- Return secret, fingerprint and until of a kid, or null if there is none or it is damaged.
CREATE FUNCTION fn.secret_of(c fn.context, of_kid bytea) RETURNS bytea[] LANGUAGE sql AS $$
  SELECT fn.secret_parts(secret) FROM db.secrets WHERE p = c.p AND kid = of_kid
$$;

-- Return whether the grace of a secret is over, or there is no such secret. It is over at its last millisecond.
CREATE FUNCTION fn.is_over(c fn.context, secret bytea[]) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT secret IS NULL OR secret[3] <> '' AND fn.num(secret[3]) <= c.now
$$;

-- Return whether the secret of a kid and fingerprint is the one that signs.
CREATE FUNCTION fn.is_signing(c fn.context, of_kid bytea, fingerprint bytea) RETURNS boolean LANGUAGE sql AS $$
  SELECT coalesce((fn.secret_of(c, of_kid))[2] = fingerprint AND kid = of_kid, false) FROM db.partitions WHERE p = c.p
$$;

-- Sign with a secret from now on; the one before is valid until the end of its grace. Secrets that have expired or are
-- damaged are removed. Return how many were.
CREATE FUNCTION fn.promote(c fn.context, of_kid bytea, of_secret bytea, fingerprint bytea, grace bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
  gone bigint;
  previous bytea := (SELECT kid FROM db.partitions WHERE p = c.p);
  old bytea[];
BEGIN
  DELETE FROM db.secrets WHERE p = c.p AND fn.is_over(c, fn.secret_parts(secret));
  GET DIAGNOSTICS gone = ROW_COUNT;
  old := fn.secret_of(c, previous);
  UPDATE db.secrets SET secret = fn.pack(old[1], old[2], fn.bytes(c.now + grace))
    WHERE p = c.p AND kid = previous AND old IS NOT NULL;
  INSERT INTO db.secrets (p, kid, secret) VALUES (c.p, of_kid, fn.pack(of_secret, fingerprint, ''))
    ON CONFLICT (p, kid) DO UPDATE SET secret = excluded.secret;
  UPDATE db.partitions SET kid = of_kid WHERE p = c.p;
  RETURN gone;
END $$;

-- Store a secret that signs in a partition, unless it has one that is whole.
CREATE FUNCTION fn.first_secret(c fn.context, of_kid bytea, of_secret bytea, fingerprint bytea) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  known bytea[] := fn.secret_of(c, of_kid);
BEGIN
  IF fn.secret_of(c, (SELECT kid FROM db.partitions WHERE p = c.p)) IS NOT NULL THEN
    RETURN;
  ELSIF NOT fn.is_over(c, known) THEN
    of_secret := known[1]; fingerprint := known[2];
  END IF;
  PERFORM fn.promote(c, of_kid, of_secret, fingerprint, 0);
END $$;
