-- The waiters for work and for ends, and which of them a call wakes.
--
-- A waiter is a topic on which one thread listens. It waits for the set of classes that its claim asked for. A set is
-- stored once, however many waiters it has, under a name that follows from its content; the set 'feed' waits for ends.
-- Waiters take turns: the one that has waited longest is woken. A second waiter stands by and looks if the first does not,
-- as when its process is frozen.

-- How many waiters of a set one call wakes at most.
local MOST_WOKEN = 1000

-- How long a waiter stands by before it looks, in ms.
local STAND_BY = 50

-- The classes of each set by name. The meaning of a name never changes, so it can be cached.
local known_sets, known_set_size = {}, 0

local function classes_of_set(ctx, set)
  local known = known_sets[set]
  if not known then
    known = {}
    local parts = ff.unpack(call('HGET', ctx.base .. ':sets', set) or '') or {}
    local classes = ff.unpack(parts[2] or '') or {}
    if known_set_size + #classes > 200000 then
      known_sets, known_set_size = {}, 0
    end
    for _, class in ipairs(classes) do
      known[class] = true
    end
    known_sets[set] = known
    known_set_size = known_set_size + #classes
  end
  return known
end

-- Register a waiter of a set for `wait_ms` and return its turn. `counted` is '1' if the server counts the topic's
-- subscribers.
local function register(ctx, waiter, set, wait_ms, counted)
  local expiry = ctx.now + wait_ms + 1000
  local turn = ff.add(ctx.base .. ':meta', 'turns', 1)
  call('HSET', ctx.base .. ':waiters', waiter, ff.pack({ ff.text(expiry), set, counted }))
  call('ZADD', ctx.base .. ':idle:' .. set, turn, waiter)
  call('ZADD', ctx.base .. ':retention', expiry, 'q' .. waiter)
  return turn
end

-- Register a waiter for the next end.
function ff.wait_for_feed(ctx, waiter, wait_ms, counted)
  register(ctx, waiter, 'feed', wait_ms, counted)
end

-- Register a waiter for a set of classes: those named in `lanes`, and those that are new in these lanes.
function ff.wait_for_work(ctx, waiter, set, lanes, wait_ms, counted)
  if call('HEXISTS', ctx.base .. ':sets', set) == 0 then
    local names, classes, entries = {}, {}, {}
    for i, lane in ipairs(lanes) do
      names[i] = lane.name
      entries[2 * i - 1], entries[2 * i] = 0, lane.name .. '\0' .. set
      for _, class in ipairs(lane.classes) do
        classes[#classes + 1] = class
      end
    end
    call('HSET', ctx.base .. ':sets', set, ff.pack({ ff.pack(names), ff.pack(classes) }))
    ff.chunked('ZADD', ctx.base .. ':lane_sets', entries)
  end
  call('ZADD', ctx.base .. ':waiting', register(ctx, waiter, set, wait_ms, counted), waiter)
end

-- Note that a waiter knows the next due moment and calls again at that moment.
function ff.watch(ctx, waiter, due)
  if due and due <= ctx.now + ff.FALLBACK then
    call('HSET', ctx.base .. ':meta', 'watcher', waiter)
  end
end

-- Deregister those of some waiters that are registered, and return their entries by waiter: until when it waits, its set, and
-- '1' if the server counts its topic's subscribers.
local function deregister(ctx, waiters)
  local stored = call('HMGET', ctx.base .. ':waiters', unpack(waiters)) -- bounded: MOST_WOKEN
  local entries, found, of_sets = {}, {}, {}
  for i = 1, #waiters do
    local waiter, entry = waiters[i], stored[i] and (ff.unpack(stored[i]) or {})
    if entry then
      local set = entry[2] or ''
      entries[waiter], found[#found + 1] = entry, waiter
      of_sets[set] = of_sets[set] or {}
      table.insert(of_sets[set], waiter)
      ff.due_at(ctx, 'retention', 'q' .. waiter, false)
    end
  end
  for set, members in pairs(of_sets) do
    ff.chunked('ZREM', ctx.base .. ':idle:' .. set, members)
    ctx.left_sets[set] = true
  end
  ff.chunked('ZREM', ctx.base .. ':waiting', found)
  ff.chunked('HDEL', ctx.base .. ':waiters', found)
  if ctx.watcher and entries[ctx.watcher] then
    call('HDEL', ctx.base .. ':meta', 'watcher')
    ctx.watcher, ctx.watch_ended = nil, true
  end
  return entries
end

-- Deregister a waiter, and return whether it was registered.
function ff.unwait(ctx, waiter)
  return deregister(ctx, { waiter })[waiter] ~= nil
end

-- Remove the sets that lost their last waiter in this call.
function ff.flush_sets(ctx)
  for set in ff.each_noted(ctx, 'left_sets') do
    if set ~= 'feed' and call('EXISTS', ctx.base .. ':idle:' .. set) == 0 then
      local parts = ff.unpack(call('HGET', ctx.base .. ':sets', set) or '') or {}
      local entries = {}
      for i, lane in ipairs(ff.unpack(parts[1] or '') or {}) do
        entries[i] = lane .. '\0' .. set
      end
      call('HDEL', ctx.base .. ':sets', set)
      ff.chunked('ZREM', ctx.base .. ':lane_sets', entries)
    end
  end
end

-- Return the waiters under a key in turn, read once per call: waiter, turn, waiter, turn, ... from index `at` on.
local function queue_of(ctx, key)
  local queue = ctx.queues[key]
  if not queue then
    queue = call('ZRANGE', ctx.base .. key, 0, MOST_WOKEN - 1, 'WITHSCORES')
    queue.at = 1
    ctx.queues[key] = queue
  end
  return queue
end

-- Return the queues of the waiters for a lane or, with a class, of those for that class.
local function queues_for(ctx, lane, class)
  local sets = ctx.lane_sets[lane]
  if not sets then
    sets = call('ZRANGE', ctx.base .. ':lane_sets', '[' .. lane .. '\0', '(' .. lane .. '\1', 'BYLEX', 'LIMIT', 0, MOST_WOKEN)
    ctx.lane_sets[lane] = sets
  end
  local queues = {}
  for _, member in ipairs(sets) do
    local set = string.sub(member, #lane + 2)
    local queue = (not class or classes_of_set(ctx, set)[class]) and queue_of(ctx, ':idle:' .. set)
    if queue and queue[queue.at] then
      queues[#queues + 1] = queue
    end
  end
  return queues
end

-- Take the waiter whose turn is next from its queue; return nil if there is none.
local function take_next(queues)
  local first, turn
  for _, queue in ipairs(queues) do
    local of_queue = queue[queue.at] and tonumber(queue[queue.at + 1])
    if of_queue and (not turn or of_queue < turn) then
      first, turn = queue, of_queue
    end
  end
  if not first then
    return nil
  end
  first.at = first.at + 2
  return first[first.at - 2]
end

-- Return the waiter that registered last, which is the least likely to be frozen, or nil if there is none.
local function last_of(queues)
  local last, turn
  for _, queue in ipairs(queues) do
    local of_queue = #queue >= queue.at and tonumber(queue[#queue])
    if of_queue and (not turn or of_queue > turn) then
      last, turn = queue[#queue - 1], of_queue
    end
  end
  return last
end

-- Send a waiter a message and return how many subscribers received it.
function ff.tell_waiter(ctx, waiter, word, text)
  return call('PUBLISH', ctx.channel .. waiter, word .. ' ' .. text)
end

-- Take up to `wanted` waiters whose turns are next from their queues.
local function take_some(queues, wanted)
  local taken = {}
  while #taken < wanted do
    local waiter = take_next(queues)
    if not waiter then
      break
    end
    taken[#taken + 1] = waiter
  end
  return taken
end

-- Wake waiters, and add those that may call to `woken`. Waiters without a subscriber are removed.
local function wake(ctx, waiters, woken)
  local entries = deregister(ctx, waiters)
  for i = 1, #waiters do
    local waiter, entry = waiters[i], entries[waiters[i]]
    local expiry = entry and ff.number(entry[1])
    if expiry and expiry >= ctx.now
      and (ff.tell_waiter(ctx, waiter, 'wake', ctx.partition) > 0 or entry[3] ~= '1') then
      woken[#woken + 1] = waiter
    end
  end
end

-- Wake up to `wanted` waiters of some queues, and let the waiter that registered last stand by for them.
local function wake_some(ctx, queues, wanted)
  local woken = {}
  while #woken < wanted do
    local waiters = take_some(queues, math.min(wanted - #woken, MOST_WOKEN))
    if #waiters == 0 then
      return
    end
    wake(ctx, waiters, woken)
  end
  local last = #woken > 0 and last_of(queues)
  if last and call('HEXISTS', ctx.base .. ':waiters', last) == 1 then
    for _, waiter in ipairs(woken) do
      call('HSET', ctx.base .. ':woken', waiter, last)
      ff.due_at(ctx, 'retention', 'q' .. waiter, ctx.now + ff.FALLBACK)
      ff.tell_waiter(ctx, last, 'standby', ctx.partition .. ' ' .. STAND_BY .. ' ' .. waiter)
    end
  end
end

-- Tell the waiter that stands by for a woken waiter that it need not look.
function ff.end_stand_by(ctx, waiter)
  local other = call('HGET', ctx.base .. ':woken', waiter)
  if other then
    call('HDEL', ctx.base .. ':woken', waiter)
    ff.due_at(ctx, 'retention', 'q' .. waiter, false)
    ff.tell_waiter(ctx, other, 'taken', ctx.partition .. ' ' .. waiter)
  end
end

-- Return whether a waiter waits for a class.
function ff.is_waited_for(ctx, class)
  return #queues_for(ctx, ff.class(class).lane, class) > 0
end

-- Wake waiters for a class, but no more than it has ready executions that its gates admit.
local function wake_for_class(ctx, class, wanted)
  local known = ff.class(class)
  local queues = queues_for(ctx, known.lane, class)
  if #queues > 0 then
    wanted = math.min(wanted, known.gates and ff.allowance(ctx, known.gates) or math.huge)
    wake_some(ctx, queues, math.min(wanted, call('ZCARD', ctx.base .. ':ready:' .. class)))
  end
end

-- Wake the waiters that this call concerns, and one more if the next due moment came nearer or lost the waiter that watched
-- it.
local function wake_all(ctx, sooner)
  for lane in pairs(ctx.new_in) do
    wake_some(ctx, queues_for(ctx, lane), MOST_WOKEN)
  end
  for class, count in pairs(ctx.wakes) do
    wake_for_class(ctx, class, count)
  end
  if ctx.announced then
    wake_some(ctx, { queue_of(ctx, ':idle:feed') }, MOST_WOKEN)
  end
  if not sooner and ctx.watch_ended then
    local due = ff.next_due(ctx)
    sooner = due and due <= ctx.now + ff.FALLBACK
  end
  if sooner then
    wake_some(ctx, { queue_of(ctx, ':waiting') }, 1)
  end
end

-- Note that a class has work for `count` more waiters.
function ff.note_wake(ctx, class, count)
  ctx.wakes[class] = (ctx.wakes[class] or 0) + count
end

-- Wake the waiters that this call concerns, and remove the sets without waiters.
function ff.flush_wakes(ctx, sooner)
  local wanted = sooner or ctx.announced or ctx.watch_ended or rawget(ctx, 'wakes') or rawget(ctx, 'new_in')
  if wanted and call('EXISTS', ctx.base .. ':waiters') == 1 then
    wake_all(ctx, sooner)
    ff.flush_due(ctx)
    ctx.queues, ctx.lane_sets = nil, nil
  end
  if wanted then
    ctx.wakes, ctx.new_in, ctx.watch_ended = nil, nil, false
  end
  ff.flush_sets(ctx)
end
