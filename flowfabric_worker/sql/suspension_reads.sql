-- What is read of secrets, suspensions and waitpoints. They belong to the area suspension.

-- rotate_secret: sign waitpoint tokens with another secret from now on.
-- Arguments: kid, secret, fingerprint, grace of the secret before in ms, call id.
-- Replies: 'rotated', the kid before, number of expired secrets that were removed; or 'unchanged'.
-- Errors: rotation_conflict, too_many_secrets.
CREATE FUNCTION fn.rotate_secret(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  part db.partitions;
  before bytea[];
  known bytea[] := fn.secret_of(c, args[1]);
  gone bigint;
BEGIN
  SELECT * INTO part FROM db.partitions WHERE p = c.p FOR UPDATE;
  before := fn.recall(part.rotated, args[5]);
  IF before IS NOT NULL THEN
    RETURN fn.answer(VARIADIC before);
  ELSIF NOT fn.is_over(c, known) AND known[1] <> args[2] THEN
    RETURN fn.failure('rotation_conflict', args[1]);
  ELSIF part.kid = args[1] AND NOT fn.is_over(c, known) THEN
    RETURN fn.answer('unchanged');
  ELSIF fn.is_over(c, known)
    AND (SELECT count(*) FROM db.secrets WHERE p = c.p AND NOT fn.is_over(c, fn.secret_parts(secret))) >= 64 THEN
    RETURN fn.failure('too_many_secrets', '64');
  END IF;
  gone := fn.promote(c, args[1], args[2], args[3], fn.num(args[4]));
  UPDATE db.partitions
    SET rotated = fn.remember(rotated, args[5], 'rotated', coalesce(part.kid, ''), fn.bytes(gone)) WHERE p = c.p;
  RETURN fn.answer('rotated', coalesce(part.kid, ''), fn.bytes(gone));
END $$;

-- read_secrets: read the secrets of waitpoint tokens.
-- Replies: the kid that signs, or '' if there is none or its secret is damaged; then kid, secret and fingerprint of each
-- secret that is valid.
CREATE FUNCTION fn.read_secrets(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
BEGIN
  RETURN fn.answer(VARIADIC
    coalesce((SELECT kid FROM db.partitions WHERE p = c.p AND fn.secret_of(c, kid) IS NOT NULL), '') || ARRAY(
      SELECT part FROM db.secrets, LATERAL unnest(ARRAY[kid, (fn.unpack(secret))[1], (fn.unpack(secret))[2]])
        WITH ORDINALITY AS parts(part, nth)
        WHERE p = c.p AND NOT fn.is_over(c, fn.secret_parts(secret)) ORDER BY turn, nth
    ));
END $$;

-- observe_signals: read a page of the signals that the last suspension received.
-- Arguments: uuid, pack{namespace}, number of the signal to begin after, most signals.
-- Replies: reason of the resume or '', continuation, condition, next place or '', then head and payload of each signal.
-- Errors: execution_not_found, corruption.
CREATE FUNCTION fn.observe_signals(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  x db.executions;
  s db.suspensions;
  ids bytea[];
  each record;
  at int;
  stop int;
  rows bytea[] := '{}';
BEGIN
  SELECT * INTO x FROM db.executions WHERE p = c.p AND uuid = fn.id(args[1]) AND namespace = args[2];
  IF x.uuid IS NULL OR fn.is_bare(x) THEN
    RETURN fn.failure('execution_not_found', args[1]);
  END IF;
  s := fn.suspension_of(c, x);
  IF coalesce(s.resumed, '') = '' THEN
    RETURN fn.answer('', '', '', '');
  END IF;
  ids := fn.unpacked(s.waitpoints);
  at := greatest(fn.num(args[3]) + 1, fn.num(s.first));
  stop := least(at + 299, fn.num(s.last));
  FOR each IN
    SELECT number, head, payload FROM db.signals WHERE p = c.p AND uuid = x.uuid AND number BETWEEN at AND stop ORDER BY number
  LOOP
    EXIT WHEN cardinality(rows) >= 2 * fn.num(args[4]) OR c.work <= 0;
    -- A damaged signal is returned too, because the decoder reports it.
    IF coalesce((fn.unpack(each.head))[2] = ANY (ids), true) THEN
      rows := rows || ARRAY[fn.reply(each.head), fn.reply(each.payload)];
      c.work := c.work - fn.weight(coalesce(each.payload, ''));
    END IF;
    c.work := c.work - 1;
    at := each.number + 1;
  END LOOP;
  IF cardinality(rows) < 2 * fn.num(args[4]) AND c.work > 0 AND at <= stop THEN
    -- The last number has no signal, and the numbers behind it would be looked for without end.
    PERFORM fn.damaged();
  END IF;
  RETURN fn.replies(VARIADIC ARRAY[
    fn.reply(s.resumed), fn.reply(s.continuation), fn.reply(s.condition),
    fn.reply(CASE WHEN at <= fn.num(s.last) THEN (at - 1)::text ELSE '' END)
  ] || rows);
EXCEPTION WHEN data_exception THEN
  RETURN fn.failure('corruption', args[1], 'suspension');
END $$;

-- list_suspended: read a page of a namespace's suspended executions.
-- Arguments: pack{namespace}, after (15 digits and a uuid) or '', limit.
-- Replies per execution: 15 digits and the uuid, { suspended_at, suspended_until, class } of the record, { id, behavior,
-- reason } of the suspension; null for what is damaged.
CREATE FUNCTION fn.list_suspended(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  after_at bigint := coalesce(nullif(left(fn.ascii(args[2]), 15), '')::bigint, -1);
  after_id uuid := coalesce(nullif(substring(fn.ascii(args[2]) FROM 16), '')::uuid, '00000000-0000-0000-0000-000000000000');
BEGIN
  RETURN fn.replies(VARIADIC ARRAY(
    SELECT fn.replies(
      fn.reply(lpad(x.suspended::text, 15, '0') || x.uuid::text),
      fn.answer(x.suspended_at, x.suspended_until, x.class),
      CASE WHEN fn.is_whole(x.suspension) THEN fn.answer(s.id, s.behavior, s.reason) ELSE fn.reply(NULL::bytea) END
    )
    FROM db.executions AS x LEFT JOIN LATERAL (
      SELECT * FROM db.suspensions WHERE p = x.p AND uuid = x.uuid
        AND number = CASE WHEN fn.is_whole(x.suspension) THEN fn.num(x.suspension) END LIMIT 1
    ) AS s ON true
    WHERE x.p = partition AND x.namespace = args[1] AND x.suspended IS NOT NULL
      AND (x.suspended, x.uuid) > (after_at, after_id)
    ORDER BY x.suspended, x.uuid LIMIT fn.num(args[3])
  ));
END $$;

-- list_pending_waitpoints: read a page of an execution's open waitpoints, by id.
-- Arguments: uuid, pack{namespace}, after (an id) or '', limit.
-- Replies: condition of the open suspension or '', next place or '', then id, waitpoint, state, and '=' +
-- document or '' of each.
-- Errors: execution_not_found, corruption.
CREATE FUNCTION fn.list_pending_waitpoints(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  x db.executions;
  s db.suspensions;
  is_suspended boolean;
  each record;
  rows bytea[] := '{}';
  next_place bytea := '';
  shown_id bytea;
  is_active boolean;
BEGIN
  SELECT * INTO x FROM db.executions WHERE p = c.p AND uuid = fn.id(args[1]) AND namespace = args[2];
  IF x.uuid IS NULL OR fn.is_bare(x) THEN
    RETURN fn.failure('execution_not_found', args[1]);
  ELSIF fn.num(x.suspension) IS NULL OR fn.num(x.deadline) <= c.now THEN
    RETURN fn.answer('', '');
  END IF;
  is_suspended := fn.num(x.suspended_at) IS NOT NULL;
  IF is_suspended THEN
    s := fn.suspension_of(c, x);
    -- A time-out that has passed closes a suspension, even if it has not been handled yet.
    is_suspended := coalesce(fn.num(x.suspended_until) > c.now, true) OR s.behavior = 'escalate';
  END IF;
  FOR each IN
    SELECT id, waitpoint, shown FROM db.waitpoints
      WHERE p = c.p AND uuid = x.uuid AND open_until > c.now AND id > args[3] ORDER BY id LIMIT 1000
  LOOP
    -- A damaged waitpoint is returned too, because the decoder reports it.
    is_active := coalesce((fn.unpack(each.waitpoint))[6] <> '', false);
    IF is_suspended OR NOT is_active THEN
      IF cardinality(rows) >= 4 * fn.num(args[4]) OR c.work <= 0 THEN
        next_place := shown_id;
        EXIT;
      END IF;
      rows := rows || ARRAY[
        each.id, coalesce(each.waitpoint, ''), CASE WHEN is_active THEN 'active'::bytea ELSE 'pending' END,
        coalesce(each.shown, '')
      ];
      shown_id := each.id;
      c.work := c.work - 2 - fn.weight(coalesce(each.shown, ''));
    END IF;
  END LOOP;
  RETURN fn.answer(VARIADIC ARRAY[coalesce(s.condition, ''), next_place] || rows);
EXCEPTION WHEN data_exception THEN
  RETURN fn.failure('corruption', args[1], 'suspension');
END $$;
