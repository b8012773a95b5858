-- Schedules: work that is submitted at ticks. The callers compute the ticks; each moment is submitted once. A
-- schedule is pack{namespace} and its name, and is in the partition that its name gives.

-- The parts of an entry: last tick, last submitted tick, paused since, first seen, next tick (moments, '' for none),
-- pack{spec, task, lane}, remembered calls, number of missed ticks. Further parts, which a newer release wrote, are kept.
local FIELDS = { 'last', 'submitted', 'paused', 'since', 'next', 'about', 'answered', 'missed' }

-- How many schedules and executions one call of tick_schedules handles.
local MOST_TICKED = 100

-- Return the entry of a schedule from its stored text: false if there is none, or nil and the failure if it is damaged.
local function parse(schedule, stored)
  if not stored then
    return false
  end
  local parts = ff.unpack(stored)
  if not parts or #parts < #FIELDS or not tonumber(parts[1]) or not tonumber(parts[4]) then
    return nil, ff.failure('corruption', '', 'schedule ' .. ff.behind_first(schedule))
  end
  local entry = { parts = parts }
  for i, field in ipairs(FIELDS) do
    entry[field] = parts[i]
  end
  return entry
end

local function read(ctx, schedule)
  return parse(schedule, call('HGET', ctx.base .. ':schedule', schedule))
end

local function packed(entry)
  local parts = entry.parts or {}
  for i, field in ipairs(FIELDS) do
    parts[i] = entry[field]
  end
  return ff.pack(parts)
end

-- Return the ids of the executions that an item creates.
local function carried(args, first, count)
  local uuids = {}
  for i = 1, count do
    uuids[i] = args[first + (i - 1) * ff.CREATION_WIDTH]
  end
  return uuids
end

-- Return the reply with the last tick of a schedule.
local function how_far(entry)
  if entry.paused ~= '' then
    return { 'paused', entry.paused }
  end
  return { 'already', entry.last }
end

-- How many arguments an item of tick_schedules has before its creations.
local HEAD = 8

-- Return the item whose arguments begin at `at`, and where the next one begins.
local function item(args, at)
  local count = tonumber(args[at + 7])
  return {
    schedule = args[at], expected = args[at + 1], last = args[at + 2], following = args[at + 3], about = args[at + 4],
    call_id = args[at + 5], missed = tonumber(args[at + 6]), count = count, first = at + HEAD,
  }, at + HEAD + count * ff.CREATION_WIDTH
end

-- Create the executions of an item's ticks, and move the entry's last tick. All executions have one class, so if any is
-- refused, the first one is, before anything is written.
local function submit(ctx, args, it, entry)
  for i = 1, it.count do
    local answer = ff.create(ctx, args, it.first + (i - 1) * ff.CREATION_WIDTH)
    if answer[1] == 'error' then
      return answer
    end
  end
  entry.last, entry.next, entry.about = it.last, it.following, it.about
  entry.submitted = it.count > 0 and it.last or entry.submitted
  entry.missed = ff.text(tonumber(entry.missed) + it.missed)
  entry.answered = ff.remember(entry.answered, it.call_id, { 'ticked' })
  return { 'ticked', carried(args, it.first, it.count) }, entry
end

-- Handle one item. Return its reply, and the entry if it has to be written.
local function tick(ctx, args, it, entry)
  local before = entry and ff.recall(entry.answered, it.call_id)
  if before then
    return before[1] == 'ticked' and { 'ticked', carried(args, it.first, it.count) } or before
  elseif it.last ~= '' and tonumber(it.last) > ctx.now then
    return ff.failure('tick_not_due', (ff.behind_first(it.schedule)), it.last)
  elseif not entry then
    local now = ctx.now_text
    local answer = { 'registered', now }
    return answer, {
      last = now, submitted = '', paused = '', since = now, next = it.following, about = it.about,
      answered = ff.remember(nil, it.call_id, answer), missed = '0',
    }
  elseif it.last == '' then
    entry.next, entry.about = it.following, it.about
    return how_far(entry), entry
  elseif entry.paused ~= '' or entry.last ~= it.expected then
    return how_far(entry)
  end
  return submit(ctx, args, it, entry)
end

-- Return the items that one call can handle, and the replies of the others.
local function bounded(args)
  local items, over, work, bytes, at = {}, {}, 0, 0, 1
  while at <= #args do
    local it, behind = item(args, at)
    for i = at, behind - 1 do
      bytes = bytes + #args[i]
    end
    work = work + 1 + it.count
    if #items > 0 and (#over > 0 or work > MOST_TICKED or bytes > ff.MAX_WORK * ff.BYTES_PER_WORK) then
      over[#over + 1] = ff.failure('batch_full')
    else
      items[#items + 1] = it
    end
    at = behind
  end
  return items, over
end

-- tick_schedules: per schedule compare the last tick, move it, and create the executions of the new ticks. An item without
-- a new last tick only asks.
-- Arguments per item: schedule, expected last tick, new last tick or '', next tick or '', pack{spec, task, lane}, call id,
-- number of missed ticks, number of executions; then per execution the arguments of one creation, see ff.CREATION_WIDTH.
-- Replies per item: 'registered' and the last tick of a schedule that was unknown; 'ticked' and the uuids; 'already' and
-- the last tick; or 'paused' and since when.
-- Errors per item: tick_not_due, corruption, batch_full, those of create_executions.
ff.register('tick_schedules', {}, function(ctx, args)
  local items, over = bounded(args)
  local names, answers, written, new = {}, {}, {}, {}
  for i, it in ipairs(items) do
    names[i] = it.schedule
  end
  local stored = call('HMGET', ctx.base .. ':schedule', unpack(names)) -- bounded: MOST_TICKED items
  for i, it in ipairs(items) do
    local entry, failure = parse(it.schedule, stored[i])
    local changed
    if failure then
      answers[i] = failure
    else
      answers[i], changed = tick(ctx, args, it, entry)
    end
    if changed then
      written[#written + 1], written[#written + 2] = it.schedule, packed(changed)
      if not entry then
        new[#new + 1], new[#new + 2] = 0, it.schedule
      end
    end
  end
  ff.chunked('ZADD', ctx.base .. ':schedules', new)
  ff.chunked('HSET', ctx.base .. ':schedule', written)
  ff.flush(ctx)
  return ff.joined({ answers, over })
end)

-- Return the entry of a schedule that must exist, or nil and the failure.
local function known(ctx, schedule)
  local entry, failure = read(ctx, schedule)
  if entry then
    return entry
  end
  return nil, failure or ff.failure('schedule_not_found', (ff.behind_first(schedule)))
end

-- Pause or resume a schedule. Return 'ok', or 'already' if nothing changed.
local function operate(ctx, schedule, call_id, paused)
  local entry, failure = known(ctx, schedule)
  if not entry then
    return failure
  end
  local before = ff.recall(entry.answered, call_id)
  if before or (entry.paused ~= '') == paused then
    return before or { 'already' }
  end
  entry.paused = paused and ctx.now_text or ''
  if not paused then
    -- Ticks that passed during the pause are not submitted later.
    entry.last = ff.text(math.max(tonumber(entry.last), ctx.now))
  end
  entry.answered = ff.remember(entry.answered, call_id, { 'ok' })
  call('HSET', ctx.base .. ':schedule', schedule, packed(entry))
  return { 'ok' }
end

-- pause_schedule: stop submitting a schedule's ticks.
-- Arguments: schedule, call id.
-- Replies: 'ok', or 'already' if it was paused before.
-- Errors: schedule_not_found, corruption.
ff.register('pause_schedule', { 'allow-oom' }, function(ctx, args)
  local schedule, call_id = args[1], args[2]
  return operate(ctx, schedule, call_id, true)
end)

-- resume_schedule: submit a paused schedule's ticks again, from now on.
-- Arguments: schedule, call id.
-- Replies: 'ok', or 'already' if it was not paused.
-- Errors: schedule_not_found, corruption.
ff.register('resume_schedule', { 'allow-oom' }, function(ctx, args)
  local schedule, call_id = args[1], args[2]
  return operate(ctx, schedule, call_id, false)
end)

-- remove_schedule: remove a schedule, also a damaged one.
-- Arguments: schedule, call id.
-- Replies: 'removed'.
-- Errors: schedule_not_found.
ff.register('remove_schedule', { 'allow-oom' }, function(ctx, args)
  local schedule, call_id = args[1], args[2]
  if ff.was_removed(ctx, call_id) then
    return { 'removed' }
  elseif call('ZREM', ctx.base .. ':schedules', schedule) == 0 then
    return ff.failure('schedule_not_found', (ff.behind_first(schedule)))
  end
  call('HDEL', ctx.base .. ':schedule', schedule)
  ff.remember_removal(ctx, call_id)
  return { 'removed' }
end)

-- list_schedules: read a page of a namespace's schedules in this partition.
-- Arguments: pack{namespace}, after (a schedule) or '', limit.
-- Replies: '1' if there may be more schedules, else '0'; then per schedule: schedule, the parts of its entry in order. A
-- damaged schedule is its name alone.
ff.register('list_schedules', { 'no-writes' }, function(ctx, args)
  local namespace, after, limit = args[1], args[2], tonumber(args[3])
  local from = after ~= '' and '(' .. after or '[' .. namespace
  local names =
    call('ZRANGE', ctx.base .. ':schedules', from, '(' .. namespace .. '\255', 'BYLEX', 'LIMIT', 0, limit)
  return ff.read_rows(ctx, names, limit, function(schedule)
    local entry = read(ctx, schedule)
    local row = { schedule }
    for i = 1, entry and #FIELDS or 0 do
      row[i + 1] = entry[FIELDS[i]]
    end
    return row
  end)
end)

-- Leaders. Of the processes that have the same schedules one submits their ticks, and the others stand by. A group is
-- pack{namespace} and a digest of its schedules. Each tick is submitted once even with several leaders.

-- How many groups with expired leaders one call removes.
local MOST_FORGOTTEN = 8

local function forget_leader(ctx, group)
  call('ZREM', ctx.base .. ':leaders', group)
  call('HDEL', ctx.base .. ':leader', group)
end

-- lead_schedules: make a process the leader of a group for some time, unless another process is the leader.
-- Arguments: group, process, time in ms.
-- Replies: 'leader' or 'follower', until when the group has a leader, now.
ff.register('lead_schedules', {}, function(ctx, args)
  local group, process, ttl = args[1], args[2], tonumber(args[3])
  local until_ms = ctx.now + ttl
  local known = call('ZSCORE', ctx.base .. ':leaders', group)
  if known and tonumber(known) > ctx.now and call('HGET', ctx.base .. ':leader', group) ~= process then
    return { 'follower', ff.text(tonumber(known)), ctx.now_text }
  end
  local gone =
    call('ZRANGE', ctx.base .. ':leaders', '-inf', ctx.now - ff.HOUR, 'BYSCORE', 'LIMIT', 0, MOST_FORGOTTEN)
  for _, other in ipairs(gone) do
    forget_leader(ctx, other)
  end
  call('ZADD', ctx.base .. ':leaders', until_ms, group)
  call('HSET', ctx.base .. ':leader', group, process)
  return { 'leader', ff.text(until_ms), ctx.now_text }
end)

-- resign_schedules: end a process's leadership of a group.
-- Arguments: group, process.
-- Replies: 'ok', also if another process is the leader.
ff.register('resign_schedules', { 'allow-oom' }, function(ctx, args)
  local group, process = args[1], args[2]
  if call('HGET', ctx.base .. ':leader', group) == process then
    forget_leader(ctx, group)
  end
  return { 'ok' }
end)
