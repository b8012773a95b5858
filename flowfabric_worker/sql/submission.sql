-- How executions are created.

-- Return the execution that an idempotency key stands for: until that execution has ended and the key's window is over. An
-- execution whose record is unreadable keeps its key.
CREATE FUNCTION fn.holder_of(c fn.context, of_key bytea) RETURNS uuid LANGUAGE sql AS $$
  SELECT x.uuid FROM db.keys, LATERAL (SELECT * FROM db.executions WHERE p = c.p AND uuid = keys.uuid LIMIT 1) AS x
  WHERE keys.p = c.p AND keys.key = of_key AND (x.state IS NOT NULL OR x.dedup_until IS NOT NULL)
    AND NOT coalesce(fn.ascii(x.state) ~ '^t[a-z]{5}$' AND fn.is_whole(x.dedup_until) AND fn.num(x.dedup_until) <= c.now, false)
$$;

-- Reply with an execution that exists, and whether the call asks for the same task, payload and codec.
CREATE FUNCTION fn.duplicate(c fn.context, existing uuid, of_class bytea, payload bytea, codec bytea) RETURNS bytea
LANGUAGE plpgsql AS $$
DECLARE
  x db.executions;
  asked bytea[] := fn.unpack(of_class);
  known bytea[];
BEGIN
  SELECT * INTO x FROM db.executions WHERE p = c.p AND uuid = existing;
  known := fn.unpack(x.class);
  IF coalesce(fn.ascii(x.state) !~ '^[a-z]{6}$', true) THEN
    RETURN fn.set_aside(c, existing, 'state');
  ELSIF coalesce(cardinality(known) < 6, true) THEN
    RETURN fn.set_aside(c, existing, 'class');
  ELSIF NOT fn.is_whole(nullif(x.dedup_until, '')) THEN
    RETURN fn.set_aside(c, existing, 'dedup_until');
  END IF;
  RETURN fn.replies(
    fn.reply('duplicate'::text), fn.reply(fn.bytes(existing)), fn.reply(x.state),
    fn.reply(CASE WHEN known[1] = asked[1] AND known[3] = asked[3] AND coalesce(x.payload, '') = payload
      AND coalesce(x.codec, '') = codec THEN 1::bigint ELSE 0 END)
  );
END $$;

-- Return the executions that exist already for the creations of a call, null for one that is new.
CREATE FUNCTION fn.existing(c fn.context, args bytea[]) RETURNS uuid[] LANGUAGE plpgsql AS $$
BEGIN
  RETURN ARRAY(
    SELECT coalesce(
      CASE WHEN args[at + 4] <> '' THEN fn.holder_of(c, args[at + 4]) END,
      (SELECT uuid FROM db.executions WHERE p = c.p AND uuid = fn.id(args[at]))
    ) FROM generate_series(1, cardinality(args), 8) AS at ORDER BY at
  );
END $$;

-- Return the record of a new execution whose arguments begin at `at`, and whose kind and packed namespace are known.
CREATE FUNCTION fn.drafted(c fn.context, args bytea[], at int, kind bytea[], namespace bytea) RETURNS db.executions
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  x db.executions;
  key bytea := nullif(args[at + 4], '');
  starts bigint := fn.moment(args[at + 2], c.now);
BEGIN
  x.p := c.p; x.uuid := fn.id(args[at]); x.class := kind[1]; x.namespace := namespace;
  starts := CASE WHEN starts > c.now THEN starts END;
  x.state := CASE WHEN starts IS NULL THEN 'ruewnf'::bytea ELSE 'rutdnf' END;
  x.priority := kind[2];
  x.place := fn.bytes(coalesce(starts, c.now));
  x.delay_until := fn.bytes(starts);
  x.deadline := fn.bytes(fn.moment(args[at + 3], c.now));
  x.created := fn.bytes(c.now);
  x.idempotency_key := key;
  x.dedup_until := CASE WHEN key IS NOT NULL THEN fn.bytes(c.now + fn.num(kind[3])) END;
  x.codec := nullif(kind[4], ''); x.policy := nullif(kind[5], ''); x.creator := nullif(kind[6], '');
  x.max_signals := nullif(kind[7], '');
  x.payload := nullif(args[at + 5], ''); x.tags := nullif(args[at + 6], ''); x.headers := nullif(args[at + 7], '');
  RETURN x;
END $$;

-- Insert new records with their keys, count them, and return the ids of those that are now there. Another session that creates
-- the same one at this moment wins.
CREATE FUNCTION fn.insert_all(c fn.context, records db.executions[]) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
  keyed boolean := false;
  ids uuid[] := '{}';
  x db.executions;
BEGIN
  FOREACH x IN ARRAY records LOOP
    IF x.idempotency_key IS NULL THEN
      ids := ids || x.uuid;
    ELSE
      keyed := true;
    END IF;
  END LOOP;
  IF keyed THEN
    WITH won AS (
      INSERT INTO db.keys (p, key, uuid)
        SELECT c.p, idempotency_key, uuid FROM unnest(records) WHERE idempotency_key IS NOT NULL ORDER BY idempotency_key
        ON CONFLICT (p, key) DO UPDATE SET uuid = excluded.uuid WHERE fn.holder_of(c, excluded.key) IS NULL
        RETURNING uuid
    )
    SELECT ids || array_agg(uuid) INTO ids FROM won;
  END IF;
  WITH inserted AS (
    INSERT INTO db.executions SELECT new.* FROM unnest(records) AS new WHERE uuid = ANY (ids) ORDER BY uuid
      ON CONFLICT DO NOTHING RETURNING uuid, lane_id, class_id, state
  ), counted AS (
    INSERT INTO db.depths (p, lane_id, class_id, state, change)
      SELECT c.p, lane_id, class_id, fn.public_state(fn.ascii(state)) AS public_state, count(*) FROM inserted
        WHERE lane_id IS NOT NULL GROUP BY lane_id, class_id, public_state
  )
  SELECT coalesce(array_agg(uuid), '{}') INTO ids FROM inserted;
  RETURN ids;
END $$;

-- Create executions, and return the replies. The arguments of each are: uuid, kind, delay, deadline (moments, see fn.moment),
-- idempotency key as pack{namespace, task, key} or '', then payload, tags and headers, '' for none. A kind is what many
-- creations have in common: pack{class, priority, dedup window in ms, codec, policy, creator, most signals}, the last four ''
-- for none. If the work budget of the call applies, what is beyond it is refused.
CREATE FUNCTION fn.create_all(c fn.context, args bytea[], is_bounded boolean) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  sizes double precision[] := fn.sizes(args, 8);
  existing uuid[];
  answers bytea[] := '{}';
  records db.executions[] := '{}';
  places int[] := '{}';
  kind bytea[];
  namespace bytea;
  home fn.home;
  x db.executions;
  at int;
BEGIN
  FOR i IN 1 .. cardinality(sizes) LOOP
    at := 8 * i - 7;
    IF is_bounded AND (i > 100 OR c.work <= 0 AND i > 1) THEN
      answers := answers || fn.failure('batch_full');
      CONTINUE;
    END IF;
    c.work := c.work - 2 - sizes[i];
    IF i = 1 OR args[at + 1] <> args[at - 7] THEN
      kind := fn.unpack(args[at + 1]);
      namespace := fn.packed(fn.unpack_first(kind[1])); home := fn.known_home(c, kind[1]);
    END IF;
    IF existing IS NULL AND (args[at + 4] <> '' OR home.class_id IS NULL) THEN
      -- For executions without keys in known classes, the insertion finds this out.
      existing := fn.existing(c, args);
    END IF;
    IF existing[i] IS NOT NULL THEN
      answers := answers || fn.duplicate(c, existing[i], kind[1], args[at + 5], kind[4]);
      CONTINUE;
    END IF;
    IF home.class_id IS NULL AND home.failure IS NULL THEN
      home := fn.home_of(c, kind[1]);
      c := home.c;
    END IF;
    IF home.class_id IS NULL THEN
      answers := answers || coalesce(
        home.failure, fn.failure('too_many_classes', (fn.unpack(kind[1]))[2], '1024')
      );
      CONTINUE;
    END IF;
    x := fn.drafted(c, args, at, kind, namespace);
    x.class_id := home.class_id; x.lane_id := home.lane_id; x.gated := home.gated;
    records := records || fn.derive(x);
    places := places || i; answers := answers || NULL::bytea;
  END LOOP;
  b := fn.created(c, records);
  FOR i IN 1 .. cardinality(places) LOOP
    answers[places[i]] := b.items[i];
  END LOOP;
  b.items := answers;
  RETURN b;
END $$;

-- Write new records, and return the replies.
CREATE FUNCTION fn.created(c fn.context, records db.executions[]) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  ids uuid[] := fn.insert_all(c, records);
  answers bytea[] := '{}';
  inserted db.executions[] := '{}';
  none db.executions;
  x db.executions;
BEGIN
  FOREACH x IN ARRAY records LOOP
    IF x.uuid = ANY (ids) THEN
      inserted := inserted || x;
      c := fn.follow(c, none, x);
      answers := answers || ('*3\015\012$7\015\012created\015\012'::bytea || fn.reply(fn.bytes(x.uuid)) || fn.reply(x.state));
    ELSE
      answers := answers || fn.duplicate(
        c, coalesce(fn.holder_of(c, x.idempotency_key), x.uuid), x.class, coalesce(x.payload, ''), coalesce(x.codec, '')
      );
    END IF;
  END LOOP;
  PERFORM fn.drop_bounds(c, inserted);
  b.c := c; b.items := answers;
  RETURN b;
END $$;

-- Return where new executions of a class belong, and register the class if it is new. A lane that is full has no place for it.
CREATE FUNCTION fn.home_of(c fn.context, of_class bytea) RETURNS fn.home LANGUAGE plpgsql AS $$
DECLARE
  home fn.home;
BEGIN
  home := fn.known_home(c, of_class);
  IF home.class_id IS NULL THEN
    home.failure := fn.unknown_gate(c, of_class);
    IF home.failure IS NULL AND NOT fn.is_full(c, of_class) THEN
      c := fn.register_class(c, of_class);
      home := fn.known_home(c, of_class);
    END IF;
  END IF;
  RETURN home;
END $$;

-- Return where new executions of a class belong if the class is registered.
CREATE FUNCTION fn.known_home(c fn.context, of_class bytea) RETURNS fn.home LANGUAGE plpgsql AS $$
DECLARE
  home fn.home;
BEGIN
  home.c := c;
  SELECT classes.id, lanes.id, nullif(gates IS NOT NULL OR held IS NOT NULL, false)
    INTO home.class_id, home.lane_id, home.gated FROM db.classes JOIN db.lanes USING (p, lane)
    WHERE classes.p = c.p AND class = of_class;
  RETURN home;
END $$;

-- create_executions: create executions, each by itself.
-- Arguments per item: those of one creation, see fn.create_all.
-- Replies per item: 'created', uuid, state; or 'duplicate', the existing uuid, its state, 1 if it is the same request.
-- Errors per item: quota_policy_not_found, too_many_classes, corruption of the existing execution.
CREATE FUNCTION fn.create_executions(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  b fn.batch;
BEGIN
  PERFORM fn.share_classes(c);
  b := fn.create_all(c, args, true);
  PERFORM fn.flush(b.c);
  RETURN fn.replies(VARIADIC b.items);
END $$;

-- Creations in a transaction of the caller ----------------------------------------------------------------------------
--
-- Such a transaction may stay open for long, and must hold nothing meanwhile that other calls wait for. So classes and lanes
-- are registered before, in a transaction of the store, and waiters are woken by a trigger that runs while the caller commits.

-- register_classes: register the classes of executions that a caller is about to create in a transaction.
-- Arguments: the kinds of these executions, see fn.create_all.
-- Replies: nothing. A class that cannot be registered is left to the creation, which refuses it.
CREATE FUNCTION fn.register_classes(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  kind bytea;
  of_class bytea;
BEGIN
  PERFORM fn.share_classes(c);
  FOREACH kind IN ARRAY args LOOP
    of_class := fn.unpack_first(kind);
    c := coalesce((fn.home_of(c, of_class)).c, c);
  END LOOP;
  PERFORM fn.flush(c);
  RETURN fn.replies();
END $$;

-- What creations in transactions of callers noted, until these commit.
CREATE TABLE fn.noted (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, c fn.context NOT NULL);

-- Wake waiters for what a transaction created, while it commits. A wake-up is a hint, so a failure to lock the waiters must
-- not undo the transaction.
CREATE FUNCTION fn.wake_at_commit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  c fn.context := NEW.c;
BEGIN
  DELETE FROM fn.noted WHERE id = NEW.id;
  c.now := (fn.begin(c.p)).now;
  PERFORM fn.wake(c);
  RETURN NULL;
EXCEPTION WHEN deadlock_detected OR lock_not_available THEN
  RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER wake_at_commit AFTER INSERT ON fn.noted DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION fn.wake_at_commit();

-- create_in_transaction: create executions in the transaction of the caller, who commits it or rolls it back.
-- Arguments and errors: those of create_executions.
-- Replies per item: those of create_executions.
CREATE FUNCTION fn.create_in_transaction(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  b fn.batch;
BEGIN
  PERFORM fn.share_classes(c);
  b := fn.create_all(c, args, true);
  INSERT INTO fn.noted (c) VALUES (b.c);
  RETURN fn.replies(VARIADIC b.items);
END $$;
