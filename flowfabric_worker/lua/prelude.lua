-- The layout of a partition, the context of a call, and how functions are registered.
--
-- A function runs in one partition. KEYS[1] is the partition's base, '<prefix>:{fp:N}', and every key begins with it:
--
--   :x:<uuid>        hash    the record of one execution
--   :ready:<class>   zset    the ready executions of one class; score = place minus priority, or that of a postponed entry
--   :due             zset    executions with a lease, a deadline or a reservation; score = its next moment
--   :delays:<lane>   zset    the delayed executions of a lane; score = when each is ready
--   :delayed         zset    the lanes with delayed executions; score = when the first of them is ready
--   :retention       zset    what is kept for a time: ended executions, waiters, and more; score = until when
--   :ids             zset    every execution, by namespace and id, for listings
--   :of_lane:<lane>  zset    the executions of a lane, by id
--   :of_state:<state>:<namespace>  the executions in one state, by id, for the states in ff.LISTED
--   :classes         zset    the classes that hold work, by lane
--   :held            hash    per class the number of executions that have not ended
--   :lanes           zset    the lanes, by namespace and name
--   :gate:<name>, :gated     the gates of classes, see prelude_gates.lua; :elsewhere has those of other partitions
--   :quotas, :holders:<quota>, :began:<quota>   zset   the quotas, and per quota the executions that have a slot and the
--                            attempts that began lately, see prelude_quotas.lua
--   :admitted:<quota>        what claims of other partitions may still take, see prelude_admissions.lua
--   :owed            zset    what this partition owes to others, see prelude_reservations.lua
--   :lane:<lane>     hash    per lane the depth counters, the revision of its classes, since when it is paused, and the
--                            turn of that pause
--   :following       zset    the lanes that the other partitions may still have to pause or resume; see admin.lua
--   :waiters         hash    per waiter until when it waits, and its set of classes
--   :waiting, :idle:<set>    the waiters in turn: all that wait for work, and those of one set
--   :sets, :lane_sets        per set its lanes and classes, and the sets of each lane
--   :woken           hash    per woken waiter the waiter that stands by
--   :claims          hash    per worker instance its last claims, to answer them again
--   :key:<key>       string  the execution that an idempotency key stands for
--   :damaged, :damage        the executions with damaged records in order, and the damaged field of each; at most 1000
--   :feed            stream  every end of an execution, in order
--   :stream:<uuid>   hash    how far the streams of an execution's attempts are, see prelude_streams.lua
--   :frames:<uuid>, :deltas:<uuid>, :live:<uuid>   streams   its durable frames, its newest summary frames, its newest
--                            live frames
--   :workers, :worker        the registered workers in order, and the entry of each
--   :tasks, :task            the published tasks in order, and the entry of each
--   :budgets, :budget        the budgets in order, and the entry of each; for their further keys see prelude_budgets.lua
--   :schedules, :schedule    the schedules in order, and the entry of each; kept until they are removed
--   :flows, :jobs    the flows, by namespace and id, and how far their unfinished jobs came; see prelude_flows.lua
--   :suspended       zset    the suspended executions, by namespace, since when, and id
--   :secrets         hash    the secrets that sign waitpoint tokens, see prelude_secrets.lua
--   :leaders, :leader        per group of schedules until when it has a leader, and which process that is
--   :meta            hash    configuration, the oldest place and the age of the feed, the clock of a store for tests, the
--                            waiter that watches the next due moment, and when work was last submitted beside other work
--
-- A lane is pack{namespace, lane}; a class is pack{namespace, lane, task, capabilities, pack(budgets), quota}. Both are parts of
-- keys, so the class in a record is all that is needed to find the record's indexes.
--
-- Lua does not roll back. So a function makes all checks first, then changes records through ff.change, which notes what
-- the indexes must say, and ends with ff.flush, which updates the indexes.

local ff = {}

-- redis.call does not exist while a library is loaded, so ff.begin sets this before a function runs.
local call

-- The work budget of one call, shared by everything that the call causes. A command counts as 1, and so do 8 KiB of
-- arguments; at about 10 us each the server is held for 3 ms. The rest is answered 'batch_full', or stays due.
ff.MAX_WORK = 300
ff.BYTES_PER_WORK = 8 * 1024

-- Constants with the names of engine/limits.py have the same values there; a test compares them. Times are in ms.
ff.HOUR = 3600000
ff.DAY = 24 * ff.HOUR
ff.MAX_CALL_ITEMS = 100
ff.MAX_CALL_ROWS = 200
ff.MAX_CALLS_REMEMBERED = 8
ff.MAX_CLASSES_PER_LANE = 1024
ff.DEFAULT_RETENTION_MS = ff.DAY
ff.DEFAULT_MAX_RECLAIMS = 100
ff.DEFAULT_MAX_REPLAYS = 10
-- How many past attempts a record keeps.
ff.PAST_ATTEMPTS = 100
-- How many due entries a claim handles at least.
ff.DUE_PER_CLAIM = 32
-- How long a waiter waits at most before it looks again, in ms.
ff.FALLBACK = 10000
-- How far the clock may be set back and is then held until it has caught up, in ms.
ff.MOST_SET_BACK = 60000
-- For how long the calls of workers are kept short after work was submitted beside other work, in ms.
ff.SHARED_FOR = 2000
-- How long an entry is postponed that only a newer release can handle, in ms.
ff.POSTPONED = 5000

-- Text --------------------------------------------------------------------------------------------------------------

-- The lengths of short texts as ff.pack writes them, which are made once.
local short_lengths = {}

-- Join texts into one, each behind its length, so that different lists never give the same text.
function ff.pack(parts)
  local out = {}
  for i = 1, #parts do
    local part = parts[i]
    local size = #part
    local length = short_lengths[size]
    if not length then
      length = size .. ':'
      if size < 256 then
        short_lengths[size] = length
      end
    end
    out[2 * i - 1], out[2 * i] = length, part
  end
  return table.concat(out)
end

-- The sizes that the texts before colons stand for, which are parsed once.
local known_sizes = {}

-- Return the size that a text stands for, or nil if it is none.
local function size_in(digits)
  local size = #digits <= 9 and string.find(digits, '^%d+$') and tonumber(digits) or nil
  if size and size < 256 then
    known_sizes[digits] = size
  end
  return size
end

-- Return the texts that ff.pack joined, or nil if the text is damaged.
function ff.unpack(text)
  local find, sub, last = string.find, string.sub, #text
  local parts, count, at = {}, 0, 1
  while at <= last do
    local colon = find(text, ':', at, true)
    local digits = colon and sub(text, at, colon - 1)
    local size = digits and (known_sizes[digits] or size_in(digits))
    if not size or colon + size > last then
      return nil
    end
    count = count + 1
    parts[count] = sub(text, colon + 1, colon + size)
    at = colon + size + 1
  end
  return parts
end

-- Return what follows the first of several packed texts, and that first text as it is packed (such as a namespace).
function ff.behind_first(text)
  local digits = string.match(text, '^(%d+):')
  local size = #digits + 1 + tonumber(digits)
  return string.sub(text, size + 1), string.sub(text, 1, size)
end

-- The texts of small numbers, which are made once.
local small_texts = {}

-- Return a whole number as text. Lua's `..` would write a large number with an exponent.
function ff.text(number)
  local text = small_texts[number]
  if not text then
    text = string.format('%.0f', number)
    if number >= 0 and number < 1000 then
      small_texts[number] = text
    end
  end
  return text
end

-- Return whether a stored text may be a word of a newer release; any other text is damage.
function ff.is_word(text)
  return string.find(text, '^%l[%l_]*$') ~= nil
end

-- Return a stored moment in ms, or nil if it is absent or damaged. A moment has few enough digits to be exact.
function ff.stored_moment(value)
  return value and #value <= 15 and string.find(value, '^%d+$') and tonumber(value) or nil
end

-- Return a function that remembers what it returned last. Values that follow each other are often equal: the executions of
-- one claim have the same lease, and those of one submission the same place.
function ff.remembering(read)
  local last, result
  return function(value)
    if value ~= last then
      result = read(value)
      last = value
    end
    return result
  end
end

-- Return the moment that a field holds.
ff.moment_in = ff.remembering(function(text)
  return tonumber(text)
end)

-- Return a stored number, or nil if the field is absent, empty or damaged.
function ff.number(value)
  local number = value and tonumber(value)
  -- Infinity and what is no number pass `tonumber`, and no command takes them.
  return number and number > -math.huge and number < math.huge and number or nil
end

-- Return the moment that an argument means: '' none, '@ms' absolute, '+ms' from now by the store's clock.
function ff.moment(text, now)
  local sign = string.sub(text, 1, 1)
  if sign == '@' then
    return tonumber(string.sub(text, 2))
  elseif sign == '+' then
    return now + tonumber(string.sub(text, 2))
  end
  return nil
end

-- Return whether the id of one entry of a stream is older than that of another. The numbers in ids have up to 20 digits, so
-- they are compared as texts.
function ff.is_older(id, other)
  local ms, number = string.match(id, '^(%d+)-(%d+)$')
  local other_ms, other_number = string.match(other, '^(%d+)-(%d+)$')
  if ms ~= other_ms then
    return #ms < #other_ms or #ms == #other_ms and ms < other_ms
  end
  return #number < #other_number or #number == #other_number and number < other_number
end

-- Return the elements of several lists in one. It uses no function of Lua, since those are missing while a library is
-- loaded.
function ff.joined(lists)
  local out = {}
  for i = 1, #lists do
    for j = 1, #lists[i] do
      out[#out + 1] = lists[i][j]
    end
  end
  return out
end

-- Add the values of one list to another.
function ff.append(list, values)
  local size = #list
  for i = 1, #values do
    list[size + i] = values[i]
  end
end

-- Return the reply that refuses a call or an item.
function ff.failure(code, ...)
  return { 'error', code, ... }
end

-- Commands with many values -----------------------------------------------------------------------------------------

-- Send a command with any number of values, at most 1000 at a time, because `unpack` is limited.
function ff.chunked(command, key, values)
  for first = 1, #values, 1000 do
    call(command, key, unpack(values, first, math.min(first + 999, #values))) -- bounded: 1000 at a time
  end
end

-- The context of one call -------------------------------------------------------------------------------------------

-- What a call notes until ff.flush, a table for each. Most calls use few of them, so each is made when it is first used.
local NOTES = {
  ready = true, due = true, records = true, counts = true, held = true, registered = true, gates = true, wakes = true,
  new_in = true, queues = true, lane_sets = true, left_sets = true, is_gone = true, gone = true, listed = true, lost = true,
  flows = true, changed_flows = true, jobs = true, jobs_at = true, resumed = true, admissions = true, owes = true,
}
local NOTING = {
  __index = function(ctx, name)
    if NOTES[name] then
      local notes = {}
      ctx[name] = notes
      return notes
    end
  end,
}
-- Return what a call has noted under one name, and begin it again; nil if it has noted nothing.
function ff.take_noted(ctx, name)
  local notes = rawget(ctx, name)
  if notes then
    ctx[name] = nil
  end
  return notes
end

local NOTHING = {}

-- Iterate over what a call has noted under one name, as pairs() does, and begin it again.
function ff.each_noted(ctx, name)
  return next, ff.take_noted(ctx, name) or NOTHING
end

-- What a call reads at its beginning, which is often what the call before it read.
local latest_in, shared_in = ff.remembering(ff.stored_moment), ff.remembering(ff.stored_moment)
local address_in = ff.remembering(function(base)
  local prefix, partition = string.match(base, '^(.*):{fp:(%d+)}$')
  return { partition = partition, channel = prefix .. ':topic:' }
end)

-- The texts of milliseconds behind those of seconds, which are made once.
local texts_of_ms = {}

-- Return the time of the server in ms, as a number and as text.
local function server_time()
  local time = call('TIME')
  local ms = math.floor(time[2] / 1000)
  local text = texts_of_ms[ms]
  if not text then
    text = string.format('%03d', ms)
    texts_of_ms[ms] = text
  end
  return time[1] * 1000 + ms, time[1] .. text
end

-- Return for how long the feed keeps an end, in ms.
function ff.feed_age(ctx)
  return ff.stored_moment(ctx.meta[4]) or ff.DAY
end

-- Return when work was last submitted while other work ended.
function ff.shared_at(ctx)
  return shared_in(ctx.meta[5]) or 0
end

-- Return the context of one call: its clock, its work budget, and what it notes until ff.flush. What few calls need is left in
-- `meta`, because a table of more than 32 fields is made again with 64, which takes 11,000 instructions.
function ff.begin(keys)
  call = redis.call
  local base = keys[1]
  local meta = call('HMGET', base .. ':meta', 'clock', 'feed_last', 'watcher', 'feed_age', 'shared')
  local now, latest, now_text = ff.number(meta[1]), latest_in(meta[2]) or 0, nil
  if not now then
    now, now_text = server_time()
    -- A clock that is set back a little is held until it has caught up; set back by more, the earlier time was wrong.
    if latest > now and latest - now <= ff.MOST_SET_BACK then
      now, now_text = latest, nil
    end
    meta.is_real = true
  end
  local address = address_in(base)
  return setmetatable({
    base = base,
    now = now,
    now_text = now_text or ff.text(now),
    meta = meta,
    -- Ids of the feed never go back, even if the clock does.
    feed_now = math.max(now, latest),
    last_end = latest,
    partition = address.partition,
    channel = address.channel,
    watcher = meta[3],
    work = ff.MAX_WORK,
    ended = 0,
    removals = 0,
    passed = 0,
    handled = 0,
    has_progressed = false,
    has_created = false,
    announced = false,
    watch_ended = false,
    is_cut_short = false,
    cost_of_end = false,
    ends = false,
    asks = false,
    wants = false,
  }, NOTING)
end

-- Functions ---------------------------------------------------------------------------------------------------------

-- Take commands and bytes of arguments from the work budget of a call.
function ff.spend(ctx, commands, bytes)
  ctx.work = ctx.work - commands - bytes / ff.BYTES_PER_WORK
end

-- Return how many things of `commands` commands each a share of the remaining budget allows: at least 1, at most `limit`.
function ff.allowed(ctx, limit, commands, share)
  return math.min(limit, math.max(1, math.floor(ctx.work * share / commands)))
end

-- Return the bytes of a row: of its texts, and of the texts in its lists.
local function size_of_row(row)
  local size = 0
  for i = 1, #row do
    local value = row[i]
    size = size + (type(value) == 'string' and #value or type(value) == 'table' and size_of_row(value) or 0)
  end
  return size
end

-- Read the rows of a page within the call's work budget. `members` are the page, at most `limit` of an index; `read`
-- returns the row of a member. Return '1' if there may be more rows, else '0'; then the rows.
function ff.read_rows(ctx, members, limit, read)
  local answer = { #members == limit and '1' or '0' }
  for i, member in ipairs(members) do
    if ctx.work <= 0 and i > 1 then
      answer[1] = '1'
      break
    end
    local row = read(member)
    ff.spend(ctx, 1, size_of_row(row))
    answer[i + 1] = row
  end
  return answer
end

-- Run a function for each item of a call, in isolation. Items have `width` arguments from `first` on, the uuid first, and
-- take about `commands` commands each. `run` gets the context, the arguments and the index of the item's first argument.
-- Items over the call's work budget are answered 'batch_full'. An answer of one word is sent as that word, because the server
-- takes longer for a list.
function ff.each(ctx, args, first, width, commands, run)
  local answers, count = {}, 0
  for at = first, #args, width do
    local answer
    if count >= ff.MAX_CALL_ITEMS or (ctx.work <= 0 and count > 0) then
      answer = ff.failure('batch_full')
    else
      local bytes = 0
      for i = at, at + width - 1 do
        bytes = bytes + #args[i]
      end
      ff.spend(ctx, commands, bytes)
      answer = ff.isolated(ctx, args[at], run, args, at)
    end
    count = count + 1
    answers[count] = #answer == 1 and answer[1] or answer
  end
  ff.flush(ctx)
  return answers
end

-- Register a function that gets the context of the call and its arguments. Flags: 'no-writes' for reads; 'allow-oom' for
-- functions that end, keep or remove work, which must run when memory is full.
function ff.register(name, flags, run)
  local function reply(keys, args)
    return run(ff.begin(keys), args)
  end
  redis.register_function({
    function_name = '@NAMES@' .. name,
    callback = function(keys, args)
      local good, answer = pcall(reply, keys, args)
      return good and answer or ff.refusal(keys[1], answer)
    end,
    flags = flags,
  })
end

-- Register a function that writes to one execution, whose uuid is its first argument, in isolation.
function ff.register_single(name, flags, run)
  ff.register(name, flags, function(ctx, args)
    local answer = ff.isolated(ctx, args[1], run, args)
    ff.flush(ctx)
    return answer
  end)
end
