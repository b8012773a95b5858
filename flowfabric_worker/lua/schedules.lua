-- schedules: work that submits itself. When it does is the callers' business: here ticks are only moments, each of them
-- submitted once. A schedule is pack{namespace} and its name, and lies in the partition that this name gives it.

-- An entry is pack{last tick, last submitted tick, paused since, first seen, next tick, about, ticked by, operated by}:
-- moments, '' for none; pack{spec, task, lane}; and two calls with what they answered, to answer them again.
local FIELDS = { 'last', 'submitted', 'paused', 'since', 'next', 'about', 'ticked_by', 'operated_by' }

-- The entry of a schedule; false if there is none; or nil and the failure to answer, when it is damaged.
local function read(ctx, schedule)
  local stored = call('HGET', ctx.base .. ':schedule', schedule)
  if not stored then
    return false
  end
  local parts = ff.unpack(stored)
  if not parts or #parts ~= #FIELDS or not tonumber(parts[1]) or not tonumber(parts[4]) then
    return nil, ff.failure('corruption', '', 'schedule ' .. ff.behind_first(schedule))
  end
  local entry = {}
  for i, field in ipairs(FIELDS) do
    entry[field] = parts[i]
  end
  return entry
end

local function write(ctx, schedule, entry)
  local parts = {}
  for i, field in ipairs(FIELDS) do
    parts[i] = entry[field]
  end
  call('ZADD', ctx.base .. ':schedules', 0, schedule)
  call('HSET', ctx.base .. ':schedule', schedule, ff.pack(parts))
end

-- The ids of the executions that a call carries.
local function carried(args, first)
  local uuids = {}
  for at = first, #args, ff.CREATION_WIDTH do
    uuids[#uuids + 1] = args[at]
  end
  return uuids
end

local function how_far(entry)
  if entry.paused ~= '' then
    return { 'paused', entry.paused }
  end
  return { 'already', entry.last }
end

-- tick_schedule: compares the last tick and sets it, and creates what the ticks make. Who carries no creations only
-- asks, and tells what the schedule is now. Arguments: schedule, expected last tick, new last tick or '', next tick or
-- '', about, call; then of each creation what create_executions takes. Answers: 'registered' last-tick of a schedule
-- yet unknown, 'ticked' uuids, 'already' last-tick, 'paused' since.
ff.register('tick_schedule', {}, function(ctx, args)
  local schedule, expected, tick, call_id = args[1], args[2], args[3], args[6]
  local entry, failure = read(ctx, schedule)
  if failure then
    return failure
  elseif entry and entry.ticked_by == 'registered ' .. call_id then
    return { 'registered', entry.since }
  elseif entry and entry.ticked_by == 'ticked ' .. call_id then
    return { 'ticked', carried(args, 7) }
  elseif tick ~= '' and tonumber(tick) > ctx.now then
    return ff.failure('tick_not_due', (ff.behind_first(schedule)), tick)
  end
  if not entry then
    local now = ctx.now_text
    write(ctx, schedule, {
      last = now, submitted = '', paused = '', since = now, next = args[4], about = args[5],
      ticked_by = 'registered ' .. call_id, operated_by = '',
    })
    return { 'registered', now }
  end
  if tick == '' then
    entry.next, entry.about = args[4], args[5]
    write(ctx, schedule, entry)
    return how_far(entry)
  elseif entry.paused ~= '' or entry.last ~= expected then
    return how_far(entry)
  end
  -- All of them are of one class, so if one is refused the first one is, and nothing was written.
  local first = ff.create_executions(ctx, args, 7)[1]
  if first[1] == 'error' then
    return first
  end
  entry.last, entry.submitted, entry.next, entry.about = tick, tick, args[4], args[5]
  entry.ticked_by = 'ticked ' .. call_id
  write(ctx, schedule, entry)
  return { 'ticked', carried(args, 7) }
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
  elseif (entry.paused ~= '') == paused then
    return { entry.operated_by == call_id and 'ok' or 'already' }
  end
  entry.paused = paused and ctx.now_text or ''
  if not paused then
    -- What it would have done meanwhile is not made up for.
    entry.last = ff.text(math.max(tonumber(entry.last), ctx.now))
  end
  entry.operated_by = call_id
  write(ctx, schedule, entry)
  return { 'ok' }
end

-- pause_schedule, resume_schedule: a paused schedule submits nothing. Arguments: schedule, call.
ff.register('pause_schedule', { 'allow-oom' }, function(ctx, args)
  return operate(ctx, args[1], args[2], true)
end)

ff.register('resume_schedule', { 'allow-oom' }, function(ctx, args)
  return operate(ctx, args[1], args[2], false)
end)

-- remove_schedule: forgets a schedule, also a damaged one. Argument: schedule.
ff.register('remove_schedule', { 'allow-oom' }, function(ctx, args)
  if call('ZREM', ctx.base .. ':schedules', args[1]) == 0 then
    return ff.failure('schedule_not_found', (ff.behind_first(args[1])))
  end
  call('HDEL', ctx.base .. ':schedule', args[1])
  return { 'removed' }
end)

-- list_schedules: a page of a namespace's schedules in this partition. Arguments: pack{namespace}, after (a schedule) or
-- '', limit. Answers per schedule: schedule, then the first six fields of its entry; of a damaged one its name alone.
ff.register('list_schedules', { 'no-writes' }, function(ctx, args)
  local namespace = args[1]
  local from = args[2] ~= '' and '(' .. args[2] or '[' .. namespace
  local names =
    call('ZRANGE', ctx.base .. ':schedules', from, '(' .. namespace .. '\255', 'BYLEX', 'LIMIT', 0, tonumber(args[3]))
  local answer = {}
  for i, schedule in ipairs(names) do
    local entry = read(ctx, schedule)
    answer[i] = { schedule }
    for j = 1, entry and 6 or 0 do
      answer[i][j + 1] = entry[FIELDS[j]]
    end
  end
  return answer
end)
