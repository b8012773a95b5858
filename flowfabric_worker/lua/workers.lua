-- workers: who is alive and what it offers. A worker is pack{namespace} and its instance id; of what it says of itself
-- only the first part is read here, its worker id. A task is pack{namespace}, what stands behind the last dot of its name,
-- a line feed, and its name.

-- How long a worker that no longer answers stays listed.
local REMEMBERED = ff.DAY

-- An entry is pack{expires-at, reason of death, registered-at, what it says of itself, what its last calls were answered}.
-- What a newer release wrote behind is kept.
local function write(ctx, worker, entry)
  local parts = entry.parts or {}
  parts[1], parts[2], parts[3] = ff.text(entry.expires), entry.died, ff.text(entry.since)
  parts[4], parts[5] = entry.about, entry.answered
  call('HSET', ctx.base .. ':worker', worker, ff.pack(parts))
  ff.due_at(ctx, 'retention', 'w' .. worker, entry.expires + REMEMBERED)
end

-- The entry of a worker; or nil and the failure to answer, when there is none or it is damaged.
local function read(ctx, worker)
  local stored = call('HGET', ctx.base .. ':worker', worker)
  if not stored then
    return nil, ff.failure('worker_not_found', (ff.behind_first(worker)))
  end
  local parts = ff.unpack(stored)
  if not parts or #parts < 5 or not tonumber(parts[1]) or not tonumber(parts[3]) then
    return nil, ff.failure('corruption', '', 'worker ' .. ff.behind_first(worker))
  end
  return {
    parts = parts, expires = tonumber(parts[1]), died = parts[2], since = tonumber(parts[3]), about = parts[4],
    answered = parts[5],
  }
end

-- register_worker: Arguments: worker, what it says of itself, alive for ms, call. Answers: 'registered' or 'refreshed'.
ff.register('register_worker', { 'allow-oom' }, function(ctx, args)
  local known = read(ctx, args[1])
  local before = known and ff.recall(known.answered, args[4])
  if before then
    return before
  end
  local alive = known and known.died == '' and known.expires > ctx.now
  if alive and ff.unpack(known.about)[1] ~= ff.unpack(args[2])[1] then
    return ff.failure('instance_of_other_worker', (ff.behind_first(args[1])), ff.unpack(known.about)[1])
  end
  local answer = { known and 'refreshed' or 'registered' }
  local entry = known or { since = ctx.now }
  entry.expires, entry.died, entry.about = ctx.now + tonumber(args[3]), '', args[2]
  entry.answered = ff.remember(entry.answered, args[4], answer)
  call('ZADD', ctx.base .. ':workers', 0, args[1])
  write(ctx, args[1], entry)
  ff.flush(ctx)
  return answer
end)

-- heartbeat_worker: Arguments: worker, alive for ms. Answers: 'ok' expires-at.
ff.register('heartbeat_worker', { 'allow-oom' }, function(ctx, args)
  local entry, failure = read(ctx, args[1])
  if not entry then
    return failure
  elseif entry.died ~= '' then
    return ff.failure('worker_dead', (ff.behind_first(args[1])))
  end
  entry.expires = ctx.now + tonumber(args[2])
  write(ctx, args[1], entry)
  ff.flush(ctx)
  return { 'ok', ff.text(entry.expires) }
end)

-- mark_worker_dead: Arguments: worker, reason, call. Answers: 'marked', or 'already'.
ff.register('mark_worker_dead', { 'allow-oom' }, function(ctx, args)
  local entry, failure = read(ctx, args[1])
  if not entry then
    return failure
  end
  local before = ff.recall(entry.answered, args[3])
  if before or entry.died ~= '' then
    return before or { 'already' }
  end
  entry.expires = math.min(entry.expires, ctx.now)
  entry.died = args[2]
  entry.answered = ff.remember(entry.answered, args[3], { 'marked' })
  write(ctx, args[1], entry)
  ff.flush(ctx)
  return { 'marked' }
end)

-- note_death: tells a partition that does not keep the registry why a worker died. Arguments: worker, reason, call.
ff.register('note_death', { 'allow-oom' }, function(ctx, args)
  local answered = ff.remember(nil, args[3], { 'ok' })
  write(ctx, args[1], { expires = ctx.now, died = args[2], since = ctx.now, about = '', answered = answered })
  ff.flush(ctx)
  return { 'ok' }
end)

-- What the last holder of an execution said when it gave it up; nil if it said nothing.
local function said(record)
  local answer = ff.recall_end(record.last or call('HGET', record.key, 'last'), 'release', record.fence)
  return answer and answer[1] == 'lost' and answer[2] or nil
end

-- Why the last holder of an execution lost it, in words: the holder said so, or the supervisor of one that died.
function ff.why_lost(ctx, record)
  local holder = record.holder or call('HGET', record.key, 'holder')
  if record.words.ownership == 'lease_revoked' or not holder or holder == '' then
    return 'its lease was revoked'
  end
  local instance = ff.unpack(holder)[2]
  local entry = read(ctx, ff.class(record.class).namespace .. instance)
  local why = said(record) or entry and entry.died ~= '' and entry.died
  return 'worker ' .. instance .. (why and ': ' .. why or ' stopped renewing its lease')
end

-- list_workers: a page of a namespace's workers. Arguments: pack{namespace}, after (a worker) or '', limit.
-- Answers: now, then per worker: worker, expires-at, reason of death or '', registered-at, what it says of itself; of
-- one whose entry is damaged or gone its name alone, so that it hides nothing behind it.
ff.register('list_workers', { 'no-writes' }, function(ctx, args)
  local namespace = args[1]
  local from = args[2] ~= '' and '(' .. args[2] or '[' .. namespace
  local workers =
    call('ZRANGE', ctx.base .. ':workers', from, '(' .. namespace .. '\255', 'BYLEX', 'LIMIT', 0, tonumber(args[3]))
  local answer = { ctx.now }
  for _, worker in ipairs(workers) do
    local entry = read(ctx, worker)
    if entry then
      answer[#answer + 1] = { worker, ff.text(entry.expires), entry.died, ff.text(entry.since), entry.about }
    else
      answer[#answer + 1] = { worker }
    end
  end
  return answer
end)

-- A worker is forgotten when its time is over.
function ff.forget_worker(ctx, worker)
  local entry = read(ctx, worker)
  if entry and entry.expires + REMEMBERED > ctx.now then
    ff.due_at(ctx, 'retention', 'w' .. worker, entry.expires + REMEMBERED)
    return
  end
  call('HDEL', ctx.base .. ':worker', worker)
  call('ZREM', ctx.base .. ':workers', worker)
end

-- Tasks ---------------------------------------------------------------------------------------------------------------

-- How many tasks a namespace can have published at once.
local MAX_TASKS = 10000

-- An entry is pack{expires-at, published-at, what it says of itself}; nil when there is none or it is damaged.
local function read_task(ctx, task)
  local stored = call('HGET', ctx.base .. ':task', task)
  if not stored then
    return nil
  end
  local parts = ff.unpack(stored)
  if not parts or #parts < 3 or not tonumber(parts[1]) or not tonumber(parts[2]) then
    return nil
  end
  return { expires = tonumber(parts[1]), published = parts[2], about = parts[3] }
end

local function publish(ctx, task, about, keep)
  if not call('ZSCORE', ctx.base .. ':tasks', task) then
    local _, namespace = ff.behind_first(task)
    if call('ZLEXCOUNT', ctx.base .. ':tasks', '[' .. namespace, '(' .. namespace .. '\255') >= MAX_TASKS then
      return ff.failure('too_many_tasks', ff.text(MAX_TASKS))
    end
    call('ZADD', ctx.base .. ':tasks', 0, task)
  end
  call('HSET', ctx.base .. ':task', task, ff.pack({ ff.text(ctx.now + keep), ff.text(ctx.now), about }))
  ff.due_at(ctx, 'retention', 't' .. task, ctx.now + keep)
  return { 'published' }
end

-- publish_tasks: says how each of many tasks is submitted; the last word on a task stands.
-- Arguments per item: task, what it says of itself, how long it is kept in ms.
-- Answers per item: 'published'; or too_many_tasks.
ff.register('publish_tasks', { 'allow-oom' }, function(ctx, args)
  local answers = {}
  for at = 1, #args, 3 do
    answers[#answers + 1] = publish(ctx, args[at], args[at + 1], tonumber(args[at + 2]))
  end
  ff.flush(ctx)
  return answers
end)

-- list_tasks: a page of published tasks. Arguments: where they begin and end (bounds of ZRANGE), limit.
-- Answers: per task: task, expires-at, published-at, what it says of itself; of one whose entry is damaged or gone its
-- name alone. What is over and not removed yet is left out.
ff.register('list_tasks', { 'no-writes' }, function(ctx, args)
  local tasks = call('ZRANGE', ctx.base .. ':tasks', args[1], args[2], 'BYLEX', 'LIMIT', 0, tonumber(args[3]))
  local answer = {}
  for i, task in ipairs(tasks) do
    local entry = read_task(ctx, task)
    if not entry then
      answer[i] = { task }
    else
      answer[i] = { task, ff.text(entry.expires), entry.published, entry.about, entry.expires > ctx.now and 1 or 0 }
    end
  end
  return answer
end)

-- A task is forgotten when nothing has published it for long enough.
function ff.forget_task(ctx, task)
  local entry = read_task(ctx, task)
  if entry and entry.expires > ctx.now then
    ff.due_at(ctx, 'retention', 't' .. task, entry.expires)
    return
  end
  call('HDEL', ctx.base .. ':task', task)
  call('ZREM', ctx.base .. ':tasks', task)
end
