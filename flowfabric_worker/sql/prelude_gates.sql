-- The gates of claim classes: quotas and budgets, which limit how much work of their classes is handed out.
--
-- A gate is named by the letter of its kind and pack{namespace, id}. Whether it is closed follows from what it counts and from
-- the time, and is stored nowhere. A claim locks the gates of the classes that it asks for, in the order of their names, so that
-- what it reads of them stands until it commits. An end of a lease only removes a slot, and locks no gate.
--
-- An execution may keep a slot of a quota while no worker holds it. Its class then has one more part, '*' and the quota, and
-- does not have that quota as a gate: a full quota never holds back an execution that has a slot.

-- A gate: how many slots and attempts it has left, null for no limit; what stops the next execution, and until when if that
-- ends by itself; and what a claim notes: the classes that it asks for, who was handed out until when, how many attempts began.
CREATE TYPE fn.gate AS (
  name bytea, slots_left bigint, rate_left bigint, till bigint, is_for_run boolean, class_ids int[], holders uuid[],
  untils bigint[], began bigint
);

-- What a claim under gates returns: the context, the record, and the gates.
CREATE TYPE fn.passing AS (c fn.context, x db.executions, gates fn.gate[]);

CREATE FUNCTION fn.gate_name(letter bytea, namespace bytea, id bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT letter || fn.pack(namespace, id)
$$;

-- Return the quota of which the executions of a class have a slot, from the parts of the class, or null.
CREATE FUNCTION fn.held_in(parts bytea[]) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.gate_name('q', parts[1], substring(part FROM 2))
  FROM unnest(parts[7:]) WITH ORDINALITY AS each(part, nth) WHERE part LIKE '*%' ORDER BY nth LIMIT 1
$$;

-- Return the gates of a class from its parts, in the order in which they admit, or null if it has none.
CREATE FUNCTION fn.gates_in(parts bytea[]) RETURNS bytea[] LANGUAGE sql IMMUTABLE AS $$
  SELECT nullif(
    ARRAY(
      SELECT fn.gate_name('b', parts[1], budget)
      FROM unnest(fn.unpack(parts[5])) WITH ORDINALITY AS each(budget, nth) ORDER BY nth
    ) || CASE WHEN parts[6] <> '' AND fn.gate_name('q', parts[1], parts[6]) IS DISTINCT FROM fn.held_in(parts)
      THEN ARRAY[fn.gate_name('q', parts[1], parts[6])] ELSE '{}' END,
    '{}'
  )
$$;

-- State -------------------------------------------------------------------------------------------------------------

-- Return a gate. One of a kind that only a newer release knows admits nothing.
CREATE FUNCTION fn.read_gate(c fn.context, of_name bytea) RETURNS fn.gate LANGUAGE plpgsql AS $$
DECLARE
  gate fn.gate;
BEGIN
  IF of_name LIKE 'q%' THEN
    gate := fn.read_quota(c, substring(of_name FROM 2));
  ELSIF of_name LIKE 'b%' THEN
    gate := fn.read_budget_gate(c, of_name);
  ELSE
    gate.slots_left := 0;
  END IF;
  gate.name := of_name; gate.class_ids := '{}'; gate.holders := '{}'; gate.untils := '{}'; gate.began := 0;
  RETURN gate;
END $$;

-- Return a gate that this call has locked. The slots of a quota that has none left are checked first.
CREATE FUNCTION fn.locked_gate(c fn.context, of_name bytea) RETURNS fn.gate LANGUAGE plpgsql AS $$
DECLARE
  gate fn.gate := fn.read_gate(c, of_name);
BEGIN
  IF of_name LIKE 'q%' AND gate.slots_left <= 0 AND fn.check_slots(c, substring(of_name FROM 2)) THEN
    RETURN fn.read_gate(c, of_name);
  END IF;
  RETURN gate;
END $$;

-- Return how many more executions a gate admits now.
CREATE FUNCTION fn.allowance(gate fn.gate) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT greatest(0, coalesce(least((gate).slots_left, (gate).rate_left), 9007199254740992))
$$;

-- Return the first gate of a class that is closed, or null.
CREATE FUNCTION fn.closed_gate(c fn.context, of_class int) RETURNS fn.gate LANGUAGE plpgsql AS $$
DECLARE
  names bytea[] := (SELECT gates FROM db.classes WHERE id = of_class);
  gate fn.gate;
BEGIN
  FOR i IN 1 .. coalesce(cardinality(names), 0) LOOP
    gate := fn.read_gate(c, names[i]);
    IF fn.allowance(gate) <= 0 THEN
      RETURN gate;
    END IF;
  END LOOP;
  RETURN NULL;
END $$;

-- Return how many more executions of a class its gates admit now.
CREATE FUNCTION fn.class_allowance(c fn.context, of_class int) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  names bytea[] := (SELECT gates FROM db.classes WHERE id = of_class);
  least_of_all bigint := 9007199254740992;
BEGIN
  FOR i IN 1 .. coalesce(cardinality(names), 0) LOOP
    least_of_all := least(least_of_all, fn.allowance(fn.read_gate(c, names[i])));
  END LOOP;
  RETURN least_of_all;
END $$;

-- Return a record with the state that it has for readers: ready work behind a closed gate is blocked by it.
CREATE FUNCTION fn.shown(c fn.context, x db.executions) RETURNS db.executions LANGUAGE plpgsql AS $$
DECLARE
  gate fn.gate;
BEGIN
  IF x.gated AND x.state LIKE 'r_e%' THEN
    gate := fn.closed_gate(c, x.class_id);
    IF gate.name LIKE 'b%' THEN
      x.state := substring(x.state FROM 1 FOR 2) || 'bu'::bytea || substring(x.state FROM 5);
    ELSIF gate.name LIKE 'q%' THEN
      x.state := substring(x.state FROM 1 FOR 2) || 'qq'::bytea || substring(x.state FROM 5);
    END IF;
  END IF;
  RETURN x;
END $$;

-- Return how many executions of a lane are ready behind closed gates.
CREATE FUNCTION fn.held_back(c fn.context, of_lane int) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
  RETURN coalesce((
    SELECT sum(change) FROM db.depths AS d JOIN db.classes AS k ON k.id = d.class_id
    WHERE d.p = c.p AND d.lane_id = of_lane AND d.state = 'waiting' AND k.gates IS NOT NULL
      AND substring((fn.closed_gate(c, k.id)).name FROM 1 FOR 1) IN ('q', 'b')
  ), 0);
END $$;

-- Return the failure if a class that is not registered names a gate that does not exist, or null.
CREATE FUNCTION fn.unknown_gate(c fn.context, of_class bytea) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  parts bytea[] := fn.unpack(of_class);
  budget bytea;
BEGIN
  FOREACH budget IN ARRAY coalesce(fn.unpack(parts[5]), '{}') LOOP
    IF NOT fn.knows_budget(c, fn.pack(parts[1]) || budget) THEN
      RETURN fn.failure('budget_not_found', budget);
    END IF;
  END LOOP;
  IF parts[6] <> '' AND NOT EXISTS (SELECT FROM db.quotas WHERE quota = fn.pack(parts[1], parts[6])) THEN
    RETURN fn.failure('quota_policy_not_found', parts[6]);
  END IF;
  RETURN NULL;
END $$;

-- Classes of executions with a slot ---------------------------------------------------------------------------------

-- Return a class whose executions have a slot of a quota, or of none if the quota is null.
CREATE FUNCTION fn.class_with_slot(of_class bytea, quota bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT fn.pack(VARIADIC ARRAY(
    SELECT part FROM unnest(fn.unpack(of_class)) WITH ORDINALITY AS each(part, nth)
    WHERE nth <= 6 OR part NOT LIKE '*%' ORDER BY nth
  ) || CASE WHEN quota IS NULL THEN '{}' ELSE ARRAY['*'::bytea || quota] END)
$$;

-- Return a record in the class of those that have a slot of a quota, or of none if it is null.
CREATE FUNCTION fn.keep_slot(c fn.context, x db.executions, quota bytea) RETURNS fn.passing LANGUAGE plpgsql AS $$
DECLARE
  passing fn.passing;
BEGIN
  PERFORM fn.share_classes(c);
  x.class := fn.class_with_slot(x.class, quota);
  passing.c := fn.register_class(c, x.class);
  SELECT id, gates IS NOT NULL OR held IS NOT NULL INTO x.class_id, x.gated
    FROM db.classes WHERE p = c.p AND class = x.class;
  passing.x := x;
  RETURN passing;
END $$;

-- Admitting ---------------------------------------------------------------------------------------------------------

-- Lock the quotas of some classes in the order of their names; return the names of all their gates.
CREATE FUNCTION fn.lock_quotas(classes int[]) RETURNS bytea[] LANGUAGE plpgsql AS $$
DECLARE
  names bytea[] := ARRAY(
    SELECT DISTINCT name FROM db.classes AS k, unnest(k.gates) AS name WHERE k.id = ANY (classes) ORDER BY name
  );
  of_name bytea;
BEGIN
  FOREACH of_name IN ARRAY names LOOP
    PERFORM FROM db.quotas WHERE quota = substring(of_name FROM 2) FOR UPDATE;
  END LOOP;
  RETURN names;
END $$;

-- Lock the quotas of lanes before anything else is locked, because a call that holds a quota may wait for due entries.
CREATE FUNCTION fn.lock_quotas_of(lanes fn.lane[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  gated int[] := ARRAY(SELECT unnest(classes) FROM unnest(lanes) AS lane WHERE lane.gated);
BEGIN
  IF cardinality(gated) > 0 THEN
    PERFORM fn.lock_quotas(gated);
  END IF;
END $$;

-- Lock and return the gates of some classes. The call may have waited for them, so its clock is read again: who gets a gate later
-- begins later.
CREATE FUNCTION fn.lock_gates(c fn.context, classes int[]) RETURNS fn.passing LANGUAGE plpgsql AS $$
DECLARE
  passing fn.passing;
  names bytea[];
  gate fn.gate;
  of_name bytea;
BEGIN
  names := fn.lock_quotas(classes);
  IF c.is_real THEN
    c.now := greatest(c.now, trunc(extract(epoch FROM clock_timestamp()) * 1000));
  END IF;
  passing.c := c; passing.gates := '{}';
  FOREACH of_name IN ARRAY names LOOP
    gate := fn.locked_gate(c, of_name);
    gate.class_ids := ARRAY(SELECT id FROM db.classes AS k WHERE k.id = ANY (classes) AND of_name = ANY (k.gates));
    passing.gates := passing.gates || gate;
  END LOOP;
  RETURN passing;
END $$;

-- Return the classes whose gates admit more.
CREATE FUNCTION fn.open_classes(gates fn.gate[], classes int[]) RETURNS int[] LANGUAGE sql IMMUTABLE AS $$
  SELECT ARRAY(
    SELECT id FROM unnest(classes) WITH ORDINALITY AS each(id, nth) WHERE NOT EXISTS (
      SELECT FROM unnest(gates) AS gate WHERE id = ANY (gate.class_ids) AND fn.allowance(gate) <= 0
    ) ORDER BY nth
  )
$$;

-- Note that a record, which was put under a lease and was `was` before, passes its gates. A slot that is held for the whole run
-- goes with it.
CREATE FUNCTION fn.pass_gates(c fn.context, was db.executions, x db.executions, gates fn.gate[]) RETURNS fn.passing
LANGUAGE plpgsql AS $$
DECLARE
  passing fn.passing;
  gate fn.gate;
BEGIN
  passing.c := c; passing.x := x;
  FOR i IN 1 .. cardinality(gates) LOOP
    gate := gates[i];
    IF was.class_id = ANY (gate.class_ids) THEN
      gate.holders := gate.holders || x.uuid; gate.untils := gate.untils || fn.num(x.expires);
      gate.slots_left := gate.slots_left - 1;
      IF was.state NOT LIKE 'r%i' THEN
        gate.began := gate.began + 1; gate.rate_left := gate.rate_left - 1;
      END IF;
      gates[i] := gate;
      IF gate.is_for_run THEN
        passing := fn.keep_slot(c, x, (fn.unpack(substring(gate.name FROM 2)))[2]);
      END IF;
    END IF;
  END LOOP;
  passing.gates := gates;
  RETURN passing;
END $$;

-- Write what a claim noted of its gates, and note when those that closed may open.
CREATE FUNCTION fn.write_gates(c fn.context, gates fn.gate[]) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  gate fn.gate;
BEGIN
  FOREACH gate IN ARRAY gates LOOP
    IF cardinality(gate.holders) > 0 AND gate.name LIKE 'q%' THEN
      PERFORM fn.write_quota(c, gate);
      gate := fn.read_gate(c, gate.name);
      IF fn.allowance(gate) <= 0 AND gate.till IS NOT NULL THEN
        c := fn.note_due(c, 'g', gate.name, gate.till);
      END IF;
    END IF;
  END LOOP;
  RETURN c;
END $$;

-- Leaving -----------------------------------------------------------------------------------------------------------

-- Return whether a change of a record lets it leave gates: its lease or the execution ended, or the slot that was asked for by
-- hand lapsed before a run began.
CREATE FUNCTION fn.leaves(was db.executions, x db.executions) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT x.state NOT LIKE '_l%' AND (
    was.state LIKE '_l%' OR x.state LIKE 't%' AND was.state NOT LIKE 't%' OR was.slot_until IS NOT NULL AND x.slot_until IS NULL
  )
$$;

-- Return the gates that a record leaves by a change, and the record: without a slot that it gives back, in the class of those
-- that have none. A slot that is held for the whole run is given back at the end of the execution, or if it lapsed.
CREATE FUNCTION fn.leave_gates(c fn.context, was db.executions, x db.executions) RETURNS fn.passing LANGUAGE plpgsql AS $$
DECLARE
  passing fn.passing;
  known db.classes;
  gate fn.gate;
  names bytea[] := '{}';
BEGIN
  SELECT * INTO known FROM db.classes WHERE id = was.class_id;
  passing.c := c; passing.x := x; passing.gates := '{}';
  IF known.gates IS NOT NULL AND was.state LIKE '_l%' THEN
    names := known.gates;
  END IF;
  IF known.held IS NOT NULL AND (
    x.state LIKE 't%' OR was.slot_until IS NOT NULL OR NOT coalesce((fn.read_gate(c, known.held)).is_for_run, false)
  ) THEN
    x.slot_until := NULL;
    passing := fn.keep_slot(c, x, NULL);
    names := names || known.held;
  END IF;
  FOR i IN 1 .. cardinality(names) LOOP
    gate.name := names[i]; gate.holders := ARRAY[x.uuid];
    passing.gates := passing.gates || gate;
  END LOOP;
  RETURN passing;
END $$;

-- Give the slots back that are named by gates with holders, and wake waiters behind the gates that opened.
CREATE FUNCTION fn.give_back(c fn.context, gates fn.gate[]) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  freed record;
  gate fn.gate;
  count bigint;
BEGIN
  FOR freed IN
    SELECT left_gate.name, array_agg(id) AS ids FROM unnest(gates) AS left_gate, unnest(left_gate.holders) AS id GROUP BY 1 ORDER BY 1
  LOOP
    DELETE FROM db.slots WHERE p = c.p AND quota = substring(freed.name FROM 2) AND uuid = ANY (freed.ids);
    GET DIAGNOSTICS count = ROW_COUNT;
    gate := fn.read_gate(c, freed.name);
    -- More slots are left than were given back: the gate was open before, so nothing waits behind it.
    IF gate.slots_left <= count THEN
      c := fn.open_gate(c, freed.name, fn.allowance(gate));
    END IF;
  END LOOP;
  RETURN c;
END $$;

-- Return the classes of the executions of a partition that are ready behind a gate, one for each of them, at most `most`.
CREATE FUNCTION fn.behind(of_p smallint, of_name bytea, most bigint) RETURNS int[] LANGUAGE plpgsql AS $$
BEGIN
  RETURN ARRAY(
    SELECT class_id FROM db.executions WHERE p = of_p AND ready IS NOT NULL AND class_id = ANY (ARRAY(
      SELECT id FROM db.classes WHERE p = of_p AND gates @> ARRAY[of_name] AND gates IS NOT NULL LIMIT 1024
    )) LIMIT least(most, 1000)
  );
END $$;

-- Note the waiters to wake for up to `most` executions behind a gate that is open. A quota is the gate of all partitions.
CREATE FUNCTION fn.open_gate(c fn.context, of_name bytea, most bigint) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  other smallint;
BEGIN
  c.wakes := c.wakes || fn.behind(c.p, of_name, most);
  FOR other IN
    SELECT DISTINCT p FROM db.classes WHERE of_name LIKE 'q%' AND gates @> ARRAY[of_name] AND gates IS NOT NULL AND p <> c.p
    ORDER BY p
  LOOP
    c.wakes_elsewhere := c.wakes_elsewhere || fn.behind(other, of_name, most);
  END LOOP;
  RETURN c;
END $$;

-- Handle the due entry of a gate: wake waiters if it is open, or look again when it may be.
CREATE FUNCTION fn.handle_gate(c fn.context, of_name bytea) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  gate fn.gate := fn.read_gate(c, of_name);
BEGIN
  IF fn.allowance(gate) > 0 THEN
    c := fn.open_gate(c, of_name, fn.allowance(gate));
  ELSIF gate.till IS NOT NULL THEN
    c := fn.note_due(c, 'g', of_name, greatest(gate.till, c.now + 1));
  END IF;
  RETURN c;
END $$;
