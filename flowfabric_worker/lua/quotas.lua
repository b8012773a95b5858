-- The operations on quotas, which are gates of claim classes; see prelude_quotas.lua.

local quotas = ff.gate_kinds.q

-- Return the name of a quota, pack{namespace, id}, as a gate and as a member of ':quotas'.
local function names_of(quota)
  local parts = ff.unpack(quota)
  return 'q' .. quota, ff.pack({ parts[1] }) .. parts[2], parts[2]
end

-- Return a quota that must exist, or nil and the failure.
local function known(ctx, quota)
  local name, _, id = names_of(quota)
  local gate = ff.gate(ctx, name)
  if gate.is_damaged then
    return nil, ff.failure('corruption', '', 'quota policy ' .. id .. (gate.damaged and ': ' .. gate.damaged or ''))
  elseif not gate.window then
    return nil, ff.failure('quota_policy_not_found', id)
  end
  return gate
end

-- Return what a quota allows and counts, as read_quota_policy replies.
local function status_of(ctx, gate)
  local function text(number)
    return number and ff.text(number) or ''
  end
  return {
    text(gate.window), text(gate.rate), text(gate.slots), gate.hold or '', gate.created or '', text(gate.counted),
    text(gate.running), gate.why or '', text(gate.till), ctx.now_text,
  }
end

-- create_quota_policy: create a quota.
-- Arguments: quota, call id, window in ms, most attempts in a window or '', most at once or '', 'lease' or 'run'.
-- Replies: 'created', or 'known' if the same quota existed before.
-- Errors: conflict, corruption.
ff.register('create_quota_policy', {}, function(ctx, args)
  local quota, call_id, window, rate, slots, hold = args[1], args[2], args[3], args[4], args[5], args[6]
  local gate, failure = known(ctx, quota)
  if gate then
    local before = ff.recall(gate.answered, call_id)
    local is_same = ff.text(gate.window) == window and (gate.rate and ff.text(gate.rate) or '') == rate
      and (gate.slots and ff.text(gate.slots) or '') == slots and gate.hold == hold
    return before or is_same and { 'known' } or ff.failure('conflict')
  elseif failure[2] == 'corruption' then
    return failure
  end
  local name, listed = names_of(quota)
  call(
    'HSET', ctx.base .. ':gate:' .. name, 'window', window, 'rate', rate, 'slots', slots, 'hold', hold, 'created',
    ctx.now_text, 'turn', ctx.now_text, 'answered', ff.remember(nil, call_id, { 'created' })
  )
  call('ZADD', ctx.base .. ':quotas', 0, listed)
  return { 'created' }
end)

-- read_quota_policy: read a quota.
-- Arguments: quota.
-- Replies: window, most attempts or '', most at once or '', hold, created, attempts in the window, slots held, which limit
-- stops the next one or '', until when or '', now.
-- Errors: quota_policy_not_found, corruption.
ff.register('read_quota_policy', { 'no-writes' }, function(ctx, args)
  local gate, failure = known(ctx, args[1])
  return failure or status_of(ctx, gate)
end)

-- list_quotas: read a page of a namespace's quotas in this partition, by id.
-- Arguments: pack{namespace}, after (an id) or '', limit.
-- Replies: '1' if there may be more, else '0'; then per quota: id, what read_quota_policy replies; a damaged quota is its id
-- and the damaged field.
ff.register('list_quotas', { 'no-writes' }, function(ctx, args)
  local namespace, after, limit = args[1], args[2], tonumber(args[3])
  local from = after ~= '' and '(' .. namespace .. after or '[' .. namespace
  local listed = call('ZRANGE', ctx.base .. ':quotas', from, '(' .. namespace .. '\255', 'BYLEX', 'LIMIT', 0, limit)
  return ff.read_rows(ctx, listed, limit, function(member)
    local id = ff.behind_first(member)
    local gate = ff.gate(ctx, 'q' .. namespace .. ff.pack({ id }))
    if gate.is_damaged or not gate.window then
      return { id, gate.damaged or 'window' }
    end
    return ff.joined({ { id }, status_of(ctx, gate) })
  end)
end)

-- Write some fields of a quota, let it open, tell the partitions that use it, and return its status.
local function rewrite(ctx, gate, call_id, ...)
  call('HSET', gate.key, ...)
  local was_closed = gate.allowance <= 0
  ctx.gates[gate.name] = nil
  gate = ff.gate(ctx, gate.name)
  gate.was_closed, gate.is_changed = was_closed, true
  ff.tell_partitions(ctx, gate, 'users', math.huge)
  ff.flush(ctx)
  local answer = status_of(ctx, gate)
  call('HSET', gate.key, 'answered', ff.remember(gate.answered, call_id, answer))
  return answer
end

-- Return a quota that a call changes; or nil and the failure, or what the call was answered before.
local function to_change(ctx, quota, call_id)
  local gate, failure = known(ctx, quota)
  local before = gate and ff.recall(gate.answered, call_id)
  if before then
    return nil, before
  end
  return gate, failure
end

-- update_quota_policy: change what a quota allows. Slots that are held stay held.
-- Arguments: as of create_quota_policy.
-- Replies: as of read_quota_policy.
-- Errors: quota_policy_not_found, corruption.
ff.register('update_quota_policy', {}, function(ctx, args)
  local call_id, window, rate, slots, hold = args[2], args[3], args[4], args[5], args[6]
  local gate, answer = to_change(ctx, args[1], call_id)
  if not gate then
    return answer
  end
  return rewrite(ctx, gate, call_id, 'window', window, 'rate', rate, 'slots', slots, 'hold', hold)
end)

-- reset_quota_policy: forget the attempts of the window. Slots that are held stay held.
-- Arguments: quota, call id.
-- Replies: as of read_quota_policy.
-- Errors: quota_policy_not_found, corruption.
ff.register('reset_quota_policy', {}, function(ctx, args)
  local call_id = args[2]
  local gate, answer = to_change(ctx, args[1], call_id)
  if not gate then
    return answer
  end
  call('UNLINK', quotas.began_key(ctx, gate))
  return rewrite(ctx, gate, call_id, 'counted', '0', 'oldest', '', 'newest', '')
end)

-- delete_quota_policy: remove a quota that no execution needs.
-- Arguments: quota, call id.
-- Replies: 'removed'; or 'more' if the call has to be repeated.
-- Errors: quota_policy_not_found, quota_policy_in_use.
ff.register('delete_quota_policy', { 'allow-oom' }, function(ctx, args)
  local quota, call_id = args[1], args[2]
  local name, listed, id = names_of(quota)
  if ff.was_removed(ctx, call_id) then
    return { 'removed' }
  elseif call('EXISTS', ctx.base .. ':gate:' .. name) == 0 then
    return ff.failure('quota_policy_not_found', id)
  end
  local stopped = ff.forget_classes_of_gate(ctx, name)
  if stopped == 'in_use' then
    return ff.failure('quota_policy_in_use', id)
  elseif stopped then
    return { stopped }
  end
  ff.remove_keys_of_quota(ctx, quota)
  call('ZREM', ctx.base .. ':quotas', listed)
  ff.due_at(ctx, 'due', 'g' .. name, false)
  ff.due_at(ctx, 'retention', 'g' .. name, false)
  ff.remember_removal(ctx, call_id)
  ff.flush(ctx)
  return { 'removed' }
end)

-- Return the parts of the reply that says which limit of a quota refuses the next execution.
local function refusal(ctx, gate)
  return { gate.why, gate.till and ff.text(math.max(0, gate.till - ctx.now)) or '' }
end

-- The fields that a call about a slot reads.
local ADMITTING = ff.joined({ ff.CORE, { 'answered' } })

-- Load the execution and the quota of a call about a slot. Return both; or nil and the reply.
local function load_both(ctx, args)
  local uuid, namespace, quota, call_id = args[1], args[2], args[3], args[4]
  local record, failure = ff.load_now(ctx, namespace, uuid, ADMITTING)
  if not record then
    return nil, failure
  end
  local before = ff.recall(record.answered, call_id)
  if before then
    ff.forget_admissions(ctx)
    return nil, before
  end
  local gate = ff.gate(ctx, names_of(quota))
  if not gate.is_elsewhere then
    gate, failure = known(ctx, quota)
  end
  if not gate then
    return nil, failure
  end
  return record, gate
end

-- Give an execution a slot of a quota, as check_admission replies.
local function check_admission(ctx, args)
  local uuid, quota, call_id, ttl = args[1], args[3], args[4], tonumber(args[5])
  local record, gate = load_both(ctx, args)
  if not record then
    return gate
  elseif record.words.phase == 'terminal' then
    return ff.not_active(record)
  end
  local class, id = ff.class(record.class), ff.unpack(quota)[2]
  if quotas.has_until(ctx, gate, uuid) then
    return { 'already_admitted' }
  elseif class.held then
    return ff.failure('admitted_elsewhere', uuid, ff.unpack(string.sub(class.held, 2))[2])
  elseif gate.is_elsewhere and not ctx.admissions[gate.name] then
    return { 'asks', gate.name, '1', '1', ctx.now_text }
  elseif gate.allowance <= 0 then
    quotas.watch(ctx, gate)
    return refusal(ctx, gate)
  end
  local expires = record.words.leased and tonumber(record.expires) or ctx.now + ttl
  quotas.admit(ctx, gate, uuid, expires, false)
  local answer = { 'admitted' }
  local list = ff.keep_slot(ctx, record, id, gate.is_elsewhere and call_id)
  ff.append(list, { 'answered', ff.remember(record.answered, call_id, answer) })
  if not record.words.leased then
    ff.append(list, { 'slot_until', expires })
  end
  ff.change(ctx, record, list)
  return answer
end

-- check_admission: give an execution a slot of a quota for its next run, or for the present one.
-- Arguments: uuid, pack{namespace}, quota, call id, for how long the slot is kept until a run begins, in ms; if the quota is in
-- another partition and was asked, pack{'', '', '', what it admitted, as ff.receive_admissions reads it}.
-- Replies: 'admitted', 'already_admitted', or 'rate' or 'concurrency' and in how many ms to ask again or ''; or 'asks', the quota
-- of another partition that has to be asked first, 1, 1, now.
-- Errors: execution_not_found, execution_not_active, quota_policy_not_found, admitted_elsewhere, corruption.
ff.register_single('check_admission', {}, function(ctx, args)
  ff.receive_admissions(ctx, args[4], args[6])
  local answer = check_admission(ctx, args)
  ff.settle_admissions(ctx, tonumber(args[5]))
  return answer
end)

-- release_admission: take back the slot of an execution, whose window still counts its start.
-- Arguments: uuid, pack{namespace}, quota, call id.
-- Replies: 'released', or 'none' if the execution has no slot.
-- Errors: execution_not_found, quota_policy_not_found, corruption.
ff.register_single('release_admission', { 'allow-oom' }, function(ctx, args)
  local uuid, call_id = args[1], args[4]
  local record, gate = load_both(ctx, args)
  if not record then
    return gate
  end
  local until_ms, claim = quotas.has_until(ctx, gate, uuid)
  if not until_ms or not gate.is_elsewhere and not call('ZSCORE', quotas.holders_key(ctx, gate), uuid) then
    return { 'none' }
  end
  quotas.leave(ctx, gate, uuid, claim)
  local answer = { 'released' }
  local list = { 'answered', ff.remember(record.answered, call_id, answer) }
  if ff.class(record.class).held == gate.name then
    ff.append(list, ff.keep_slot(ctx, record, nil))
    ff.append(list, { 'slot_until', '' })
  elseif gate.is_elsewhere then
    ff.append(list, { 'slot', ff.given_back(claim) })
  end
  ff.change(ctx, record, list)
  return answer
end)

-- Quotas of other partitions ----------------------------------------------------------------------------------------

-- use_quota: note that executions of another partition name a quota.
-- Arguments: quota, partition.
-- Replies: 'used', the news for that partition, see ff.hear_of_quota.
-- Errors: quota_policy_not_found, corruption.
ff.register('use_quota', {}, function(ctx, args)
  local gate, failure = known(ctx, args[1])
  return failure or { 'used', ff.use_quota(gate, args[2]) }
end)

-- disuse_quota: forget a quota of another partition, before it is deleted, unless executions here name it.
-- Arguments: quota, '1' if it was deleted already, so that it limits nothing any more.
-- Replies: 'ok'; or 'more' if the call has to be repeated.
-- Errors: quota_policy_in_use.
ff.register('disuse_quota', { 'allow-oom' }, function(ctx, args)
  local name, _, id = names_of(args[1])
  local stopped = args[2] ~= '1' and ff.forget_classes_of_gate(ctx, name)
  if stopped == 'in_use' then
    return ff.failure('quota_policy_in_use', id)
  elseif not stopped then
    ff.forget_elsewhere(ctx, name)
  end
  return { stopped or 'ok' }
end)

-- admit_claim: admit executions to a claim of another partition, which may take them for a time.
-- Arguments: quota, claim id, partition, how many at most, how many are ready there.
-- Replies: 'admitted', how many, for how many ms the claim may take them, when they lapse, and the news for the partition if
-- the quota is full and more are ready there, else ''; what this partition owes by that.
-- Errors: quota_policy_not_found, corruption.
ff.register('admit_claim', { 'allow-oom' }, function(ctx, args)
  local gate, failure = known(ctx, args[1])
  if failure then
    return failure
  end
  local answer = { 'admitted' }
  ff.append(answer, ff.admit_claim(ctx, gate, args[2], args[3], tonumber(args[4]), tonumber(args[5])))
  ff.flush(ctx)
  answer[6] = rawget(ctx, 'owes') or {}
  return answer
end)
