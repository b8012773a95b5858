-- schedules: work that submits itself. When it does is the callers' business: here ticks are only moments, each of them
-- submitted once. A schedule is pack{namespace} and its name, and lies in the partition that this name gives it.

-- An entry is pack{last tick, last submitted tick, paused since, first seen, next tick, about, answered, missed}: moments,
-- '' for none; pack{spec, task, lane}; what its last calls were answered; and how many ticks were missed. What a newer
-- release wrote behind is kept.
local FIELDS = { 'last', 'submitted', 'paused', 'since', 'next', 'about', 'answered', 'missed' }

-- How many schedules and executions one call of tick_schedules handles: about 3 ms of the server's time.
local MOST_TICKED = 100

-- The entry of a schedule as it is stored; false if there is none; or nil and the failure to answer, when it is damaged.
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

-- The ids of the executions that an item carries.
local function carried(args, first, count)
  local uuids = {}
  for i = 1, count do
    uuids[i] = args[first + (i - 1) * ff.CREATION_WIDTH]
  end
  return uuids
end

local function how_far(entry)
  if entry.paused ~= '' then
    return { 'paused', entry.paused }
  end
  return { 'already', entry.last }
end

-- Of each item of tick_schedules the arguments before its creations.
local HEAD = 8

-- The item whose arguments begin at `at`, by name, and where the next one begins.
local function item(args, at)
  local count = tonumber(args[at + 7])
  return {
    schedule = args[at], expected = args[at + 1], last = args[at + 2], following = args[at + 3], about = args[at + 4],
    call_id = args[at + 5], missed = tonumber(args[at + 6]), count = count, first = at + HEAD,
  }, at + HEAD + count * ff.CREATION_WIDTH
end

-- Creates what the ticks of an item make, and sets the entry's last tick. All are of one class, so if one is refused
-- the first one is, and nothing was written.
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

-- Handles one item; answers it, and the entry if that has to be written.
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

-- The items that one call handles, and the answers of those that are too many.
local function bounded(args)
  local items, over, work, bytes, at = {}, {}, 0, 0, 1
  while at <= #args do
    local it, behind = item(args, at)
    for i = at, behind - 1 do
      bytes = bytes + #args[i]
    end
    work = work + 1 + it.count
    if #items > 0 and (#over > 0 or work > MOST_TICKED or bytes > ff.MAX_WORK * ff.BYTES_PER_WORK) then
      over[#over + 1] = ff.failure('again')
    else
      items[#items + 1] = it
    end
    at = behind
  end
  return items, over
end

-- tick_schedules: of each schedule, compares the last tick and sets it, and creates what the ticks make. An item without
-- a new last tick only asks; each tells what its schedule is now. Arguments per item: schedule, expected last tick, new
-- last tick or '', next tick or '', about, call, how many ticks were missed, how many are submitted; then of each of
-- these what create_executions takes. Answers per item: 'registered' last-tick of a schedule yet unknown, 'ticked'
-- uuids, 'already' last-tick, 'paused' since; or an error.
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

-- The entry of a schedule that must exist; or nil and the failure to answer.
local function known(ctx, schedule)
  local entry, failure = read(ctx, schedule)
  if entry then
    return entry
  end
  return nil, failure or ff.failure('schedule_not_found', (ff.behind_first(schedule)))
end

-- Pauses a schedule or lets it go on, by a call that may come twice. Answers: 'ok', or 'already' if nothing changed.
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
    -- What it would have done meanwhile is not made up for.
    entry.last = ff.text(math.max(tonumber(entry.last), ctx.now))
  end
  entry.answered = ff.remember(entry.answered, call_id, { 'ok' })
  call('HSET', ctx.base .. ':schedule', schedule, packed(entry))
  return { 'ok' }
end

-- pause_schedule, resume_schedule: a paused schedule submits nothing. Arguments: schedule, call.
ff.register('pause_schedule', { 'allow-oom' }, function(ctx, args)
  return operate(ctx, args[1], args[2], true)
end)

ff.register('resume_schedule', { 'allow-oom' }, function(ctx, args)
  return operate(ctx, args[1], args[2], false)
end)

-- remove_schedule: forgets a schedule, also a damaged one. Arguments: schedule, call.
ff.register('remove_schedule', { 'allow-oom' }, function(ctx, args)
  if ff.was_removed(ctx, args[2]) then
    return { 'removed' }
  elseif call('ZREM', ctx.base .. ':schedules', args[1]) == 0 then
    return ff.failure('schedule_not_found', (ff.behind_first(args[1])))
  end
  call('HDEL', ctx.base .. ':schedule', args[1])
  ff.remember_removal(ctx, args[2])
  return { 'removed' }
end)

-- list_schedules: a page of a namespace's schedules in this partition. Arguments: pack{namespace}, after (a schedule) or
-- '', limit. Answers per schedule: schedule, then the fields of its entry in their order; of a damaged one its name
-- alone.
ff.register('list_schedules', { 'no-writes' }, function(ctx, args)
  local namespace = args[1]
  local from = args[2] ~= '' and '(' .. args[2] or '[' .. namespace
  local names =
    call('ZRANGE', ctx.base .. ':schedules', from, '(' .. namespace .. '\255', 'BYLEX', 'LIMIT', 0, tonumber(args[3]))
  local answer = {}
  for i, schedule in ipairs(names) do
    local entry = read(ctx, schedule)
    answer[i] = { schedule }
    for j = 1, entry and #FIELDS or 0 do
      answer[i][j + 1] = entry[FIELDS[j]]
    end
  end
  return answer
end)

-- Leaders: of the processes that have the same schedules one submits their ticks, and the others stand by. A group is
-- pack{namespace} and a digest of its schedules. That each tick is submitted once does not depend on the leader.

-- How many groups whose leaders are gone are forgotten in one call.
local MOST_FORGOTTEN = 8

local function forget_leader(ctx, group)
  call('ZREM', ctx.base .. ':leaders', group)
  call('HDEL', ctx.base .. ':leader', group)
end

-- lead_schedules: makes a process the leader of a group for some time, unless another one is. Arguments: group, process,
-- time in ms. Answers: 'leader' or 'follower', until when there is a leader, the store's clock.
ff.register('lead_schedules', {}, function(ctx, args)
  local group, process, until_ms = args[1], args[2], ctx.now + tonumber(args[3])
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

-- resign_schedules: ends a leadership. Arguments: group, process. Answers: 'ok', also where another one leads.
ff.register('resign_schedules', { 'allow-oom' }, function(ctx, args)
  if call('HGET', ctx.base .. ':leader', args[1]) == args[2] then
    forget_leader(ctx, args[1])
  end
  return { 'ok' }
end)
