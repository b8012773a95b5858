-- What every stored function shares: the layout of a partition, the state of an execution, and the one way to change it.
--
-- A function runs in one partition. KEYS[1] is the partition's base, '<prefix>:{fp:N}', and every key begins with it:
--
--   :x:<uuid>        hash    the record of one execution: everything there is to know of it
--   :ready:<class>   zset    what may be claimed in one class; score = place behind its priority
--   :due             zset    one entry for each thing that time will change; score = when
--   :ids             zset    every execution, by namespace and id, for listings
--   :classes         zset    the classes that hold work; `revision` in :meta counts its changes
--   :lanes           zset    the lanes, by namespace and name
--   :lane:<lane>     hash    of each lane the depth counters, and since when it is paused
--   :waiting, :waiters       who waits for what, and of each waiter until when
--   :claims          hash    the last claim of each worker instance, to answer it again
--   :key:<key>       string  the execution that an idempotency key stands for
--   :feed            stream  every end of an execution, in order
--   :workers, :worker        the registered workers, in order, and what each said of itself
--   :meta            hash    configuration, revision, the floor of the feed, the clock of a store for tests
--
-- A lane is pack{namespace, lane}; a class is pack{namespace, lane, task, capabilities, budgets, quota}: both are
-- addresses, so a record that holds its class needs no other field to be found in its indexes.
--
-- Lua does not roll back. So a function makes all its checks first, then changes records through ff.move, which notes
-- what the indexes must follow, and ends with ff.flush, which brings the indexes after.

local ff = {}

-- While a library is loaded there is no redis.call yet, so it is looked up at each call.
local function call(...)
  return redis.call(...)
end

ff.MAX_ITEMS = 500
ff.MAX_BYTES = 8 * 1024 * 1024
ff.MAX_CLASSES_PER_LANE = 1024
ff.DUE_PER_CLAIM = 32
ff.FALLBACK = 10000
ff.HOUR = 3600000
ff.DAY = 24 * ff.HOUR
ff.PAST_ATTEMPTS = 100

-- Text --------------------------------------------------------------------------------------------------------------

-- Joins texts so that no text can pass for two: each stands behind its length.
function ff.pack(parts)
  local out = {}
  for i, part in ipairs(parts) do
    out[i] = #part .. ':' .. part
  end
  return table.concat(out)
end

function ff.unpack(text)
  local parts, at = {}, 1
  while at <= #text do
    local colon = string.find(text, ':', at, true)
    local size = tonumber(string.sub(text, at, colon - 1))
    parts[#parts + 1] = string.sub(text, colon + 1, colon + size)
    at = colon + size + 1
  end
  return parts
end

-- What stands behind the first of packed texts, and that first text with its length: 'a namespace and something'.
function ff.behind_first(text)
  local digits = string.match(text, '^(%d+):')
  local size = #digits + 1 + tonumber(digits)
  return string.sub(text, size + 1), string.sub(text, 1, size)
end

-- Whole numbers as text; `..` alone would write large ones with an exponent.
function ff.text(number)
  return string.format('%.0f', number)
end

-- A stored number, or nil where the field is absent or empty.
function ff.number(value)
  return value and tonumber(value) or nil
end

-- A moment as callers give it: '' none, '@ms' absolute, '+ms' from now by the store's clock.
function ff.moment(text, now)
  local sign = string.sub(text, 1, 1)
  if sign == '@' then
    return tonumber(string.sub(text, 2))
  elseif sign == '+' then
    return now + tonumber(string.sub(text, 2))
  end
  return nil
end

-- One list of several. Rooms call it while the library is loaded, when Lua's own functions are not there yet.
function ff.joined(lists)
  local out = {}
  for i = 1, #lists do
    for j = 1, #lists[i] do
      out[#out + 1] = lists[i][j]
    end
  end
  return out
end

function ff.failure(code, ...)
  return { 'error', code, ... }
end

-- Commands with many values -----------------------------------------------------------------------------------------

-- Sends a command with any number of values, at most 1000 at a time: unpack has a limit.
function ff.chunked(command, key, values)
  for first = 1, #values, 1000 do
    call(command, key, unpack(values, first, math.min(first + 999, #values))) -- bounded: 1000 at a time
  end
end

-- The context of one call -------------------------------------------------------------------------------------------

function ff.begin(keys)
  local base = keys[1]
  local meta = call('HMGET', base .. ':meta', 'clock', 'revision', 'feed_last')
  local now = ff.number(meta[1])
  if not now then
    local time = call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  local prefix, partition = string.match(base, '^(.*):{fp:(%d+)}$')
  return {
    base = base,
    now = now,
    revision = tonumber(meta[2] or '0'),
    -- Ids of the feed never go back, whatever the clock does.
    feed_now = math.max(now, ff.number(meta[3]) or 0),
    partition = partition,
    channel = prefix .. ':topic:',
    ready = {},
    due = {},
    counts = {},
    registered = {},
    wakes = {},
    announced = false,
  }
end

-- States ------------------------------------------------------------------------------------------------------------

-- The six dimensions of a state are stored as one field, so that they change together:
-- phase, ownership, eligibility, blocking reason, outcome, attempt.
ff.READY = 'runnable unowned eligible_now waiting_for_worker none '
ff.DELAYED = 'runnable unowned not_eligible_until_time waiting_for_delay none '
ff.BACKOFF = 'runnable unowned not_eligible_until_time waiting_for_retry_backoff none '
ff.RUNNING = 'active leased not_applicable none none running_attempt'
ff.LAPSED = 'active lease_expired_reclaimable not_applicable waiting_for_worker none attempt_interrupted'
ff.REVOKED = 'active lease_revoked not_applicable waiting_for_worker none attempt_interrupted'

ff.OUTCOMES = { success = 'completed', failed = 'failed', cancelled = 'cancelled', expired = 'expired', skipped = 'skipped' }
ff.ELIGIBILITIES = {
  not_eligible_until_time = 'delayed',
  blocked_by_dependencies = 'waiting_children',
  blocked_by_budget = 'rate_limited',
  blocked_by_quota = 'rate_limited',
}
ff.known_states = {}

-- The public state follows from the six dimensions by this rule alone; it is never stored.
function ff.public_state(words)
  if words.phase == 'terminal' then
    return ff.OUTCOMES[words.outcome] or 'failed'
  elseif words.phase == 'suspended' or words.phase == 'active' then
    return words.phase
  end
  return ff.ELIGIBILITIES[words.eligibility] or 'waiting'
end

-- The words of a stored state; nil when it is damaged. There are few states, so each is read apart once.
function ff.words(state)
  local words = ff.known_states[state]
  if words then
    return words
  end
  local phase, ownership, eligibility, blocking, outcome, attempt =
    string.match(state, '^(%l+) ([%l_]+) ([%l_]+) ([%l_]+) ([%l_]+) ([%l_]+)$')
  if not phase then
    return nil
  end
  words = {
    phase = phase,
    ownership = ownership,
    eligibility = eligibility,
    blocking = blocking,
    outcome = outcome,
    attempt = attempt,
  }
  words.public = ff.public_state(words)
  words.leased = ownership == 'leased'
  words.claimable = (phase == 'runnable' and eligibility == 'eligible_now')
    or ownership == 'lease_expired_reclaimable'
    or ownership == 'lease_revoked'
  ff.known_states[state] = words
  return words
end

-- Records -----------------------------------------------------------------------------------------------------------

-- The fields that decide what an operation does; reads and claims ask for more.
ff.CORE = {
  'state', 'class', 'priority', 'place', 'fence', 'holder', 'expires', 'timeout_at', 'deadline', 'delay_until',
  'idempotency_key', 'dedup_until', 'remove_at', 'reserved_for', 'reserved_until', 'last', 'policy', 'attempt', 'attempt_count',
  'retry_count', 'reclaim_count', 'tags', 'watchers',
}

-- The execution's id as callers know it.
function ff.id(ctx, record)
  return '{fp:' .. ctx.partition .. '}:' .. record.uuid
end

function ff.record_key(ctx, uuid)
  return ctx.base .. ':x:' .. uuid
end

-- The record of an execution, or nil and the failure to answer.
function ff.load(ctx, uuid, fields)
  fields = fields or ff.CORE
  local key = ff.record_key(ctx, uuid)
  local values = call('HMGET', key, unpack(fields)) -- bounded: a fixed list of names
  if not values[1] then
    return nil, ff.failure('execution_not_found', uuid)
  end
  local record = { uuid = uuid, key = key }
  for i, name in ipairs(fields) do
    record[name] = values[i] or nil
  end
  record.words = ff.words(record.state)
  if not record.words or not record.class then
    return nil, ff.failure('corruption', uuid, record.words and 'class' or 'state')
  end
  return record
end

function ff.policy(record)
  local policy = record.parsed_policy
  if policy then
    return policy
  end
  policy = {}
  if record.policy and record.policy ~= '' then
    local names = {
      'max_retries', 'backoff', 'initial', 'maximum', 'multiplier', 'jitter', 'categories', 'timeout', 'max_reclaims',
      'max_replays', 'retention', 'dedup_window', 'execution_deadline',
    }
    local at = 0
    for value in string.gmatch(record.policy, '([^|]*)|') do
      at = at + 1
      policy[names[at]] = value ~= '' and value or nil
    end
  end
  record.parsed_policy = policy
  return policy
end

function ff.lane_of(class)
  local parts = ff.unpack(class)
  return ff.pack({ parts[1], parts[2] })
end

-- What the indexes must say of a record: its public state, its place among the ready ones, its next moment.
function ff.derive(record)
  local words = record.words
  local view = { public = words.public }
  local reserved = ff.number(record.reserved_until)
  if words.claimable and not reserved then
    view.ready = record.place - record.priority * 1e12
  end
  if words.phase == 'terminal' then
    view.due = ff.number(record.remove_at)
    return view
  end
  local due = math.min(ff.number(record.deadline) or math.huge, ff.number(record.dedup_until) or math.huge)
  due = math.min(due, reserved or math.huge)
  if words.leased then
    due = math.min(due, ff.number(record.expires) or math.huge, ff.number(record.timeout_at) or math.huge)
  elseif words.eligibility == 'not_eligible_until_time' then
    due = math.min(due, ff.number(record.delay_until) or math.huge)
  end
  view.due = due < math.huge and due or nil
  return view
end

-- Notes that the indexes must follow a record that changed from one view to another.
function ff.follow(ctx, record, before, after)
  if before.public ~= after.public then
    local lane = ff.lane_of(record.class)
    local counts = ctx.counts[lane] or {}
    ctx.counts[lane] = counts
    if before.public then
      counts[before.public] = (counts[before.public] or 0) - 1
    end
    if after.public then
      counts[after.public] = (counts[after.public] or 0) + 1
    end
  end
  if before.ready ~= after.ready then
    local class = ctx.ready[record.class] or {}
    ctx.ready[record.class] = class
    class[record.uuid] = after.ready or false
  end
  if before.due ~= after.due then
    ctx.due['x' .. record.uuid] = after.due or false
  end
end

-- The one way to change a record: the fields are written, the indexes follow. `state` nil keeps the state.
function ff.move(ctx, record, state, changes)
  local before = ff.derive(record)
  changes.state = state
  changes.mutated = ctx.now
  local flat = {}
  for field, value in pairs(changes) do
    flat[#flat + 1] = field
    flat[#flat + 1] = value
    record[field] = value
  end
  call('HSET', record.key, unpack(flat)) -- bounded: the fields of one record
  if state then
    record.words = ff.words(state)
  end
  ff.follow(ctx, record, before, ff.derive(record))
end

-- Ends an execution: whatever ends it goes through here, is announced, and is kept for its retention.
function ff.finish(ctx, record, outcome, changes)
  local words = record.words
  if words.phase == 'active' or words.attempt == 'attempt_interrupted' then
    changes.attempt_ended = ctx.now
  end
  changes.ended = ctx.now
  changes.reserved_for = ''
  changes.reserved_until = ''
  local retention = tonumber(ff.policy(record).retention) or ff.DAY
  changes.remove_at = math.max(ctx.now + retention, ff.number(record.dedup_until) or 0)
  local watchers = record.watchers
  if watchers then
    changes.watchers = ''
  end
  local attempt = record.attempt and 'attempt_terminal' or words.attempt
  ff.move(ctx, record, 'terminal unowned not_applicable none ' .. outcome .. ' ' .. attempt, changes)
  ff.announce(ctx, record, outcome, watchers)
end

-- Writes the end of an execution into the feed and tells those who wait for it.
function ff.announce(ctx, record, outcome, watchers)
  local entry = { 'execution', record.uuid, 'outcome', outcome, 'class', record.class }
  if record.tags and record.tags ~= '' then
    entry[#entry + 1] = 'tags'
    entry[#entry + 1] = record.tags
  end
  call('XADD', ctx.base .. ':feed', ff.text(ctx.feed_now) .. '-*', unpack(entry)) -- bounded: four fields
  if not ctx.announced then
    ctx.announced = true
    call('HSET', ctx.base .. ':meta', 'feed_last', ctx.feed_now)
    call('ZADD', ctx.base .. ':due', 'NX', ctx.now + ff.HOUR, 'f')
  end
  if watchers and watchers ~= '' then
    for _, topic in ipairs(ff.unpack(watchers)) do
      call('PUBLISH', ctx.channel .. topic, 'done ' .. ff.id(ctx, record))
    end
  end
end

-- Tells the process that held a lease that it lost it.
function ff.tell_holder(ctx, record)
  if record.holder and record.holder ~= '' then
    call('PUBLISH', ctx.channel .. ff.unpack(record.holder)[3], 'lost ' .. ff.id(ctx, record))
  end
end

-- Runs a function for each item of a call that carries many: `width` arguments an item, from `first` on. What is over
-- the limits of one call is answered 'again'. A single operation is a call of one item.
function ff.each(ctx, args, first, width, run)
  local answers, bytes = {}, 0
  for at = first, #args, width do
    for i = at, at + width - 1 do
      bytes = bytes + #args[i]
    end
    if #answers >= ff.MAX_ITEMS or (bytes > ff.MAX_BYTES and #answers > 0) then
      answers[#answers + 1] = ff.failure('again')
    else
      answers[#answers + 1] = run(at)
    end
  end
  ff.flush(ctx)
  return answers
end

-- Makes a function callable. It gets the context of the call and its arguments. flags: 'no-writes' for reads;
-- 'allow-oom' for what ends, keeps or removes work, which must go on when memory is full.
function ff.register(name, flags, run)
  redis.register_function({
    function_name = '@NAMES@' .. name,
    callback = function(keys, args)
      return run(ff.begin(keys), args)
    end,
    flags = flags,
  })
end
