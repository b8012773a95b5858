-- What every stored function shares: the layout of a partition, the state of an execution, and the one way to change it.
--
-- A function runs in one partition. KEYS[1] is the partition's base, '<prefix>:{fp:N}', and every key begins with it:
--
--   :x:<uuid>        hash    the record of one execution: everything there is to know of it
--   :ready:<class>   zset    what may be claimed in one class; score = place behind its priority
--   :due             zset    executions at the next moment of a lease, a deadline or a reservation; score = when
--   :delays:<lane>   zset    the delayed executions of a lane; score = when each is ready
--   :delayed         zset    the lanes that hold delayed executions; score = when the first of them is ready
--   :retention       zset    what is kept for a time: ended executions, waiters ...; score = until when
--   :ids             zset    every execution, by namespace and id, for listings
--   :classes         zset    the classes that hold work, under a revision per lane
--   :held            hash    of each class how many executions have not ended
--   :lanes           zset    the lanes, by namespace and name
--   :lane:<lane>     hash    of each lane the depth counters, the revision of its classes, and since when it is paused
--   :waiters         hash    of each waiter until when it waits, and its set of classes
--   :waiting, :idle:<set>    the waiters in turn: all who wait for work, and those of one set
--   :sets, :lane_sets        of each set its lanes and classes, and the sets of a lane
--   :woken           hash    of a waiter that was woken the one that stands by
--   :claims          hash    the last claims of each worker instance, to answer them again
--   :key:<key>       string  the execution that an idempotency key stands for
--   :damaged, :damage        the executions whose records are damaged, in order, and what is wrong with each; at most 1000
--   :feed            stream  every end of an execution, in order
--   :workers, :worker        the registered workers, in order, and what each said of itself
--   :tasks, :task            the published tasks, in order, and how each is submitted
--   :schedules, :schedule    the schedules, in order, and how far each is; each until somebody removes it
--   :leaders, :leader        who submits the ticks of a set of schedules: until when, and which process
--   :meta            hash    configuration, the floor and the age of the feed, the clock of a store for tests, and the
--                            waiter that watches the next due moment
--
-- A lane is pack{namespace, lane}; a class is pack{namespace, lane, task, capabilities, budgets, quota}: both are
-- addresses, so a record that holds its class needs no other field to be found in its indexes.
--
-- Lua does not roll back. So a function makes all its checks first, then changes records through ff.move, which notes
-- what the indexes must follow, and ends with ff.flush, which brings the indexes after.

local ff = {}

-- While a library is loaded there is no redis.call yet: ff.begin sets this before a function runs.
local call

ff.MAX_ITEMS = 500
ff.MAX_BYTES = 8 * 1024 * 1024
ff.MAX_CLASSES_PER_LANE = 1024
ff.DUE_PER_CLAIM = 32
ff.FALLBACK = 10000
ff.MOST_SET_BACK = 60000
-- After how long what this release does not know is looked at again, in ms.
ff.POSTPONED = 5000
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

-- The texts that ff.pack joined; nil where the text is damaged.
function ff.unpack(text)
  local parts, at = {}, 1
  while at <= #text do
    local digits, from = string.match(text, '^(%d+):()', at)
    local size = digits and #digits <= 9 and tonumber(digits)
    if not size or from + size - 1 > #text then
      return nil
    end
    parts[#parts + 1] = string.sub(text, from, from + size - 1)
    at = from + size
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
  call = redis.call
  local base = keys[1]
  local meta = call('HMGET', base .. ':meta', 'clock', 'feed_last', 'watcher', 'feed_age')
  local now, latest = ff.number(meta[1]), ff.number(meta[2]) or 0
  if not now then
    local time = call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
    -- A clock that is set back by little stands still until it has caught up; by more, the old time was wrong.
    if latest > now and latest - now <= ff.MOST_SET_BACK then
      now = latest
    end
    meta.is_real = true
  end
  local prefix, partition = string.match(base, '^(.*):{fp:(%d+)}$')
  return {
    base = base,
    now = now,
    now_text = ff.text(now),
    is_real_time = meta.is_real,
    -- Ids of the feed never go back, whatever the clock does.
    feed_now = math.max(now, latest),
    partition = partition,
    channel = prefix .. ':topic:',
    watcher = meta[3],
    feed_age = ff.number(meta[4]) or ff.DAY,
    ready = {},
    due = {},
    ended = 0,
    counts = {},
    held = {},
    registered = {},
    wakes = {},
    new_in = {},
    queues = {},
    lane_sets = {},
    left_sets = {},
    skipped = {},
    removals = 0,
    is_gone = {},
    gone = {},
    gone_ids = {},
    passed = 0,
    announced = false,
  }
end

-- Records -----------------------------------------------------------------------------------------------------------

-- What every operation needs of a record. What plain work has no use for lies beyond: `more` says that something does.
ff.CORE = {
  'state', 'class', 'priority', 'place', 'fence', 'expires', 'policy', 'attempt', 'attempt_count', 'more',
}
ff.MORE = {
  'timeout_at', 'deadline', 'delay_until', 'idempotency_key', 'dedup_until', 'remove_at', 'reserved_for',
  'reserved_until', 'retry_count', 'reclaim_count', 'tags', 'watchers',
}
-- The fields that make `more` true. Not the retention: only what has ended has one, and of that all is read.
ff.NEEDS_MORE = {
  timeout_at = true, deadline = true, delay_until = true, idempotency_key = true, dedup_until = true,
  reserved_for = true, reserved_until = true, retry_count = true, reclaim_count = true, tags = true, watchers = true,
}

-- Reads further fields into a record; an absent field is false. Answers the name of a field that is damaged, or nil.
function ff.read(record, fields)
  local values = call('HMGET', record.key, unpack(fields)) -- bounded: a fixed list of names
  for i = 1, #fields do
    record[fields[i]] = values[i]
  end
  return ff.damage_in(record, fields)
end

-- The execution's id as callers know it.
function ff.id(ctx, record)
  return '{fp:' .. ctx.partition .. '}:' .. record.uuid
end

function ff.record_key(ctx, uuid)
  return ctx.base .. ':x:' .. uuid
end

-- The record of an execution, or nil and the failure to answer. An absent field is false. `fields`, if given, begins with
-- ff.CORE; `class`, if given, is the class under whose index the execution was found. What is read of every execution of
-- every call is kept short, and its table made whole at once. A record is checked here, so what uses it need not.
function ff.load(ctx, uuid, fields, class)
  fields = fields or ff.CORE
  local key = ctx.base .. ':x:' .. uuid
  local v = call('HMGET', key, unpack(fields)) -- bounded: a fixed list of names
  if not v[1] and call('EXISTS', key) == 0 then
    return nil, ff.failure('execution_not_found', uuid)
  end
  local record = {
    uuid = uuid, key = key, words = v[1] and ff.words(v[1]), state = v[1], class = v[2], priority = v[3], place = v[4],
    fence = v[5], expires = v[6], policy = v[7], attempt = v[8], attempt_count = v[9], more = v[10],
  }
  local core = #ff.CORE
  for i = core + 1, #fields do
    record[fields[i]] = v[i]
  end
  local damaged = ff.damage_in_core(record, class) or #fields > core and ff.damage_in(record, fields, core + 1)
  if not damaged and (record.more or record.words.phase == 'terminal') then
    damaged = ff.read(record, ff.MORE)
  end
  if damaged then
    return nil, ff.set_aside(ctx, uuid, damaged, class or record.class)
  end
  return record
end

-- The earlier of a moment and a stored one, either of which may be missing.
local function sooner(due, stored)
  local moment = stored and tonumber(stored)
  if moment and not (due and due <= moment) then
    return moment
  end
  return due
end

-- What the indexes must say of a record: its public state, its score among the ready ones, its next moment, and which of
-- the due indexes holds that moment: 'due' what keeps leases and deadlines right, the lane's what is delayed,
-- 'retention' what has ended. An execution stands in one of them, at the earliest of its times.
function ff.derive(record)
  local words = record.words
  if words.phase == 'terminal' then
    local remove_at = ff.number(record.remove_at)
    return words.public, nil, remove_at, remove_at and 'retention'
  end
  local reserved = ff.number(record.reserved_until)
  local ready
  if words.claimable and not reserved then
    ready = record.place - record.priority * 1e12
  end
  local due = sooner(reserved, record.deadline)
  if words.leased then
    due = sooner(sooner(due, record.expires), record.timeout_at)
  end
  local index = due and 'due'
  if words.eligibility == 'not_eligible_until_time' then
    local soonest = sooner(due, record.delay_until)
    if soonest ~= due then
      due, index = soonest, ff.class(record.class).delays
    end
  end
  return words.public, ready, due, index
end

-- Counts an execution of a class: its lane's depth in a state, and what of the class has not ended.
function ff.count(ctx, class, state, change)
  local lane = ff.class(class).lane
  if not ff.ENDED[state] then
    ctx.held[class] = (ctx.held[class] or 0) + change
  end
  local counts = ctx.counts[lane]
  if not counts then
    counts = {}
    ctx.counts[lane] = counts
  end
  counts[state] = (counts[state] or 0) + change
end

-- Notes what the indexes must follow: a record as it is now, and what they said of it before (nothing of a new one).
function ff.follow(ctx, record, old_public, old_ready, old_due, old_index)
  local public, ready, due, index
  if record.words then
    public, ready, due, index = ff.derive(record)
  end
  if old_public ~= public then
    if old_public then
      ff.count(ctx, record.class, old_public, -1)
    end
    if public then
      ff.count(ctx, record.class, public, 1)
    end
  end
  if old_ready ~= ready then
    local class = ctx.ready[record.class]
    if not class then
      class = {}
      ctx.ready[record.class] = class
    end
    class[record.uuid] = ready or false
  end
  if old_index and old_index ~= index then
    ff.due_at(ctx, old_index, 'x' .. record.uuid, false)
  end
  if index and (old_due ~= due or old_index ~= index) then
    ff.due_at(ctx, index, 'x' .. record.uuid, due)
  end
end

-- The one way to change a record: the fields are written, the indexes follow. `state` nil keeps the state.
function ff.move(ctx, record, state, changes)
  local public, ready, due, index = ff.derive(record)
  changes.state = state
  changes.mutated = ctx.now_text
  local flat, size = {}, 0
  local more = record.more
  for field, value in pairs(changes) do
    flat[size + 1], flat[size + 2] = field, value
    size = size + 2
    record[field] = value
    more = more or ff.NEEDS_MORE[field]
  end
  if more and not record.more then
    flat[size + 1], flat[size + 2] = 'more', 1
    record.more = 1
  end
  if state then
    record.words = ff.words(state)
  end
  call('HSET', record.key, unpack(flat)) -- bounded: the fields of one record
  ff.follow(ctx, record, public, ready, due, index)
end

-- Ends an execution: whatever ends it goes through here, is announced, and is kept for its retention.
function ff.finish(ctx, record, outcome, changes)
  local words = record.words
  changes.ended = ctx.now_text
  if record.reserved_for then
    changes.reserved_for, changes.reserved_until = '', ''
  end
  local retention = tonumber(ff.policy(record).retention) or ff.DAY
  changes.remove_at = math.max(ctx.now + retention, ff.number(record.dedup_until) or 0)
  local watchers = record.watchers
  if watchers then
    changes.watchers = ''
  end
  local attempt = record.attempt and 'attempt_terminal' or words.attempt
  ff.move(ctx, record, 'terminal unowned not_applicable none ' .. outcome .. ' ' .. attempt, changes)
  ctx.ended = ctx.ended + 1
  ff.announce(ctx, record, outcome, watchers)
end

-- Writes the end of an execution into the feed and tells those who wait for it.
function ff.announce(ctx, record, outcome, watchers)
  if not ctx.announced then
    ctx.announced = true
    ctx.feed_id = ff.text(ctx.feed_now) .. '-*'
    call('HSET', ctx.base .. ':meta', 'feed_last', ctx.feed_now)
    call('ZADD', ctx.base .. ':retention', 'NX', ctx.now + ff.feed_pause(ctx), 'f')
    -- Earlier in this call the feed may have been found empty, and its entry given up.
    if ctx.due.retention and not ctx.due.retention.f then
      ctx.due.retention.f = nil
    end
  end
  local entry = { 'execution', record.uuid, 'outcome', outcome, 'class', record.class }
  if record.tags and record.tags ~= '' then
    entry[7], entry[8] = 'tags', record.tags
  end
  if ctx.feed_now ~= ctx.now then
    -- The id does not tell when it ended.
    entry[#entry + 1], entry[#entry + 2] = 'ended', ctx.now_text
  end
  call('XADD', ctx.base .. ':feed', ctx.feed_id, unpack(entry)) -- bounded: five fields
  if watchers and watchers ~= '' then
    for _, topic in ipairs(ff.unpack(watchers)) do
      call('PUBLISH', ctx.channel .. topic, 'done ' .. ff.id(ctx, record))
    end
  end
end

-- Tells the process that held a lease that it lost it. The fence says which one: the process may hold the next one too.
function ff.tell_holder(ctx, record)
  local parts = ff.unpack(call('HGET', record.key, 'holder') or '')
  if parts and parts[3] then
    call('PUBLISH', ctx.channel .. parts[3], 'lost ' .. ff.id(ctx, record) .. ' ' .. record.fence)
  end
end

-- Runs a function for each item of a call that carries many: `width` arguments an item, from `first` on, the first of
-- them the execution's uuid. `run` gets the context, the arguments and where the item begins. An item that fails fails
-- alone. What is over the limits of one call is answered 'again'.
function ff.each(ctx, args, first, width, run)
  local answers, count, bytes = {}, 0, 0
  for at = first, #args, width do
    for i = at, at + width - 1 do
      bytes = bytes + #args[i]
    end
    local answer
    if count >= ff.MAX_ITEMS or (bytes > ff.MAX_BYTES and count > 0) then
      answer = ff.failure('again')
    else
      answer = ff.isolated(ctx, args[at], run, args, at)
    end
    count = count + 1
    answers[count] = answer
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

-- Makes a function callable that writes to one execution, whose uuid is its first argument.
function ff.register_single(name, flags, run)
  ff.register(name, flags, function(ctx, args)
    local answer = ff.isolated(ctx, args[1], run, args)
    ff.flush(ctx)
    return answer
  end)
end
