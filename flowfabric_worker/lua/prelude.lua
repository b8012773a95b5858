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
--   :of_lane:<lane>  zset    the executions of a lane, by id
--   :of_state:<state>:<namespace>  those in one state, by id, of the states in ff.LISTED
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
--   :suspended       zset    the suspended executions, by namespace, since when, and id
--   :secrets         hash    what signs waitpoint tokens, see prelude_secrets.lua
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

-- What one call may do, shared by everything that it causes: a command counts as one, and so do 8 KiB that travel. At
-- about 10 us each the server is held for 3 ms. What is left over is answered 'again', or stays due.
ff.MAX_WORK = 300
ff.MAX_ITEMS = 100
ff.BYTES_PER_WORK = 8 * 1024
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

-- Adds the values of one list to another.
function ff.append(list, values)
  local size = #list
  for i = 1, #values do
    list[size + i] = values[i]
  end
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
    records = {},
    work = ff.MAX_WORK,
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
    listed = {},
    lost = {},
    passed = 0,
    announced = false,
  }
end

-- Functions ---------------------------------------------------------------------------------------------------------

-- Takes commands, and bytes that travel, from the budget of a call.
function ff.spend(ctx, commands, bytes)
  ctx.work = ctx.work - commands - bytes / ff.BYTES_PER_WORK
end

-- How many things of so many commands each a share of what is left of the budget allows: at most `limit`, and one in any
-- case.
function ff.allowed(ctx, limit, commands, share)
  return math.min(limit, math.max(1, math.floor(ctx.work * share / commands)))
end

-- Runs a function for each item of a call that carries many: `width` arguments an item, from `first` on, the first of
-- them the execution's uuid, and about so many commands each. `run` gets the context, the arguments and where the item
-- begins. An item that fails fails alone. What is over the budget of the call is answered 'again'.
function ff.each(ctx, args, first, width, commands, run)
  local answers, count = {}, 0
  for at = first, #args, width do
    local answer
    if count >= ff.MAX_ITEMS or (ctx.work <= 0 and count > 0) then
      answer = ff.failure('again')
    else
      local bytes = 0
      for i = at, at + width - 1 do
        bytes = bytes + #args[i]
      end
      ff.spend(ctx, commands, bytes)
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
