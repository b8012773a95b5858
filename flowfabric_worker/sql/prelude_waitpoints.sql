-- Waitpoints: how they are stored, and whether each is pending, active or closed.

-- When a waitpoint is open until its suspension decides.
CREATE FUNCTION fn.undecided() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 9223372036854775807';

-- Return a waitpoint of an execution, or null.
CREATE FUNCTION fn.waitpoint(c fn.context, execution uuid, of_id bytea) RETURNS fn.waitpoint LANGUAGE plpgsql AS $$
DECLARE
  w fn.waitpoint;
  stored bytea;
  parts bytea[];
BEGIN
  SELECT waitpoint INTO stored FROM db.waitpoints WHERE p = c.p AND uuid = execution AND id = of_id;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  parts := fn.unpacked(stored);
  IF cardinality(parts) < 8 THEN
    PERFORM fn.damaged();
  END IF;
  w.id := of_id; w.name := parts[1]; w.kid := parts[2]; w.created := parts[3]; w.expires := parts[4];
  w.activated := parts[5]; w.suspension := parts[6]; w.life := parts[7]; w.first := parts[8]; w.further := parts[9:];
  RETURN w;
END $$;

-- Write a waitpoint; `until` is when it closes if it is open, or null to leave that as it is. Parts that a newer release added
-- are kept.
CREATE FUNCTION fn.write_waitpoint(c fn.context, execution uuid, w fn.waitpoint, until bigint) RETURNS void
LANGUAGE sql AS $$
  INSERT INTO db.waitpoints AS known (p, uuid, id, name, waitpoint, open_until) VALUES (
    c.p, execution, w.id, w.name,
    fn.pack(VARIADIC ARRAY[w.name, w.kid, w.created, w.expires, w.activated, w.suspension, w.life, w.first] || w.further),
    until
  ) ON CONFLICT (p, uuid, id) DO UPDATE SET waitpoint = excluded.waitpoint,
    open_until = coalesce(excluded.open_until, known.open_until)
$$;

-- Return a waitpoint with its state: 'pending' or 'active'; or 'closed', the reason, and whether it is closed for good. A
-- waitpoint that closed with its execution, or expired before its suspension, is opened again when it is asked for.
CREATE FUNCTION fn.standing(c fn.context, execution uuid, w fn.waitpoint) RETURNS fn.waitpoint LANGUAGE plpgsql AS $$
DECLARE
  closing bytea[];
BEGIN
  w.state := 'pending'; w.for_good := false;
  IF w.suspension <> '' THEN
    SELECT fn.unpacked(closings.closing) INTO closing FROM db.closings
      WHERE p = c.p AND uuid = execution AND what = 's' || fn.ascii(w.suspension);
    w.state := CASE WHEN closing IS NULL THEN 'active' ELSE 'closed' END;
    w.why := closing[1]; w.for_good := coalesce(closing[2] = '1', false);
    RETURN w;
  END IF;
  SELECT fn.unpacked(closings.closing) INTO closing FROM db.closings
    WHERE p = c.p AND uuid = execution AND what = 'e' || fn.ascii(w.life);
  IF fn.num(w.expires) <= coalesce(fn.num(closing[2]), c.now) THEN
    w.state := 'closed'; w.why := 'expired';
  ELSIF closing IS NOT NULL THEN
    w.state := 'closed'; w.why := closing[1];
  END IF;
  RETURN w;
END $$;

-- Return how many waitpoints of an execution are open.
CREATE FUNCTION fn.count_open(c fn.context, execution uuid) RETURNS bigint LANGUAGE sql AS $$
  SELECT count(*) FROM db.waitpoints WHERE p = c.p AND uuid = execution AND open_until > c.now
$$;

-- Return the waitpoint that a call asks for by its name, with its state: 'new', 'reopened', or as fn.standing returns it. A
-- waitpoint that closed without an answer is opened again under its id. A waitpoint that a replay forgot is a new one.
CREATE FUNCTION fn.asked_for(c fn.context, execution uuid, of_name bytea, new_id bytea, of_kid bytea) RETURNS fn.waitpoint
LANGUAGE plpgsql AS $$
DECLARE
  w fn.waitpoint;
  known bytea := (
    SELECT id FROM db.waitpoints WHERE p = c.p AND uuid = execution AND name = of_name ORDER BY turn DESC LIMIT 1
  );
  forgotten bigint := coalesce((SELECT waits.forgotten FROM db.waits WHERE p = c.p AND uuid = execution), 0);
  of_life bytea := coalesce(fn.bytes((SELECT life FROM db.waits WHERE p = c.p AND uuid = execution)::bigint), '0');
BEGIN
  IF known IS NOT NULL THEN
    w := fn.waitpoint(c, execution, known);
  END IF;
  IF known IS NULL OR fn.num(w.life) < forgotten THEN
    w.id := new_id; w.name := of_name; w.kid := of_kid; w.created := fn.bytes(c.now); w.expires := '';
    w.activated := ''; w.suspension := ''; w.life := of_life; w.first := ''; w.further := '{}'; w.shown := NULL;
    w.state := 'new';
    RETURN w;
  END IF;
  w := fn.standing(c, execution, w);
  IF w.state = 'closed' AND NOT w.for_good THEN
    w.life := of_life; w.suspension := ''; w.activated := ''; w.state := 'reopened';
  END IF;
  IF fn.is_over(c, fn.secret_of(c, w.kid)) THEN
    -- Its token is not valid any more, so a new one is signed.
    w.kid := of_kid;
  END IF;
  RETURN w;
END $$;

-- Return whether a waitpoint was made to show another document than a caller has. `of_shown` is '=' + document, or ''.
CREATE FUNCTION fn.shows_another(c fn.context, execution uuid, of_id bytea, of_shown bytea) RETURNS boolean LANGUAGE sql AS $$
  SELECT of_shown <> '' AND EXISTS (
    SELECT FROM db.waitpoints WHERE p = c.p AND uuid = execution AND id = of_id AND shown <> of_shown
  )
$$;

-- Keep the document that a waitpoint shows; the first one stands. Return whether this one is the first.
CREATE FUNCTION fn.show(c fn.context, execution uuid, of_id bytea, of_shown bytea) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  UPDATE db.waitpoints SET shown = of_shown
    WHERE p = c.p AND uuid = execution AND id = of_id AND shown IS NULL AND of_shown <> '';
  RETURN FOUND;
END $$;
