-- The registered workers and the published tasks. A worker is pack{namespace} and its instance id. A task is
-- pack{namespace}, the part of its name behind the last dot, a line feed, and its whole name.

-- How long a worker stays listed after its registration expired, in ms.
local REMEMBERED = ff.DAY

-- Write the entry of a worker: pack{expires at, reason of death, registered at, description, remembered calls}. Further
-- parts, which a newer release wrote, are kept. The first part of a description is the worker id.
local function write(ctx, worker, entry)
  local parts = entry.parts or {}
  parts[1], parts[2], parts[3] = ff.text(entry.expires), entry.died, ff.text(entry.since)
  parts[4], parts[5] = entry.about, entry.answered
  call('HSET', ctx.base .. ':worker', worker, ff.pack(parts))
  ff.due_at(ctx, 'retention', 'w' .. worker, entry.expires + REMEMBERED)
end

-- Return the entry of a worker, or nil and the failure if there is none or it is damaged.
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

-- register_worker: register a worker instance, or refresh its registration.
-- Arguments: worker, description, how long it is alive in ms, call id.
-- Replies: 'registered' or 'refreshed'.
-- Errors: instance_of_other_worker.
ff.register('register_worker', { 'allow-oom' }, function(ctx, args)
  local worker, about, alive_ms, call_id = args[1], args[2], tonumber(args[3]), args[4]
  local known = read(ctx, worker)
  local before = known and ff.recall(known.answered, call_id)
  if before then
    return before
  end
  local alive = known and known.died == '' and known.expires > ctx.now
  if alive and ff.unpack(known.about)[1] ~= ff.unpack(about)[1] then
    return ff.failure('instance_of_other_worker', (ff.behind_first(worker)), ff.unpack(known.about)[1])
  end
  local answer = { known and 'refreshed' or 'registered' }
  local entry = known or { since = ctx.now }
  entry.expires, entry.died, entry.about = ctx.now + alive_ms, '', about
  entry.answered = ff.remember(entry.answered, call_id, answer)
  call('ZADD', ctx.base .. ':workers', 0, worker)
  write(ctx, worker, entry)
  ff.flush(ctx)
  return answer
end)

-- heartbeat_worker: extend the registration of a worker instance.
-- Arguments: worker, how long it is alive in ms.
-- Replies: 'ok', the moment at which the registration expires.
-- Errors: worker_not_found, worker_dead, corruption.
ff.register('heartbeat_worker', { 'allow-oom' }, function(ctx, args)
  local worker, alive_ms = args[1], tonumber(args[2])
  local entry, failure = read(ctx, worker)
  if not entry then
    return failure
  elseif entry.died ~= '' then
    return ff.failure('worker_dead', (ff.behind_first(worker)))
  end
  entry.expires = ctx.now + alive_ms
  write(ctx, worker, entry)
  ff.flush(ctx)
  return { 'ok', ff.text(entry.expires) }
end)

-- mark_worker_dead: record that a worker instance died, and why.
-- Arguments: worker, reason, call id.
-- Replies: 'marked', or 'already' if it was marked before.
-- Errors: worker_not_found, corruption.
ff.register('mark_worker_dead', { 'allow-oom' }, function(ctx, args)
  local worker, reason, call_id = args[1], args[2], args[3]
  local entry, failure = read(ctx, worker)
  if not entry then
    return failure
  end
  local before = ff.recall(entry.answered, call_id)
  if before or entry.died ~= '' then
    return before or { 'already' }
  end
  entry.expires = math.min(entry.expires, ctx.now)
  entry.died = reason
  entry.answered = ff.remember(entry.answered, call_id, { 'marked' })
  write(ctx, worker, entry)
  ff.flush(ctx)
  return { 'marked' }
end)

-- note_death: record in a partition without the registry why a worker died.
-- Arguments: worker, reason, call id.
-- Replies: 'ok'.
ff.register('note_death', { 'allow-oom' }, function(ctx, args)
  local worker, reason, call_id = args[1], args[2], args[3]
  local answered = ff.remember(nil, call_id, { 'ok' })
  write(ctx, worker, { expires = ctx.now, died = reason, since = ctx.now, about = '', answered = answered })
  ff.flush(ctx)
  return { 'ok' }
end)

-- Return the reason that the last holder of an execution gave when it gave the execution up, or nil.
local function said(record)
  local answer = ff.recall_end(record.last or call('HGET', record.key, 'last'), 'release', record.fence)
  return answer and answer[1] == 'lost' and answer[2] or nil
end

-- Return in words why the last holder of an execution lost it: by the holder itself, or by the supervisor of one that died.
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

-- list_workers: read a page of a namespace's workers.
-- Arguments: pack{namespace}, after (a worker) or '', limit.
-- Replies: '1' if there may be more workers, else '0'; then per worker: worker, expires at, reason of death or '',
-- registered at, description, 1 if it is alive, else 0. A worker with a damaged or missing entry is its name alone.
ff.register('list_workers', { 'no-writes' }, function(ctx, args)
  local namespace, after, limit = args[1], args[2], tonumber(args[3])
  local from = after ~= '' and '(' .. after or '[' .. namespace
  local workers = call('ZRANGE', ctx.base .. ':workers', from, '(' .. namespace .. '\255', 'BYLEX', 'LIMIT', 0, limit)
  return ff.read_rows(ctx, workers, limit, function(worker)
    local entry = read(ctx, worker)
    if not entry then
      return { worker }
    end
    local is_alive = entry.died == '' and entry.expires > ctx.now
    return { worker, ff.text(entry.expires), entry.died, ff.text(entry.since), entry.about, is_alive and 1 or 0 }
  end)
end)

-- Remove a worker that has been listed long enough.
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

-- Return the entry of a task, pack{expires at, published at, description}; nil if there is none or it is damaged.
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

-- Store the description of a task for `keep` ms; refuse it if its namespace has too many tasks.
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

-- publish_tasks: store how tasks are submitted. The last description of a task stands.
-- Arguments per item: task, description, how long it is kept in ms.
-- Replies per item: 'published'.
-- Errors per item: too_many_tasks, batch_full.
ff.register('publish_tasks', { 'allow-oom' }, function(ctx, args)
  local answers = {}
  for at = 1, #args, 3 do
    local task, about, keep_ms = args[at], args[at + 1], tonumber(args[at + 2])
    if ctx.work > 0 or at == 1 then
      ff.spend(ctx, 4, #about)
      answers[#answers + 1] = publish(ctx, task, about, keep_ms)
    else
      answers[#answers + 1] = ff.failure('batch_full')
    end
  end
  ff.flush(ctx)
  return answers
end)

-- list_tasks: read a page of published tasks.
-- Arguments: the first and the last bound (as ZRANGE takes them), limit.
-- Replies: '1' if there may be more tasks, else '0'; then per task: task, expires at, published at, description, 1 if it
-- has not expired, else 0. A task with a damaged or missing entry is its name alone.
ff.register('list_tasks', { 'no-writes' }, function(ctx, args)
  local first, last, limit = args[1], args[2], tonumber(args[3])
  local tasks = call('ZRANGE', ctx.base .. ':tasks', first, last, 'BYLEX', 'LIMIT', 0, limit)
  return ff.read_rows(ctx, tasks, limit, function(task)
    local entry = read_task(ctx, task)
    if not entry then
      return { task }
    end
    return { task, ff.text(entry.expires), entry.published, entry.about, entry.expires > ctx.now and 1 or 0 }
  end)
end)

-- Remove a task that has not been published again in time.
function ff.forget_task(ctx, task)
  local entry = read_task(ctx, task)
  if entry and entry.expires > ctx.now then
    ff.due_at(ctx, 'retention', 't' .. task, entry.expires)
    return
  end
  call('HDEL', ctx.base .. ':task', task)
  call('ZREM', ctx.base .. ':tasks', task)
end
