-- Quotas: how many executions of their classes run at once, and how many attempts begin in a sliding window.
--
--   :quotas          zset    the quotas, by namespace and id
--   :gate:q<quota>   hash    window, rate, slots, hold: what it allows, '' for no limit; created; answered: its last calls;
--                            counted: the attempts in the window; oldest: the moment of the first of them; newest,
--                            newest_count: the last entry of :began
--   :holders:<quota> zset    the executions that have a slot; score = when it is checked that they still have it
--   :began:<quota>   zset    the attempts that began in the window, '<moment>|<number>'; score = the moment
--
-- A quota is pack{namespace, id}. An attempt counts until its moment is as old as the window is long. Many attempts are
-- counted together: those of one millisecond, and under a high rate those of a thousandth of the window.

local FIELDS = {
  'window', 'rate', 'slots', 'hold', 'created', 'answered', 'counted', 'oldest', 'newest', 'newest_count',
}
local NUMBERS = { 'window', 'rate', 'slots', 'counted', 'oldest', 'newest', 'newest_count' }

-- Up to which rate each millisecond is an entry of its own.
local MOST_ENTRIES = 1000

-- How many entries of a window one call removes, and how many holders of slots it checks.
local MOST_TRIMMED, MOST_CHECKED = 256, 32

-- How often the holders of slots are checked, in ms.
local CHECK_EVERY = 60000

local quotas = { eligibility = 'q', blocking = 'q' }
ff.gate_kinds.q = quotas

local function holders_key(ctx, gate)
  return ctx.base .. ':holders:' .. string.sub(gate.name, 2)
end

local function began_key(ctx, gate)
  return ctx.base .. ':began:' .. string.sub(gate.name, 2)
end

-- Set how many executions a quota admits, which limit stops the next one, and when that may change by itself.
local function measure(gate)
  local slots = gate.slots and gate.slots - gate.running or math.huge
  local rate = gate.rate and gate.rate - gate.counted or math.huge
  gate.allowance = math.max(0, math.min(slots, rate))
  gate.why = rate <= 0 and 'rate' or slots <= 0 and 'concurrency' or nil
  gate.till = rate <= 0 and gate.oldest + gate.window or nil
end

-- Leave out of the count what is older than the window; the entries are removed when the quota is written.
local function trim(ctx, gate)
  local last = ctx.now - gate.window
  if not gate.oldest or gate.oldest > last then
    return
  end
  local entries = call('ZRANGE', began_key(ctx, gate), 0, MOST_TRIMMED, 'WITHSCORES')
  gate.oldest = nil
  for i = 1, #entries, 2 do
    local moment = tonumber(entries[i + 1])
    if moment > last or i > 2 * MOST_TRIMMED then
      gate.oldest = moment
      return
    end
    gate.expired[#gate.expired + 1] = entries[i]
    gate.counted = gate.counted - tonumber(string.match(entries[i], '|(%d+)$'))
  end
  -- Nothing began in the window, so nothing counts, whatever the counter says.
  gate.counted = 0
end

function quotas.load(ctx, gate)
  local values = call('HMGET', gate.key, unpack(FIELDS)) -- bounded: a fixed list of names
  if not values[1] then
    gate.is_missing, gate.allowance = true, math.huge
    return
  end
  for i, field in ipairs(FIELDS) do
    gate[field] = values[i] and values[i] ~= '' and values[i] or nil
  end
  for _, field in ipairs(NUMBERS) do
    if gate[field] and not ff.stored_moment(gate[field]) then
      gate.damaged = field
      return
    end
    gate[field] = ff.number(gate[field])
  end
  gate.is_for_run = gate.hold == 'run'
  gate.counted, gate.expired, gate.began, gate.changes = gate.counted or 0, {}, 0, {}
  gate.running = call('ZCARD', holders_key(ctx, gate))
  trim(ctx, gate)
  measure(gate)
end

function quotas.exists(ctx, name)
  return call('EXISTS', ctx.base .. ':gate:' .. name) == 1
end

function quotas.unknown(id)
  return ff.failure('quota_policy_not_found', id)
end

function quotas.admit(ctx, gate, uuid, expires, again)
  if gate.is_missing then
    return
  end
  gate.changes[uuid], gate.running, gate.is_changed = expires, gate.running + 1, true
  if gate.rate and not again then
    gate.began, gate.counted, gate.oldest = gate.began + 1, gate.counted + 1, gate.oldest or ctx.now
  end
  measure(gate)
end

function quotas.leave(_, gate, uuid)
  if not gate.is_missing then
    gate.changes[uuid], gate.is_changed = false, true
  end
end

-- Count the attempts that began in this call, and remove the entries that are older than the window.
local function flush_window(ctx, gate)
  local key = began_key(ctx, gate)
  ff.chunked('ZREM', key, gate.expired)
  if gate.began > 0 then
    local grid = gate.rate > MOST_ENTRIES and math.ceil(gate.window / 1000) or 1
    local moment, count = math.ceil(ctx.now / grid) * grid, gate.began
    if gate.newest == moment then
      call('ZREM', key, ff.text(moment) .. '|' .. ff.text(gate.newest_count or 0))
      count = count + (gate.newest_count or 0)
    end
    call('ZADD', key, moment, ff.text(moment) .. '|' .. ff.text(count))
    gate.newest, gate.newest_count = moment, count
  end
  call(
    'HSET', gate.key, 'counted', ff.text(gate.counted), 'oldest', gate.oldest and ff.text(gate.oldest) or '', 'newest',
    gate.newest and ff.text(gate.newest) or '', 'newest_count', ff.text(gate.newest_count or 0)
  )
  gate.expired, gate.began = {}, 0
end

function quotas.flush(ctx, gate)
  local key = holders_key(ctx, gate)
  local added, removed = ff.split(gate.changes)
  gate.changes = {}
  ff.chunked('ZREM', key, removed)
  ff.chunked('ZADD', key, added)
  if #added > 0 then
    call('ZADD', ctx.base .. ':retention', 'NX', ctx.now + CHECK_EVERY, 'g' .. gate.name)
  end
  if gate.began > 0 or #gate.expired > 0 then
    flush_window(ctx, gate)
  end
  gate.running = call('ZCARD', key)
  measure(gate)
end

-- Return until when an execution has a slot of a quota, or nil if it has none.
local function has_until(ctx, gate, uuid)
  local record = ff.found(ctx, uuid, ff.load)
  local known = record and ff.class(record.class)
  if not record or record.words.phase == 'terminal' then
    return nil
  elseif record.words.leased then
    for i = 1, known.gates and #known.gates or 0 do
      if known.gates[i] == gate.name then
        return tonumber(record.expires)
      end
    end
  end
  return known.held == gate.name and ctx.now or nil
end

-- Check the holders of slots whose lease should be over. What they count is right unless a record was damaged.
function quotas.check(ctx, gate)
  local key = holders_key(ctx, gate)
  local uuids = call('ZRANGE', key, '-inf', ctx.now, 'BYSCORE', 'LIMIT', 0, MOST_CHECKED)
  for _, uuid in ipairs(uuids) do
    local until_ms = has_until(ctx, gate, uuid)
    gate.changes[uuid] = until_ms and math.max(until_ms, ctx.now + CHECK_EVERY) or false
    gate.is_changed = true
  end
  ff.spend(ctx, 2 * #uuids, 0)
  if gate.running > 0 then
    ff.due_at(ctx, 'retention', 'g' .. gate.name, ctx.now + CHECK_EVERY)
  end
end

-- Operations --------------------------------------------------------------------------------------------------------

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
  elseif gate.is_missing then
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
    ctx.now_text, 'answered', ff.remember(nil, call_id, { 'created' })
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
    if gate.is_damaged or gate.is_missing then
      return { id, gate.damaged or 'window' }
    end
    return ff.joined({ { id }, status_of(ctx, gate) })
  end)
end)

-- Write some fields of a quota, let it open, and return its status.
local function rewrite(ctx, gate, call_id, ...)
  call('HSET', gate.key, ...)
  local was_closed = gate.allowance <= 0
  ctx.gates[gate.name] = nil
  gate = ff.gate(ctx, gate.name)
  gate.was_closed, gate.is_changed = was_closed, true
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
  call('UNLINK', began_key(ctx, gate))
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
  local classes = ff.classes_of_gate(ctx, name, MOST_TRIMMED)
  for _, class in ipairs(classes) do
    if (ff.number(call('HGET', ctx.base .. ':held', class)) or 0) > 0 then
      return ff.failure('quota_policy_in_use', id)
    end
  end
  for _, class in ipairs(classes) do
    ff.forget_class(ctx, class)
  end
  if #classes == MOST_TRIMMED then
    return { 'more' }
  end
  call('UNLINK', ctx.base .. ':gate:' .. name, ctx.base .. ':holders:' .. quota, ctx.base .. ':began:' .. quota)
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
    return nil, before
  end
  local gate
  gate, failure = known(ctx, quota)
  if not gate then
    return nil, failure
  end
  return record, gate
end

-- check_admission: give an execution a slot of a quota for its next run, or for the present one.
-- Arguments: uuid, pack{namespace}, quota, call id, for how long the slot is kept until a run begins, in ms.
-- Replies: 'admitted', 'already_admitted', or 'rate' or 'concurrency' and in how many ms to ask again or ''.
-- Errors: execution_not_found, execution_not_active, quota_policy_not_found, corruption.
ff.register_single('check_admission', {}, function(ctx, args)
  local uuid, quota, call_id, ttl = args[1], args[3], args[4], tonumber(args[5])
  local record, gate = load_both(ctx, args)
  if not record then
    return gate
  elseif record.words.phase == 'terminal' then
    return ff.not_active(record)
  end
  local class, id = ff.class(record.class), ff.unpack(quota)[2]
  if has_until(ctx, gate, uuid) then
    return { 'already_admitted' }
  elseif class.held then
    return ff.failure('admitted_elsewhere', uuid, ff.unpack(string.sub(class.held, 2))[2])
  elseif gate.allowance <= 0 then
    return refusal(ctx, gate)
  end
  local expires = record.words.leased and tonumber(record.expires) or ctx.now + ttl
  quotas.admit(ctx, gate, uuid, expires, false)
  local answer = { 'admitted' }
  local list = ff.keep_slot(ctx, record, id)
  ff.append(list, { 'answered', ff.remember(record.answered, call_id, answer) })
  if not record.words.leased then
    ff.append(list, { 'slot_until', expires })
  end
  ff.change(ctx, record, list)
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
  elseif not has_until(ctx, gate, uuid) or not call('ZSCORE', holders_key(ctx, gate), uuid) then
    return { 'none' }
  end
  quotas.leave(ctx, gate, uuid)
  local answer = { 'released' }
  local list = { 'answered', ff.remember(record.answered, call_id, answer) }
  if ff.class(record.class).held == gate.name then
    ff.append(list, ff.keep_slot(ctx, record, nil))
    ff.append(list, { 'slot_until', '' })
  end
  ff.change(ctx, record, list)
  return answer
end)

-- Return what explain_execution tells of a closed quota: which limit, how much it allows, the window, until when, then the
-- first executions that have a slot, each with the moment at which its lease expires.
function quotas.explain(ctx, gate)
  local row = { gate.why or '', ff.text((gate.why == 'rate' and gate.rate or gate.slots) or 0), ff.text(gate.window or 0),
    gate.till and ff.text(gate.till) or '' }
  for _, uuid in ipairs(call('ZRANGE', holders_key(ctx, gate), 0, 2)) do
    row[#row + 1] = uuid
    row[#row + 1] = call('HGET', ff.record_key(ctx, uuid), 'expires') or ''
  end
  return row
end
