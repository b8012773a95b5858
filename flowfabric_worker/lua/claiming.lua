-- How work is handed out under a lease, reserved for a worker, and redeemed.

-- The fields that a claim reads beyond the core, and those that it reads of work that had an attempt before.
local CLAIM = ff.joined({ ff.CORE, { 'payload', 'codec', 'created', 'headers' } })
local CLAIM_AGAIN = ff.joined({ ff.ATTEMPT, { 'started', 'steps', 'journal_bytes' } })

-- Load the record of an execution with everything that a claim needs. `class` is the class in whose index the execution
-- was found, or nil.
local function load_for_claim(ctx, uuid, _, class)
  local record, failure = ff.load(ctx, uuid, CLAIM, class)
  if not record then
    return nil, failure
  end
  local damaged = not record.created and 'created'
  if not damaged and record.attempt then
    damaged = ff.read(ctx, record, CLAIM_AGAIN)
    record.past = not damaged and ff.past_attempts(ctx, record)
    record.journal = not damaged and ff.journal(ctx, record)
    damaged = damaged or not record.journal and 'steps'
  end
  if damaged then
    return nil, ff.set_aside(ctx, uuid, damaged, record.class)
  end
  return record
end

-- Read what a member of a flow gets of its parents. It comes before a claim changes anything, because it may be damaged.
local function read_inputs(ctx, record)
  record.inputs = record.flow and ff.inputs(ctx, record, '') or nil
end

-- The fields of what a claimed execution has beyond plain work.
local FURTHER = { 'tags', 'deadline', 'timeout_at', 'retry_count', 'reclaim_count', 'headers', 'flow' }

-- Return what a claimed execution has beyond plain work, or false: pack{tags, deadline, timeout, retry count, reclaim
-- count, headers, flow} with '' for none, then the journal, and for a member of a flow its inputs as ff.inputs returns them.
local function further(ctx, record)
  if not (record.more or record.headers or record.timeout_at or record.journal and #record.journal > 0) then
    return false
  end
  local parts = {}
  for i = 1, #FURTHER do
    local value = record[FURTHER[i]] or ''
    parts[i] = type(value) == 'number' and ff.text(value) or value
  end
  local packed = ff.pack(parts)
  ff.spend(ctx, 0, #packed) -- What was split and is packed again counts twice.
  return { packed, record.journal or {}, record.inputs }
end

-- Return what the worker gets of one claimed execution.
local function claimed(ctx, record)
  return {
    record.uuid, record.fence, record.attempt, record.expires, record.class, record.priority, record.created,
    record.payload, record.codec, record.policy, further(ctx, record),
  }
end

-- Make a lease with everything that is the same for all executions of one claim.
local function new_lease(ctx, id, holder, ttl)
  local of = ff.holder_in(holder)
  local topic = of.topic
  holder = of.packed
  local expires = ff.text(ctx.now + ttl)
  local fence, attempt = id .. ':1:', ff.attempt_text('0', 'initial', 'fresh', ctx.now_text)
  return {
    id = id, holder = holder, topic = topic, expires = expires, due = ctx.now + ttl, words = ff.words(ff.RUNNING),
    fence = fence, attempt = attempt,
    -- The fields to write for plain work that is claimed for the first time.
    first = {
      'state', ff.RUNNING, 'fence', fence, 'expires', expires, 'attempt', attempt, 'holder', holder, 'topic', topic,
    },
  }
end

local ATTEMPT_TYPES = { pending_retry_attempt = 'retry', pending_replay_attempt = 'replay' }

-- Add the beginning of an attempt to the fields that a claim writes, and archive the attempt before it.
local function begin_attempt(ctx, record, list)
  local words = record.words
  local index, _, _, started = ff.attempt_parts(record.attempt or '')
  local kind, came = ATTEMPT_TYPES[words.attempt] or 'initial', 'fresh'
  if words.phase == 'active' then
    kind, came = 'reclaim', 'reclaimed'
    ff.append(list, { 'reclaim_count', tonumber(record.reclaim_count or '0') + 1 })
  end
  local past = ff.archive(ctx, record, words.phase == 'active' and 'interrupted_reclaimed' or 'ended_failure')
  if past then
    ff.append(list, { 'attempts', past })
    if not record.started then
      ff.append(list, { 'started', started })
    end
  end
  local number = index and ff.text(tonumber(index) + 1) or '0'
  ff.append(list, { 'attempt', ff.attempt_text(number, kind, came, ctx.now_text) })
end

-- Put an execution under a lease; `kept` are fields to write besides, or nil. An interrupted attempt continues; after a lost lease a new attempt begins.
local function lease_to(ctx, record, lease, kept)
  local words, timeout = record.words, record.policy and ff.policy(record).timeout
  local is_first = words.attempt == 'pending_first_attempt'
  if is_first and not (timeout or kept or ff.is_changed_by_lease(record)) then
    return ff.lease_alike(ctx, record, lease)
  end
  local _, epoch, attempt_id = ff.fence_parts(record.fence)
  local list = { 'state', ff.RUNNING, 'expires', lease.expires, 'holder', lease.holder, 'topic', lease.topic }
  ff.append(list, kept or {})
  local left = ff.number(record.timeout_left)
  if timeout then
    -- While the attempt was suspended its time stood still.
    local is_resumed = words.attempt == 'attempt_interrupted'
    ff.append(list, { 'timeout_at', ctx.now + (is_resumed and left or tonumber(timeout)) })
  end
  if left then
    ff.append(list, { 'timeout_left', '' })
  end
  if record.reserved_for then
    ff.append(list, { 'reserved_for', '', 'reserved_until', '' })
  end
  if record.slot_until then
    ff.append(list, { 'slot_until', '' })
  end
  if record.idempotency_key and ff.policy(record).key == 's' then
    ff.free_key(ctx, record)
  end
  if words.phase == 'runnable' and words.attempt == 'attempt_interrupted' then
    local index, kind, _, started = ff.attempt_parts(record.attempt)
    ff.append(list, { 'attempt', ff.attempt_text(index, kind, 'resumed', started) })
  else
    attempt_id = ''
    begin_attempt(ctx, record, list)
  end
  ff.append(list, { 'fence', lease.id .. ':' .. ff.text(epoch + 1) .. ':' .. attempt_id })
  ff.change(ctx, record, list)
end

-- Put an execution under a lease, and note it at the gates of its class.
local function take(ctx, record, lease)
  read_inputs(ctx, record)
  local gates, words = ff.class(record.class).gates, record.words
  if not gates then
    return lease_to(ctx, record, lease)
  end
  lease_to(ctx, record, lease, ff.keep_for_run(ctx, record, gates, lease.id))
  ff.admit(ctx, record, gates, words.phase == 'runnable' and words.attempt == 'attempt_interrupted')
end

-- End an execution whose flow was cancelled, whose deadline has passed or whose reclaims are used up, and return whether it
-- did.
local function ends_here(ctx, record)
  if record.flow and ff.follow_cancellation(ctx, record) then
    return true
  end
  local deadline = ff.number(record.deadline)
  if deadline and deadline <= ctx.now then
    ff.expire(ctx, record)
    return true
  end
  return ff.exhausted(ctx, record)
end

-- Return the record of a ready entry if it may be handed out. An entry without a claimable record leaves the index; work
-- whose deadline has passed or whose reclaims are used up ends here.
local function claimable(ctx, uuid, class)
  local record = ff.found(ctx, uuid, load_for_claim, class)
  if record and record.words.foreign then
    ff.postpone_ready(ctx, class, uuid)
  elseif not record or not record.words.claimable then
    ff.drop_ready(ctx, class, uuid, 0)
  elseif not (record.more or record.words.phase == 'active') or not ff.isolated(ctx, uuid, ends_here, record) then
    return record
  else
    ff.drop_ready(ctx, class, uuid, ff.cost_of_end(ctx))
  end
  return nil
end

-- Return what is still leased of a claim that was answered before, or nil if the claim is new.
local function claimed_before(ctx, claims, claim_id)
  local got = ff.got_before(ctx, claims, claim_id)
  if not got then
    return nil
  end
  local items = {}
  for _, uuid in ipairs(got) do
    local record = ff.found(ctx, uuid, load_for_claim)
    local held = record and record.words.leased and tonumber(record.expires) > ctx.now
    if held and ff.fence_parts(record.fence) == claim_id and not ff.isolated(ctx, uuid, read_inputs, record) then
      items[#items + 1] = claimed(ctx, record)
    end
  end
  return items
end

-- Claim from lanes in their order. Stop before a lane whose classes the caller does not fully know, because its first
-- work in order may be in an unknown class, and before work for which the claim has to ask another partition.
local function claim_lanes(ctx, lanes, limit, lease)
  local items = {}
  for _, lane in ipairs(lanes) do
    if lane.stale or ctx.wants then
      break
    end
    local wanted = math.min(lane.limit, limit - #items)
    if wanted > 0 and #lane.classes > 0 and not lane.paused then
      ff.each_ready(ctx, lane.classes, wanted, claimable, function(record)
        ff.spend(ctx, 2, 0)
        if not ff.isolated(ctx, record.uuid, take, record, lease) then
          items[#items + 1] = claimed(ctx, record)
        end
        return true
      end)
    end
  end
  return items
end

-- Read the state of the lanes of a call, and return the names of those whose classes the caller has to read again.
local function look_at(ctx, lanes)
  local stale = {}
  for _, lane in ipairs(lanes) do
    ff.look_at_lane(ctx, lane)
    if lane.stale then
      stale[#stale + 1] = lane.name
    end
  end
  return stale
end

-- Register a waiter that found nothing, and return the moment at which it has to look again: now if work is left.
local function wait(ctx, lanes, waiter, set, wait_ms, counted)
  if #ff.classes_left(ctx, lanes) > 0 then
    return ctx.now
  end
  local due = ff.next_due(ctx)
  ff.wait_for_work(ctx, waiter, set, lanes, wait_ms, counted)
  ff.watch(ctx, waiter, due)
  return due
end

-- claim_many: claim what is ready, in the order of the lanes asked for.
-- Arguments: claim id, holder as pack{worker id, instance, topic} and, if a quota of another partition was asked, what it
-- admitted, as ff.receive_admissions reads it; pack{namespace, instance}, waiter or '', lease in ms, how long to wait in ms,
-- limit, name of the set of classes to wait for, '1' if the server counts the subscribers of a topic, then the lanes as
-- ff.lanes_of reads them.
-- Replies: now; next due moment, or false (unused when there are items); the lanes whose classes have to be read again
-- (nothing is claimed from those and the lanes after them, and no waiter is registered); the items; '1' to call again at
-- once because this call used its budget, or ''; 1 if the claim was answered before, else 0; 1 if others submit work, so that
-- calls should be short, else 0. Then, if one of them is not empty: the executions that the claim itself ended and no worker
-- held: uuid, class, outcome, attempt, retries, tags, error, detail; the quota of another partition that the claim has to ask
-- before it can take more, for how many, how many are ready, and now; what the call owes to other partitions.
-- Errors: instance_of_other_worker.
ff.register('claim_many', { 'allow-oom' }, function(ctx, args)
  local claim_id, holder, instance, waiter = args[1], args[2], args[3], args[4]
  local ttl, wait_ms, limit, set, counted = tonumber(args[5]), tonumber(args[6]), tonumber(args[7]), args[8], args[9]
  local lanes = ff.lanes_of(args, 10)
  local claims, failure = ff.claims_of(ctx, instance, ff.holder_in(holder).worker)
  if not claims then
    return failure
  end
  if waiter ~= '' then
    ff.unwait(ctx, waiter)
    ff.end_stand_by(ctx, waiter)
  end
  local items, stale, due = claimed_before(ctx, claims, claim_id), {}, nil
  local repeated = items and 1 or 0
  ctx.ends, ctx.asks = {}, true
  if not items then
    ff.receive_admissions(ctx, claim_id, holder)
    ff.run_due(ctx, math.max(ff.DUE_PER_CLAIM, 2 * limit), 0.5)
    ff.run_removals(ctx, ff.DUE_PER_CLAIM, 0.25)
    stale = look_at(ctx, lanes)
    items = claim_lanes(ctx, lanes, math.min(limit, ff.MAX_CALL_ITEMS), new_lease(ctx, claim_id, holder, ttl))
    ff.settle_admissions(ctx, ttl)
    if #items > 0 then
      ff.keep_claimed(ctx, claims, claim_id, items, ttl)
      ff.flush_ready(ctx)
      ff.wake_next(ctx, lanes)
    end
    local waits = #items == 0 and #stale == 0 and wait_ms > 0 and not ctx.wants
    if waits then
      -- A worker that continues to wait keeps its watch of the next due moment.
      ctx.watch_ended = false
    end
    ff.flush(ctx)
    due = waits and wait(ctx, lanes, waiter, set, wait_ms, counted)
  end
  -- A worker that got work does not wait, so the next due moment need not be read.
  due = due or #items == 0 and ff.next_due(ctx) or false
  local is_cut_short = ctx.is_cut_short or ff.is_spent(ctx) or #items == ff.MAX_CALL_ITEMS and limit > ff.MAX_CALL_ITEMS
  local again = (is_cut_short or ff.has_passed_enough(ctx)) and '1' or ''
  local is_shared = ctx.now - ff.shared_at(ctx) <= ff.SHARED_FOR and 1 or 0
  local answer = { ctx.now, due, stale, items, again, repeated, is_shared }
  local owes = rawget(ctx, 'owes')
  if #ctx.ends > 0 or ctx.wants or owes then
    ff.append(answer, { ctx.ends, ctx.wants or {}, owes or {} })
  end
  return answer
end)

-- forward_wakeup: pass a wake-up on to the next waiter, for a woken worker that has no capacity.
-- Arguments: the lanes as in claim_many.
-- Replies: 'ok'.
ff.register('forward_wakeup', { 'allow-oom' }, function(ctx, args)
  local lanes = ff.lanes_of(args, 1)
  look_at(ctx, lanes)
  ff.wake_next(ctx, lanes)
  ff.flush(ctx)
  return { 'ok' }
end)

-- stop_waiting: deregister a waiter. If it was woken already, pass the wake-up on to the next waiter.
-- Arguments: waiter, then the lanes that it waited for, as in claim_many.
-- Replies: 'ok'.
ff.register('stop_waiting', { 'allow-oom' }, function(ctx, args)
  local waiter = args[1]
  if not ff.unwait(ctx, waiter) then
    local lanes = ff.lanes_of(args, 2)
    look_at(ctx, lanes)
    ff.wake_next(ctx, lanes)
    ff.end_stand_by(ctx, waiter)
  end
  ff.flush(ctx)
  return { 'ok' }
end)

-- list_classes: read a page of the classes that hold work in each of some lanes, within the call's work budget.
-- Arguments per lane: pack{namespace, lane}, after (a class) or ''.
-- Replies per lane: revision, the classes, of which fewer than ff.MAX_CALL_ROWS are the last; or nothing once the budget is
-- used up.
ff.register('list_classes', { 'no-writes' }, function(ctx, args)
  local answer = {}
  for at = 1, #args, 2 do
    local lane, after = args[at], args[at + 1]
    local row = {}
    if ctx.work > 0 or at == 1 then
      local revision = call('HGET', ctx.base .. ':lane:' .. lane, 'revision') or '0'
      row = { revision, ff.classes_of(ctx, lane, after, ff.MAX_CALL_ROWS) }
      ff.spend(ctx, 2 + #row[2], 0)
    end
    answer[#answer + 1] = row
  end
  return answer
end)

-- reserve: reserve one ready execution for a named worker, for a time.
-- Arguments: grant id, pack{namespace, instance}, worker id, time in ms, then one lane as in claim_many.
-- Replies: 'granted', uuid, until when; or 'none', '1' if the lane's classes have to be read again, '1' to call again at
-- once.
-- Errors: instance_of_other_worker.
ff.register('reserve', {}, function(ctx, args)
  local grant_id, instance, worker, ttl = args[1], args[2], args[3], tonumber(args[4])
  local lane = ff.lanes_of(args, 5)[1]
  local claims, failure = ff.claims_of(ctx, instance, worker)
  if not claims then
    return failure
  end
  local grants = ff.grants_of(ctx, instance, worker)
  local before = ff.recall(grants.memory, grant_id)
  if before then
    return before
  end
  ff.run_due(ctx, ff.DUE_PER_CLAIM, 0.5)
  local granted
  ff.look_at_lane(ctx, lane)
  if not lane.stale and not lane.paused then
    ff.each_ready(ctx, lane.classes, 1, claimable, function(record)
      granted = record
      return false
    end)
  end
  local is_cut_short = ctx.is_cut_short or ff.is_spent(ctx) or ff.has_passed_enough(ctx)
  local answer = { 'none', lane.stale and '1' or '', is_cut_short and '1' or '' }
  if granted then
    ff.move(ctx, granted, nil, { reserved_for = worker, reserved_until = ctx.now + ttl })
    answer = { 'granted', granted.uuid, ff.text(granted.reserved_until) }
    ff.keep_claim(ctx, grants, grant_id, answer, ttl)
    ff.keep_instance(ctx, claims, ttl)
  end
  ff.flush(ctx)
  return answer
end)

-- Return the reply that redeem gives instead of a claim because of the lane or the gates of a record, or nil.
local function held_back(ctx, record)
  local class = ff.class(record.class)
  if call('HGET', ctx.base .. ':lane:' .. class.lane, 'paused') then
    return ff.failure('execution_not_leaseable', record.uuid, 'lane_paused')
  elseif ff.closed_gate(ctx, record.class) then
    return ff.failure('execution_not_leaseable', record.uuid, 'rate_limited')
  end
  local asked = ff.gate_to_ask(ctx, class.gates or {})
  return asked and { 'asks', asked, '1', '1', ctx.now_text }
end

-- Claim an execution that is reserved for a worker, as redeem replies.
local function redeem(ctx, args)
  local uuid, claim_id, holder, worker, ttl, mode = args[1], args[2], args[3], args[4], tonumber(args[5]), args[6]
  local namespace, instance = args[7], args[8]
  local record, failure = load_for_claim(ctx, uuid)
  if not record then
    return failure
  elseif ff.class(record.class).namespace ~= namespace then
    return ff.failure('execution_not_found', uuid)
  end
  local words = record.words
  if words.leased and tonumber(record.expires) > ctx.now and ff.fence_parts(record.fence) == claim_id then
    ff.forget_admissions(ctx)
    read_inputs(ctx, record)
    return { 'claimed', claimed(ctx, record) }
  elseif not words.claimable then
    return ff.failure('execution_not_leaseable', uuid, words.public)
  elseif mode == 'resumed' and (words.phase ~= 'runnable' or words.attempt ~= 'attempt_interrupted') then
    return ff.failure('not_a_resumed_execution', uuid)
  elseif record.reserved_for ~= worker then
    return ff.failure('invalid_claim_grant', uuid)
  elseif tonumber(record.reserved_until) <= ctx.now then
    return ff.failure('claim_grant_expired', uuid)
  end
  local claims
  claims, failure = ff.claims_of(ctx, instance, worker)
  failure = failure or held_back(ctx, record)
  if failure then
    return failure
  elseif ff.number(record.deadline) and tonumber(record.deadline) <= ctx.now then
    ff.expire(ctx, record)
    return ff.failure('execution_not_leaseable', uuid, 'expired')
  elseif record.flow and ff.follow_cancellation(ctx, record) then
    return ff.failure('execution_not_leaseable', uuid, 'cancelled')
  elseif ff.exhausted(ctx, record) then
    return ff.failure('execution_not_leaseable', uuid, 'failed')
  end
  ff.keep_instance(ctx, claims, ttl)
  take(ctx, record, new_lease(ctx, claim_id, holder, ttl))
  return { 'claimed', claimed(ctx, record) }
end

-- redeem: claim the execution that is reserved for a worker.
-- Arguments: uuid, claim id, holder as in claim_many, worker id, lease in ms, 'any' or 'resumed' (only an interrupted
-- attempt), pack{namespace}, pack{namespace, instance}.
-- Replies: 'claimed', the item; or 'asks', the quota of another partition that has to be asked first, 1, 1, now.
-- Errors: execution_not_found, execution_not_leaseable, not_a_resumed_execution, invalid_claim_grant,
-- claim_grant_expired, instance_of_other_worker.
ff.register_single('redeem', { 'allow-oom' }, function(ctx, args)
  ctx.asks = true
  ff.receive_admissions(ctx, args[2], args[3])
  local answer = redeem(ctx, args)
  ff.settle_admissions(ctx, tonumber(args[5]))
  return answer
end)
