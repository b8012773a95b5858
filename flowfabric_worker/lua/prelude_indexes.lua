-- Third part of what every stored function shares: who waits and is woken, the classes that hold work, and the
-- indexes that follow the records.

-- Waking ------------------------------------------------------------------------------------------------------------

-- Who waits is '<topic>/<number>'; what for is 'c' + class, 'l' + lane (for classes yet unknown), or 'f' (the feed).
-- One record per waiter holds until when it waits and everything it waits for, so it is removed whole.
function ff.wait(ctx, waiter, what, wait_ms)
  local members = {}
  for i, item in ipairs(what) do
    members[i] = item .. '\0' .. waiter
  end
  local scored = {}
  for _, member in ipairs(members) do
    scored[#scored + 1] = 0
    scored[#scored + 1] = member
  end
  ff.chunked('ZADD', ctx.base .. ':waiting', scored)
  local expiry = ctx.now + wait_ms + 1000
  call('HSET', ctx.base .. ':waiters', waiter, ff.pack({ ff.text(expiry), ff.pack(members) }))
  call('ZADD', ctx.base .. ':retention', expiry, 'q' .. waiter)
end

-- Notes that a waiter, who knows the next due moment, comes back at that moment: the watch is this waiter's.
function ff.watch(ctx, waiter, due)
  if due and due <= ctx.now + ff.FALLBACK and ctx.watcher ~= waiter then
    call('HSET', ctx.base .. ':meta', 'watcher', waiter)
  end
end

-- Ends a waiter's waiting; answers until when it would have waited, or nil if it did not wait.
function ff.unwait(ctx, waiter)
  local entry = call('HGET', ctx.base .. ':waiters', waiter)
  if not entry then
    return nil
  end
  local parts = ff.unpack(entry)
  ff.chunked('ZREM', ctx.base .. ':waiting', ff.unpack(parts[2]))
  call('HDEL', ctx.base .. ':waiters', waiter)
  ff.due_at(ctx, 'retention', 'q' .. waiter, false)
  if waiter == ctx.watcher then
    call('HDEL', ctx.base .. ':meta', 'watcher')
    ctx.watcher, ctx.watch_ended = nil, true
  end
  return tonumber(parts[1])
end

-- How many who turn out to be gone are met in one call.
local MOST_GONE = 32

-- Wakes up to `wanted` of those whose entries lie between two names. Who is gone is removed when he is met and does not
-- count: he hides nobody who lives.
local function wake_between(ctx, first, last, wanted)
  local left = wanted + MOST_GONE
  while wanted > 0 and left > 0 do
    local members = call('ZRANGE', ctx.base .. ':waiting', first, last, 'BYLEX', 'LIMIT', 0, math.min(wanted, left))
    if #members == 0 then
      return
    end
    left = left - #members
    for _, member in ipairs(members) do
      local waiter = string.match(member, '%z([^%z]*)$')
      local expiry = ff.unwait(ctx, waiter)
      if not expiry then
        call('ZREM', ctx.base .. ':waiting', member)
      elseif expiry >= ctx.now then
        wanted = wanted - ff.send_wake(ctx, waiter)
      end
    end
  end
end

-- Whether anybody waits for `what`.
function ff.is_waited_for(ctx, what)
  local first, last = '[' .. what .. '\0', '(' .. what .. '\1'
  return #call('ZRANGE', ctx.base .. ':waiting', first, last, 'BYLEX', 'LIMIT', 0, 1) > 0
end

-- Wakes up to `wanted` of those who wait for `what`.
function ff.wake(ctx, what, wanted)
  wake_between(ctx, '[' .. what .. '\0', '(' .. what .. '\1', wanted)
end

-- Wakes one of those who wait for work of any kind: somebody must come for what is due.
function ff.wake_any(ctx)
  wake_between(ctx, '[l', '+', 1)
end

function ff.send_wake(ctx, waiter)
  local topic, number = string.match(waiter, '^(.*)/([^/]*)$')
  local heard = call('PUBLISH', ctx.channel .. topic, 'wake ' .. number .. ' ' .. ctx.partition)
  return heard > 0 and 1 or 0
end

-- Classes -----------------------------------------------------------------------------------------------------------

-- Puts a class into the registry, and its lane into the list of lanes; answers false if the lane is full. Work that
-- exists already must have its class: for it there is no limit.
function ff.register_class(ctx, class, limit)
  if ctx.registered[class] or call('ZSCORE', ctx.base .. ':classes', class) then
    ctx.registered[class] = true
    return true
  end
  local known, classes = ff.class(class), ctx.base .. ':classes'
  -- Digits sort before ':', so the range is the lane's own classes.
  if limit and call('ZLEXCOUNT', classes, '[' .. known.lane, '(' .. known.lane .. ':') >= limit then
    return false
  end
  call('ZADD', classes, 0, class)
  call('ZADD', ctx.base .. ':lanes', 0, known.namespace .. known.lane_name)
  ctx.registered[class] = true
  ctx.revision = call('HINCRBY', ctx.base .. ':meta', 'revision', 1)
  ff.due_at(ctx, 'retention', 'c' .. class, ctx.now + ff.HOUR)
  ctx.wakes[#ctx.wakes + 1] = { 'l' .. known.lane, 100 }
  return true
end

-- The classes of a lane that hold work. A lane may have more than its limit, since work that exists is never refused.
function ff.classes_of(ctx, lane)
  local last = 2 * ff.MAX_CLASSES_PER_LANE
  return call('ZRANGE', ctx.base .. ':classes', '[' .. lane, '(' .. lane .. ':', 'BYLEX', 'LIMIT', 0, last)
end

-- Bringing the indexes after ----------------------------------------------------------------------------------------

function ff.flush_ready(ctx)
  for class, entries in pairs(ctx.ready) do
    local added, removed, count = {}, {}, 0
    for uuid, score in pairs(entries) do
      if score then
        added[#added + 1] = score
        added[#added + 1] = uuid
        count = count + 1
      else
        removed[#removed + 1] = uuid
      end
    end
    if count > 0 then
      ff.register_class(ctx, class)
      ff.chunked('ZADD', ctx.base .. ':ready:' .. class, added)
      ctx.wakes[#ctx.wakes + 1] = { 'c' .. class, count }
    end
    ff.chunked('ZREM', ctx.base .. ':ready:' .. class, removed)
  end
  ctx.ready = {}
end

-- How many to wake: for a class, never more than it holds by now.
function ff.wanted(ctx, what, count)
  if string.sub(what, 1, 1) ~= 'c' then
    return count
  end
  return math.min(count, call('ZCARD', ctx.base .. ':ready:' .. string.sub(what, 2)))
end

local function flush_counts(ctx)
  for lane, counts in pairs(ctx.counts) do
    for state, change in pairs(counts) do
      if change ~= 0 then
        call('HINCRBY', ctx.base .. ':lane:' .. lane, state, change)
      end
    end
  end
  ctx.counts = {}
end

-- Wakes those whom this call concerns; and one more when the next due moment came nearer, or lost the waiter that
-- watched it.
local function flush_wakes(ctx, sooner)
  for _, wake in ipairs(ctx.wakes) do
    ff.wake(ctx, wake[1], ff.wanted(ctx, wake[1], wake[2]))
  end
  if ctx.announced then
    ff.wake(ctx, 'f', 100)
  end
  if not sooner and ctx.watch_ended then
    local due = ff.next_due(ctx)
    sooner = due and due <= ctx.now + ff.FALLBACK
  end
  if sooner then
    ff.wake_any(ctx)
  end
  ff.flush_due(ctx)
end

function ff.flush(ctx)
  ff.keep_pace(ctx)
  ff.flush_ready(ctx)
  flush_counts(ctx)
  local sooner = ff.flush_due(ctx)
  local wakes = sooner or ctx.announced or ctx.watch_ended or #ctx.wakes > 0
  if wakes and call('EXISTS', ctx.base .. ':waiting') == 1 then
    flush_wakes(ctx, sooner)
  end
  ctx.wakes, ctx.watch_ended = {}, nil
end
