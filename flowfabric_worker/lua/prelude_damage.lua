-- How stored records are checked before they are used, and how a damaged one is kept from harming others.

-- How many damaged executions are listed. A damaged execution leaves the indexes that work is found by, and stays counted
-- under its state until it is purged.
ff.MAX_DAMAGED = 1000

-- Checks ------------------------------------------------------------------------------------------------------------

-- Return whether a value is a whole number with few enough digits to be exact.
local function is_whole(value)
  return #value <= 15 and string.find(value, '^%d+$') ~= nil
end

-- Return whether a value is a whole number, or empty for none.
local function is_number(value)
  return value == '' or is_whole(value)
end

local function is_packed(value)
  return ff.unpack(value) ~= nil
end

local function is_pairs(value)
  local parts = ff.unpack(value)
  return parts ~= nil and #parts % 2 == 0
end

local function is_fence(value)
  return string.find(value, '^[^:]+:%d+:[^:]*$') ~= nil
end

local function is_attempt(value)
  return string.find(value, '^%d+|%l+|%l+|%d*|%d*$') ~= nil
end

-- Return whether a value is pack{worker id, instance, ...}.
local function is_holder(value)
  local parts = ff.unpack(value)
  return parts ~= nil and #parts >= 2
end

local function is_attempts(value)
  local attempts = ff.unpack(value)
  for i = 1, attempts and #attempts or 0 do
    local parts = ff.unpack(attempts[i])
    if not parts or #parts < 8 then
      return false
    end
  end
  return attempts ~= nil
end

local function is_marked(value)
  return value == '' or string.byte(value) == 61 -- '='
end

local CORE_CHECKS = {
  priority = ff.remembering(is_whole), place = ff.remembering(is_whole), fence = ff.remembering(is_fence),
  expires = ff.remembering(is_whole), attempt = ff.remembering(is_attempt),
}

-- The check of each field, if the field is present.
local CHECKS = {
  created = ff.remembering(is_whole), deadline = is_number, delay_until = is_number, dedup_until = is_number,
  reserved_until = is_number, retry_count = is_whole, reclaim_count = is_whole, replay_count = is_whole,
  steps = is_whole, journal_bytes = is_whole, started = is_whole, ended = is_whole, tags = ff.remembering(is_pairs),
  watchers = is_packed, idempotency_key = is_packed, keys = is_packed, holder = is_holder, attempts = is_attempts,
  payload = is_marked, suspension = is_number, suspended_at = is_number, suspended_until = is_number,
  timeout_left = is_number, max_signals = is_number, budgets = is_packed, slot_until = is_number,
}

-- Return whether the value of a field is damaged.
function ff.is_damaged(name, value)
  local check = CHECKS[name]
  return check and not check(value)
end

-- Return the first damaged field among `fields` from index `first` on, or nil.
function ff.damage_in(record, fields, first)
  for i = first or 1, #fields do
    local name = fields[i]
    local value, check = record[name], CHECKS[name]
    if value and check and not check(value) then
      return name
    end
  end
  return nil
end

-- Return the first damaged field of a record's core, or nil.
function ff.damage_in_core(record)
  local words, fence, expires, attempt = record.words, record.fence, record.expires, record.attempt
  if not words then
    return 'state'
  elseif not record.class or not ff.class(record.class) then
    return 'class'
  elseif not record.priority or not CORE_CHECKS.priority(record.priority) then
    return 'priority'
  elseif not record.place or not CORE_CHECKS.place(record.place) then
    return 'place'
  elseif record.policy and not ff.parse_policy(record.policy) then
    return 'policy'
  elseif not (fence or expires or attempt) and words.phase ~= 'active' then
    return nil
  elseif not fence or not CORE_CHECKS.fence(fence) then
    return 'fence'
  elseif not expires or not CORE_CHECKS.expires(expires) then
    return 'expires'
  elseif not attempt or not CORE_CHECKS.attempt(attempt) then
    return 'attempt'
  elseif record.timeout_at and not is_number(record.timeout_at) then
    return 'timeout_at'
  end
  return nil
end

-- Return whether the numbers of a policy are valid.
function ff.is_policy(policy)
  for _, name in ipairs({
    'max_retries', 'initial', 'maximum', 'timeout', 'max_reclaims', 'max_replays', 'retention', 'dedup_window',
    'execution_deadline',
  }) do
    if policy[name] and not is_whole(policy[name]) then
      return false
    end
  end
  if not policy.max_retries then
    return true
  end
  return (policy.backoff == 'fixed' or policy.backoff == 'exponential')
    and policy.initial ~= nil
    and policy.maximum ~= nil
    and tonumber(policy.multiplier) ~= nil
end

-- Setting aside -----------------------------------------------------------------------------------------------------

-- Take a damaged execution out of the indexes that work is found by, list it, and return the failure. `class` is its class,
-- or nil if that is unknown.
function ff.set_aside(ctx, uuid, field, class)
  local known = class and ff.class(class)
  if known then
    ff.ready_at(ctx, class, uuid, false)
    ff.due_at(ctx, known.delays, 'x' .. uuid, false)
    ff.forget_in_gates(ctx, uuid, known)
  end
  ff.due_at(ctx, 'due', 'x' .. uuid, false)
  ff.due_at(ctx, 'retention', 'x' .. uuid, false)
  ff.unlist(ctx, uuid, known)
  local list = ctx.base .. ':damaged'
  if call('EXISTS', ff.record_key(ctx, uuid)) == 1 and call('ZCARD', list) < ff.MAX_DAMAGED then
    call('ZADD', list, 0, uuid)
    call('HSETNX', ctx.base .. ':damage', uuid, ff.pack({ field, known and known.namespace or '' }))
  end
  return ff.failure('corruption', uuid, field)
end

-- Return the text of an error that pcall caught.
local function text_of(problem)
  return type(problem) == 'table' and problem.err or tostring(problem)
end

-- Return whether a command met a key that holds another type of value.
local function is_mistyped(text)
  return string.find(text, 'WRONGTYPE', 1, true) ~= nil
end

-- Return whether an error was caused by damaged data; any other error means that the server is disturbed.
local function is_damage(problem)
  local text = text_of(problem)
  return string.find(text, '^user_function:%d+:') ~= nil or is_mistyped(text)
    or string.find(text, 'specified in XADD', 1, true) ~= nil
    or string.find(text, 'must be strings or integers', 1, true) ~= nil
    or string.find(text, 'not a valid float', 1, true) ~= nil
end

-- Return the failure for an error that one execution's record caused. Raise any other error, which fails the whole call.
local function failure_of(ctx, uuid, problem)
  local text = text_of(problem)
  if not is_damage(problem) then
    error(problem, 0)
  elseif is_mistyped(text) and not ff.mistyped_record(ctx, uuid) then
    if ctx.mistyped == nil then
      ctx.mistyped = ff.mistyped(ctx.base) or false
    end
    if ctx.mistyped then
      error({ err = ctx.mistyped }, 0)
    end
  end
  return ff.set_aside(ctx, uuid, 'record')
end

-- Return the reply to a call that damage made fail as a whole. Raise any other error.
function ff.refusal(base, problem)
  local text = text_of(problem)
  if string.find(text, '^MISTYPED ') then
    return { err = text }
  elseif not is_damage(problem) then
    error(problem, 0)
  end
  return { err = is_mistyped(text) and ff.mistyped(base) or 'CORRUPT ' .. text }
end

-- Run what reads data that belongs to no execution. Return whether it could be read.
function ff.readable(run, a, b)
  local good, problem = pcall(run, a, b)
  if not good and not is_damage(problem) then
    error(problem, 0)
  end
  return good
end

-- Run one item of a call, about one execution, so that an error fails this item alone. Return its reply.
function ff.isolated(ctx, uuid, run, a, b)
  local good, answer = pcall(run, ctx, a, b)
  if good then
    return answer
  end
  return failure_of(ctx, uuid, answer)
end

-- Run what only reads of one execution, and return its reply. Damage is told, but the execution is not set aside.
function ff.isolated_read(ctx, uuid, run, args)
  local good, answer = pcall(run, ctx, args)
  if good then
    return answer
  elseif not is_damage(answer) then
    error(answer, 0)
  end
  return ff.failure('corruption', uuid, 'suspension')
end

-- Load the record of an execution by `load`, whatever its key holds. Return the record, or nil and the failure.
function ff.found(ctx, uuid, load, class)
  local good, record, failure = pcall(load, ctx, uuid, nil, class)
  if good then
    return record, failure
  end
  return nil, failure_of(ctx, uuid, record)
end

-- Return whether an execution is listed as damaged.
function ff.is_set_aside(ctx, uuid)
  return call('ZSCORE', ctx.base .. ':damaged', uuid) ~= false
end

-- Delete the further keys that a record names in its field `keys`, without the partition's base.
function ff.remove_keys(ctx, names)
  local keys = ff.unpack(names or '') or {}
  for i = 1, #keys do
    keys[i] = ctx.base .. keys[i]
  end
  if #keys > 0 then
    -- A key may be large, so the server frees it in the background.
    call('UNLINK', unpack(keys)) -- bounded: the keys that one record names
    ff.spend(ctx, #keys / 4, 0)
  end
end

-- Remove a damaged execution with every key that is still known of it. `namespace` is packed.
function ff.remove_damaged(ctx, uuid, namespace)
  local key = ff.record_key(ctx, uuid)
  local readable, values = pcall(
    call, 'HMGET', key, 'state', 'class', 'idempotency_key', 'keys', 'suspended_at', 'budgets', 'flow'
  )
  local class
  if readable then
    local state, idempotency_key, keys, suspended_at = values[1], values[3], values[4], values[5]
    class = values[2]
    local words, flow = state and ff.words(state), values[7] and ff.flow(ctx, values[7])
    if words and class and ff.class(class) then
      ff.count(ctx, class, uuid, words.public, nil)
    end
    if flow then
      ff.leave_flow(ctx, flow, uuid, words and words.public)
      ff.enqueue(ctx, 'ended', flow.id .. ':' .. uuid)
    end
    local key_of = ctx.base .. ':key:' .. (idempotency_key or '')
    if call('GET', key_of) == uuid then
      call('DEL', key_of)
    end
    ff.remove_keys(ctx, keys)
    ff.end_shares(ctx, uuid, values[6], true)
    if class and ff.class(class) and tonumber(suspended_at or '') then
      ff.unlist_suspended(ctx, class, suspended_at, uuid)
    end
  end
  ff.set_aside(ctx, uuid, 'record', class or nil)
  call('DEL', key)
  call('ZREM', ctx.base .. ':ids', namespace .. uuid)
  call('ZREM', ctx.base .. ':damaged', uuid)
  call('HDEL', ctx.base .. ':damage', uuid)
end
