-- operating: what an operator or a producer does to an execution, without a lease.

local OPERATE = ff.joined({ ff.CORE, ff.ATTEMPT, { 'started', 'replay_count', 'answered', 'last' } })

-- The record that a call is about, whose first arguments are uuid, pack{namespace} and call; or nil and its answer, when
-- it was given before or there is nothing to operate on.
local function load_once(ctx, args)
  local record, failure = ff.load_in(ctx, args[2], args[1], OPERATE)
  if not record then
    return nil, failure
  end
  local before = ff.recall(record.answered, args[3])
  if before then
    return nil, before
  end
  return record
end

-- cancel_execution: ends an execution in any phase. Arguments: uuid, pack{namespace}, call, reason, source. Answers:
-- 'cancelled', also of a cancelled one.
ff.register_single('cancel_execution', { 'allow-oom' }, function(ctx, args)
  local record, answer = load_once(ctx, args)
  if not record then
    return answer
  elseif record.words.outcome == 'cancelled' then
    return { 'cancelled' }
  elseif record.words.phase == 'terminal' then
    return ff.not_active(record)
  end
  answer = { 'cancelled' }
  ff.finish(ctx, record, 'cancelled', {
    'cancel_reason', args[4], 'cancelled_by', args[5], 'answered', ff.remember(record.answered, args[3], answer),
  }, true)
  return answer
end)

-- change_priority: of work that waits to run, whatever it waits for. Arguments: uuid, pack{namespace}, call,
-- priority. Answers: 'changed' old.
ff.register_single('change_priority', {}, function(ctx, args)
  local record, answer = load_once(ctx, args)
  if not record then
    return answer
  elseif record.words.phase ~= 'runnable' then
    return ff.failure('execution_not_eligible', args[1], record.words.public)
  end
  answer = { 'changed', record.priority }
  ff.move(ctx, record, nil, { priority = tonumber(args[4]), answered = ff.remember(record.answered, args[3], answer) })
  return answer
end)

-- replay_execution: an ended execution runs again, from a new place, as a new attempt. Arguments: uuid,
-- pack{namespace}, call. Answers: 'replayed' state.
ff.register_single('replay_execution', {}, function(ctx, args)
  local record, answer = load_once(ctx, args)
  if not record then
    return answer
  elseif record.words.phase ~= 'terminal' then
    return ff.failure('execution_not_terminal', args[1], record.words.public)
  end
  local replays = tonumber(record.replay_count or '0')
  if replays >= (tonumber(ff.policy(record).max_replays) or 10) then
    return ff.failure('max_replays_exhausted', args[1])
  end
  local index, kind, came, started = ff.attempt_parts(record.attempt or '')
  local endings = { success = 'ended_success', cancelled = 'ended_cancelled' }
  local past = ff.archive(ctx, record, endings[record.words.outcome] or 'ended_failure')
  call(
    'HDEL', record.key, 'result', 'progress_percent', 'progress_message', 'progress_at', 'error', 'error_class',
    'error_detail', 'cancel_reason', 'cancelled_by', 'ended', 'retry_count', 'reclaim_count', 'revoke_reason'
  )
  local completed = record.words.outcome == 'success'
  local overdue = ff.number(record.deadline) and tonumber(record.deadline) <= ctx.now
  answer = { 'replayed', ff.READY .. ff.REPLAY }
  ff.move(ctx, record, answer[2], {
    answered = ff.remember(record.answered, args[3], answer),
    replay_count = replays + 1,
    place = ctx.now,
    attempts = past,
    -- What is archived has begun: the next attempt only follows its number.
    attempt = past and ff.attempt_text(index, kind, came, ''),
    started = past and not record.started and started or nil,
    -- Only an execution that is completed says so itself.
    last = completed and ff.remember_end(record, 'complete', record.fence, { 'completed' }) or nil,
    -- A deadline that is over belonged to the run that is over.
    deadline = overdue and '' or nil,
  })
  return answer
end)

-- revoke_lease: takes the lease away; the work is ready again. Arguments: uuid, pack{namespace}, call, expected lease id
-- or '', expected instance or '', reason. Answers: 'revoked' lease-id epoch, or 'already' why.
ff.register_single('revoke_lease', { 'allow-oom' }, function(ctx, args)
  local record, answer = load_once(ctx, args)
  if not record then
    return answer
  elseif record.words.phase ~= 'active' then
    return ff.not_active(record)
  elseif record.words.ownership == 'lease_revoked' then
    return { 'already', 'already_revoked' }
  elseif not record.words.leased or tonumber(record.expires) <= ctx.now then
    return { 'already', 'already_expired' }
  end
  local lease, epoch = ff.fence_parts(record.fence)
  if args[4] ~= '' and args[4] ~= lease then
    return ff.failure('stale_lease', args[1])
  elseif args[5] ~= '' and args[5] ~= ff.unpack(record.holder)[2] then
    return { 'already', 'different_worker_instance_id' }
  end
  answer = { 'revoked', lease, ff.text(epoch) }
  ff.end_lease(ctx, record, {
    'state', ff.REVOKED, 'revoke_reason', args[6], 'attempt', ff.ended_attempt(ctx, record), 'answered',
    ff.remember(record.answered, args[3], answer),
  }, true)
  return answer
end)

-- pause_lane, resume_lane: a paused lane hands nothing out and loses nothing. Arguments: lane, call. Answers: 'ok', or
-- 'already' when nothing changed.
ff.register('pause_lane', { 'allow-oom' }, function(ctx, args)
  local lane, call_id = args[1], args[2]
  local key = ctx.base .. ':lane:' .. lane
  local stored = call('HMGET', key, 'paused', 'answered')
  local before = ff.recall(stored[2], call_id)
  if before or stored[1] then
    return before or { 'already' }
  end
  local parts = ff.unpack(lane)
  ff.register_lane(ctx, lane, ff.pack({ parts[1] }) .. parts[2])
  call('HSET', key, 'paused', ctx.now, 'answered', ff.remember(stored[2], call_id, { 'ok' }))
  return { 'ok' }
end)

ff.register('resume_lane', { 'allow-oom' }, function(ctx, args)
  local lane, call_id = args[1], args[2]
  local key = ctx.base .. ':lane:' .. lane
  local stored = call('HMGET', key, 'paused', 'answered')
  local before = ff.recall(stored[2], call_id)
  if before or not stored[1] then
    return before or { 'already' }
  end
  call('HDEL', key, 'paused')
  call('HSET', key, 'answered', ff.remember(stored[2], call_id, { 'ok' }))
  -- Those who wait ask for the classes by themselves, however many there are.
  ctx.new_in[lane] = true
  ff.flush(ctx)
  return { 'ok' }
end)

-- set_tags: adds and replaces tags. Arguments: uuid, pack{namespace}, call, pack{key, value, ...}, most tags. Answers: 'ok'
-- number of tags, or 'too_many' and what their number would be.
ff.register_single('set_tags', {}, function(ctx, args)
  local record, answer = load_once(ctx, args)
  if not record then
    return answer
  end
  local order, values = {}, {}
  for _, text in ipairs({ record.tags or '', args[4] }) do
    local parts = ff.unpack(text)
    for i = 1, #parts, 2 do
      if not values[parts[i]] then
        order[#order + 1] = parts[i]
      end
      values[parts[i]] = parts[i + 1]
    end
  end
  if #order > tonumber(args[5]) then
    return { 'too_many', #order }
  end
  table.sort(order)
  local flat = {}
  for _, name in ipairs(order) do
    flat[#flat + 1] = name
    flat[#flat + 1] = values[name]
  end
  answer = { 'ok', ff.text(#order) }
  if ff.pack(flat) == record.tags then
    return answer
  end
  ff.move(ctx, record, nil, { tags = ff.pack(flat), answered = ff.remember(record.answered, args[3], answer) })
  return answer
end)

-- purge: removes an ended execution with everything it ever had, before its retention is over; a damaged one in any
-- phase. Arguments: uuid, pack{namespace}, call.
ff.register_single('purge', { 'allow-oom' }, function(ctx, args)
  if ff.was_removed(ctx, args[3]) then
    return { 'removed' }
  end
  if not ff.is_in_namespace(ctx, args[2], args[1]) then
    return ff.failure('execution_not_found', args[1])
  end
  local record, failure = ff.found(ctx, args[1], ff.load)
  if not record and failure[2] ~= 'corruption' then
    return failure
  elseif not record or ff.is_set_aside(ctx, args[1]) then
    ff.remove_damaged(ctx, args[1], args[2])
    return { 'purged' }
  elseif record.words.phase ~= 'terminal' then
    return ff.failure('execution_not_terminal', args[1], record.words.public)
  end
  ff.remove(ctx, record)
  ff.remember_removal(ctx, args[3])
  return { 'removed' }
end)
