-- How flows are cancelled and removed by a caller.

-- Mark a flow as cancelled. With a grace, its members are left to the caller for that time, in ms.
CREATE FUNCTION fn.mark_cancelled(c fn.context, f db.flows, args bytea[]) RETURNS fn.context LANGUAGE plpgsql AS $$
BEGIN
  f.cancel_policy := args[4]; f.cancel_reason := args[5]; f.cancelled_at := fn.bytes(c.now); f.mutated := fn.bytes(c.now);
  f.state := 'cancelled'; f.answered := fn.remember(f.answered, args[3], 'cancelled');
  PERFORM fn.put_flow(f);
  c.settles := c.settles || f.flow;
  IF NOT fn.is_cancelling(f) THEN
    RETURN c;
  ELSIF args[6] <> '' THEN
    RETURN fn.postpone_job(c, 'cancel:' || f.flow, '', c.now + fn.num(args[6]));
  END IF;
  RETURN fn.enqueue(c, 'cancel:' || f.flow);
END $$;

-- Continue a cancellation that was left to a later call.
CREATE FUNCTION fn.continue_cancel(c fn.context, of_flow uuid) RETURNS fn.context LANGUAGE plpgsql AS $$
DECLARE
  reached bytea;
BEGIN
  DELETE FROM db.entries WHERE p = c.p AND due_in = 'd' AND kind = 'j' AND member = fn.bytes('cancel:' || of_flow)
    RETURNING coalesce(place, '') INTO reached;
  IF FOUND THEN
    c := fn.enqueue(c, 'cancel:' || of_flow, reached);
  END IF;
  RETURN c;
END $$;

-- cancel_flow: mark a flow as cancelled, and cancel members as its policy says, as many as the call may; keepers cancel the
-- rest.
-- Arguments: flow, pack{namespace}, call id, policy, reason, how long to leave the members to the caller in ms, or '' to
-- cancel them.
-- Replies: 'cancelled'; 'known' if it was cancelled before; or 'ended'. Then policy, reason, number of members, '1' if members
-- have still to be cancelled, and the first members.
-- Errors: flow_not_found.
CREATE FUNCTION fn.cancel_flow(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f db.flows := fn.open_flow(c, args);
  before bytea[] := fn.recall(f.answered, args[3]);
  word text;
BEGIN
  IF f.flow IS NULL THEN
    RETURN fn.failure('flow_not_found', args[1]);
  END IF;
  c.flows := ARRAY[f.flow];
  word := CASE WHEN before IS NOT NULL THEN fn.ascii(before[1]) WHEN f.cancel_policy IS NOT NULL THEN 'known'
    WHEN f.ended IS NOT NULL THEN 'ended' ELSE 'cancelled' END;
  IF before IS NULL AND word = 'cancelled' THEN
    c := fn.mark_cancelled(c, f, args);
  ELSIF args[6] = '' THEN
    c := fn.continue_cancel(c, f.flow);
  END IF;
  c := fn.flush(c);
  f := fn.flow(c, f.flow);
  RETURN fn.replies(
    fn.reply(word),
    fn.reply(CASE WHEN before IS NULL THEN coalesce(f.cancel_policy, '') ELSE args[4] END),
    fn.reply(CASE WHEN before IS NULL THEN coalesce(f.cancel_reason, '') ELSE args[5] END),
    fn.reply(f.nodes), fn.reply(CASE WHEN EXISTS (
      SELECT FROM db.entries WHERE p = c.p AND due_in = 'd' AND kind = 'j' AND member = fn.bytes('cancel:' || f.flow)
    ) THEN '1'::text ELSE '' END),
    fn.answer(VARIADIC ARRAY(
      SELECT fn.bytes(uuid) FROM db.executions WHERE p = c.p AND flow_id = f.flow ORDER BY uuid LIMIT 1000
    ))
  );
END $$;

-- ack_cancel_member: note that a caller has cancelled a member of a cancelled flow itself.
-- Arguments: flow, pack{namespace}, uuid.
-- Replies: 'ok', also for an unknown flow.
CREATE FUNCTION fn.ack_cancel_member(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f db.flows := fn.open_flow(c, args);
BEGIN
  INSERT INTO db.acknowledged (p, flow, uuid)
    SELECT p, flow_id, uuid FROM db.executions
    WHERE p = c.p AND uuid = fn.id(args[3]) AND flow_id = f.flow AND f.cancel_policy IS NOT NULL ON CONFLICT DO NOTHING;
  RETURN fn.answer('ok');
END $$;

-- purge_flow: remove a flow that is over with all its members before its retention ends, as many as the call may.
-- Arguments: flow, pack{namespace}, call id.
-- Replies: 'removed', or 'more' to be called again.
-- Errors: flow_not_found, flow_not_terminal.
CREATE FUNCTION fn.purge_flow(partition int, args bytea[]) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
  c fn.context := fn.begin(partition);
  f db.flows;
  b fn.batch;
BEGIN
  IF fn.was_removed(c, args[3]) THEN
    RETURN fn.answer('removed');
  END IF;
  SELECT * INTO f FROM db.flows WHERE p = c.p AND flow = fn.id(args[1]) AND namespace = args[2] FOR NO KEY UPDATE;
  IF f.flow IS NULL OR f.building IS NOT NULL AND f.ended IS NULL THEN
    RETURN fn.failure('flow_not_found', args[1]);
  ELSIF f.ended IS NULL THEN
    RETURN fn.failure('flow_not_terminal', args[1], fn.flow_state(f));
  END IF;
  PERFORM fn.drop_entry(c, 'y', args[1]);
  b := fn.remove_flow(c, f.flow, 200);
  IF b.count > 0 THEN
    PERFORM fn.remember_removal(c, args[3]);
  ELSE
    PERFORM fn.note_entry(c, 'y', args[1], c.now);
  END IF;
  PERFORM fn.flush(b.c);
  RETURN fn.answer(CASE WHEN b.count > 0 THEN 'removed'::bytea ELSE 'more' END);
END $$;
