-- How executions are created.

-- Return the execution that an idempotency key stands for: until that execution has ended and the key's window is over. An
-- execution whose record is unreadable keeps its key.
CREATE FUNCTION fn.holder_of(c fn.context, of_key bytea) RETURNS uuid LANGUAGE sql AS $$
  SELECT x.uuid FROM db.keys JOIN db.executions AS x ON x.p = keys.p AND x.uuid = keys.uuid
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

-- Create the execution whose arguments begin at `at`: uuid, kind, delay, deadline (moments, see fn.moment), idempotency key as
-- pack{namespace, task, key} or '', then payload, tags and headers, '' for none. A kind is what many creations have in common:
-- pack{class, priority, dedup window in ms, codec, policy, creator, most signals}, the last four '' for none.
CREATE FUNCTION fn.create_one(c fn.context, args bytea[], at int) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  x db.executions;
  kind bytea[] := fn.unpack(args[at + 1]);
  key bytea := nullif(args[at + 4], '');
  existing uuid;
BEGIN
  b.c := c;
  x.p := c.p; x.uuid := fn.id(args[at]); x.class := kind[1];
  existing := coalesce(
    CASE WHEN key IS NOT NULL THEN fn.holder_of(c, key) END,
    (SELECT uuid FROM db.executions WHERE p = c.p AND uuid = x.uuid)
  );
  IF existing IS NOT NULL THEN
    b.items := ARRAY[fn.duplicate(c, existing, x.class, args[at + 5], kind[4])];
    RETURN b;
  END IF;
  IF NOT EXISTS (SELECT FROM db.classes WHERE p = c.p AND class = x.class) AND fn.is_full(c, x.class) THEN
    b.items := ARRAY[fn.failure('too_many_classes', (fn.unpack(x.class))[2], '1024')];
    RETURN b;
  END IF;
  b.c := fn.register_class(c, x.class);
  RETURN fn.insert_one(b, fn.drafted(c, args, at, kind));
END $$;

-- Return the record of a new execution whose arguments begin at `at`, and whose kind has been unpacked.
CREATE FUNCTION fn.drafted(c fn.context, args bytea[], at int, kind bytea[]) RETURNS db.executions
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  x db.executions;
  key bytea := nullif(args[at + 4], '');
  starts bigint := fn.moment(args[at + 2], c.now);
BEGIN
  x.p := c.p; x.uuid := fn.id(args[at]); x.class := kind[1]; x.namespace := fn.pack(fn.unpack_first(x.class));
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

-- Insert a new record with its key. Another session that creates the same one at this moment wins.
CREATE FUNCTION fn.insert_one(b fn.batch, x db.executions) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  parts bytea[] := fn.unpack(x.class);
  c fn.context := b.c;
  none db.executions;
BEGIN
  x := fn.derive(x);
  x.namespace := fn.pack(parts[1]);
  SELECT classes.id, lanes.id INTO x.class_id, x.lane_id FROM db.classes JOIN db.lanes USING (p, lane)
    WHERE classes.p = c.p AND class = x.class;
  IF x.idempotency_key IS NOT NULL THEN
    INSERT INTO db.keys AS k (p, key, uuid) VALUES (c.p, x.idempotency_key, x.uuid)
      ON CONFLICT (p, key) DO UPDATE SET uuid = excluded.uuid WHERE fn.holder_of(c, excluded.key) IS NULL;
    IF NOT FOUND THEN
      b.items := ARRAY[fn.duplicate(
        c, fn.holder_of(c, x.idempotency_key), x.class, coalesce(x.payload, ''), coalesce(x.codec, '')
      )];
      RETURN b;
    END IF;
  END IF;
  INSERT INTO db.executions SELECT (x).* ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN
    b.items := ARRAY[fn.duplicate(c, x.uuid, x.class, coalesce(x.payload, ''), coalesce(x.codec, ''))];
    RETURN b;
  END IF;
  b.c := fn.follow(c, none, x);
  b.items := ARRAY[fn.answer('created', fn.bytes(x.uuid), x.state)];
  RETURN b;
END $$;

-- Create the executions of a call, and return the replies.
CREATE FUNCTION fn.create_all(c fn.context, args bytea[]) RETURNS fn.batch LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch;
  answers bytea[] := '{}';
BEGIN
  PERFORM fn.share_classes(c);
  FOR at IN 1 .. cardinality(args) BY 8 LOOP
    IF cardinality(answers) >= 100 OR c.work <= 0 AND at > 1 THEN
      answers := answers || fn.failure('batch_full');
    ELSE
      c.work := c.work - 2 - fn.weight(VARIADIC args[at : at + 7]);
      b := fn.create_one(c, args, at);
      c := b.c;
      answers := answers || b.items;
    END IF;
  END LOOP;
  b.c := c; b.items := answers;
  RETURN b;
END $$;

-- create_executions: create executions, each by itself.
-- Arguments per item: those of one creation, see fn.create_one.
-- Replies per item: 'created', uuid, state; or 'duplicate', the existing uuid, its state, 1 if it is the same request.
-- Errors per item: too_many_classes, corruption of the existing execution.
CREATE FUNCTION fn.create_executions(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  b fn.batch := fn.create_all(fn.begin(partition), args);
BEGIN
  PERFORM fn.flush(b.c);
  RETURN fn.replies(VARIADIC b.items);
END $$;

-- Creations in a transaction of the caller ----------------------------------------------------------------------------
--
-- Such a transaction may stay open for long, and must hold nothing meanwhile that other calls wait for. So classes and lanes
-- are registered before, in a transaction of the store, and waiters are woken by a trigger that runs while the caller commits.

-- register_classes: register the classes of executions that a caller is about to create in a transaction.
-- Arguments: the kinds of these executions, see fn.create_one.
-- Replies: nothing. A class for which its lane is full is left to the creation, which refuses it.
CREATE FUNCTION fn.register_classes(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  kind bytea;
  of_class bytea;
BEGIN
  PERFORM fn.share_classes(c);
  FOREACH kind IN ARRAY args LOOP
    of_class := fn.unpack_first(kind);
    IF EXISTS (SELECT FROM db.classes WHERE p = c.p AND class = of_class) OR NOT fn.is_full(c, of_class) THEN
      c := fn.register_class(c, of_class);
    END IF;
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
  b fn.batch := fn.create_all(fn.begin(partition), args);
BEGIN
  INSERT INTO fn.noted (c) VALUES (fn.flush_counts(b.c));
  RETURN fn.replies(VARIADIC b.items);
END $$;
