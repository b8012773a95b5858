-- What an operator or a producer does to an execution or a lane, without a lease.

local OPERATE = ff.joined({ ff.CORE, { 'holder', 'answered' } })
local REPLAY = ff.joined({
  ff.CORE, ff.ATTEMPT, { 'started', 'replay_count', 'answered', 'last', 'steps', 'journal_bytes' },
})

-- Load the record that an operator's call is about, with some fields or those of OPERATE. Returns nil and the reply to give if the call was answered before or
-- the namespace has no such execution.
local function load_once(ctx, uuid, namespace, call_id, fields)
  local record, failure = ff.load_in(ctx, namespace, uuid, fields or OPERATE)
  if not record then
    return nil, failure
  end
  local before = ff.recall(record.answered, call_id)
  if before then
    return nil, before
  elseif record.words.foreign then
    return nil, ff.failure('written_by_newer_release', uuid)
  end
  return record
end

-- cancel_execution: end an execution as cancelled, in any phase.
-- Arguments: uuid, pack{namespace}, call id, reason, source.
-- Replies: 'cancelled', also if the execution was cancelled before.
-- Errors: execution_not_found, written_by_newer_release, execution_not_active.
ff.register_single('cancel_execution', { 'allow-oom' }, function(ctx, args)
  local uuid, namespace, call_id, reason, source = args[1], args[2], args[3], args[4], args[5]
  local record, answer = load_once(ctx, uuid, namespace, call_id)
  if not record then
    return answer
  elseif record.words.outcome == 'cancelled' then
    return { 'cancelled' }
  elseif record.words.phase == 'terminal' then
    return ff.not_active(record)
  end
  answer = { 'cancelled' }
  ff.finish(ctx, record, 'cancelled', {
    'cancel_reason', reason, 'cancelled_by', source, 'answered', ff.remember(record.answered, call_id, answer),
  }, true)
  return answer
end)

-- change_priority: change the priority of a runnable execution, also of a delayed or a blocked one.
-- Arguments: uuid, pack{namespace}, call id, priority.
-- Replies: 'changed', the priority before.
-- Errors: execution_not_found, written_by_newer_release, execution_not_eligible.
ff.register_single('change_priority', {}, function(ctx, args)
  local uuid, namespace, call_id, priority = args[1], args[2], args[3], tonumber(args[4])
  local record, answer = load_once(ctx, uuid, namespace, call_id)
  if not record then
    return answer
  elseif record.words.phase ~= 'runnable' then
    return ff.failure('execution_not_eligible', uuid, record.words.public)
  end
  answer = { 'changed', record.priority }
  ff.move(ctx, record, nil, { priority = priority, answered = ff.remember(record.answered, call_id, answer) })
  return answer
end)

-- Return the names of a record's steps, and the place of the first one that a replay forgets: 1 for '*', nil for ''. Return
-- nil and the failure if the step is unknown or the journal is damaged.
local function steps_to_forget(ctx, record, from)
  local names, place = {}, nil
  if from ~= '' then
    names = ff.step_names(record)
    place = names and (from == '*' and 1 or ff.place_of_step(names, string.sub(from, 2)))
  end
  if not names then
    return nil, ff.set_aside(ctx, record.uuid, 'steps', record.class)
  elseif from ~= '' and not place then
    return nil, ff.failure('step_not_found', record.uuid, string.sub(from, 2))
  end
  return names, place
end

-- Remove what an ended execution has of its run, before it begins again. Return the changes to its record. The result of a
-- member of a flow stays for those that received it as an input.
local function clear_run(ctx, record, names, place)
  call(
    'HDEL', record.key, record.flow and 'progress_at' or 'result', 'progress_percent', 'progress_message', 'progress_at', 'error', 'error_class',
    'error_detail', 'cancel_reason', 'cancelled_by', 'ended', 'retry_count', 'reclaim_count', 'revoke_reason'
  )
  if not place then
    return {}
  end
  ff.forget_waits(ctx, record)
  local steps, bytes = ff.forget_steps(record, names, place)
  return { steps = steps, journal_bytes = bytes }
end

-- replay_execution: make an ended execution ready again, in a new place and with a new attempt.
-- Arguments: uuid, pack{namespace}, call id, which steps to forget: '' for none, '*' for all, '=' + name for that step and
-- all after it.
-- Replies: 'replayed', the new state.
-- Errors: execution_not_found, written_by_newer_release, execution_not_terminal, max_replays_exhausted, step_not_found.
ff.register_single('replay_execution', {}, function(ctx, args)
  local uuid, namespace, call_id = args[1], args[2], args[3]
  local record, answer = load_once(ctx, uuid, namespace, call_id, REPLAY)
  if not record then
    return answer
  elseif record.words.phase ~= 'terminal' then
    return ff.failure('execution_not_terminal', uuid, record.words.public)
  end
  local replays = tonumber(record.replay_count or '0')
  if replays >= (tonumber(ff.policy(record).max_replays) or ff.DEFAULT_MAX_REPLAYS) then
    return ff.failure('max_replays_exhausted', uuid)
  end
  local names, place = steps_to_forget(ctx, record, args[4])
  if not names then
    return place
  end
  local index, kind, came, started = ff.attempt_parts(record.attempt or '')
  local endings = { success = 'ended_success', cancelled = 'ended_cancelled' }
  local past = ff.archive(ctx, record, endings[record.words.outcome] or 'ended_failure')
  local cleared = clear_run(ctx, record, names, place)
  local completed = record.words.outcome == 'success'
  local overdue = ff.number(record.deadline) and tonumber(record.deadline) <= ctx.now
  if record.children then
    ff.reopen_children(ctx, record)
  end
  answer = { 'replayed', (record.flow and ff.replay_member(ctx, record) or ff.READY) .. ff.REPLAY }
  ff.move(ctx, record, answer[2], {
    answered = ff.remember(record.answered, call_id, answer),
    replay_count = replays + 1,
    place = ctx.now,
    attempts = past,
    steps = cleared.steps,
    journal_bytes = cleared.journal_bytes,
    -- The next attempt takes its number from the field `attempt`, so an archived attempt stays there without its start.
    attempt = past and ff.attempt_text(index, kind, came, ''),
    started = past and not record.started and started or nil,
    -- Only a completed execution answers a repeated `complete` from its outcome, which the replay removes.
    last = completed and ff.remember_end(record, 'complete', record.fence, { 'completed' }) or nil,
    -- A deadline that has passed belonged to the run that has ended.
    deadline = overdue and '' or nil,
  })
  return answer
end)

-- revoke_lease: take a lease away from its holder and make the execution ready again.
-- Arguments: uuid, pack{namespace}, call id, expected lease id or '', expected instance or '', reason.
-- Replies: 'revoked', lease id, epoch; or 'already' and why: already_revoked, already_expired,
-- different_worker_instance_id.
-- Errors: execution_not_found, written_by_newer_release, execution_not_active, stale_lease.
ff.register_single('revoke_lease', { 'allow-oom' }, function(ctx, args)
  local uuid, namespace, call_id = args[1], args[2], args[3]
  local expected_lease, expected_instance, reason = args[4], args[5], args[6]
  local record, answer = load_once(ctx, uuid, namespace, call_id)
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
  if expected_lease ~= '' and expected_lease ~= lease then
    return ff.failure('stale_lease', uuid)
  elseif expected_instance ~= '' and expected_instance ~= ff.unpack(record.holder)[2] then
    return { 'already', 'different_worker_instance_id' }
  end
  answer = { 'revoked', lease, ff.text(epoch) }
  local list = {
    'state', ff.REVOKED, 'revoke_reason', reason, 'answered', ff.remember(record.answered, call_id, answer),
  }
  ff.append(list, ff.end_attempt(ctx, record, 'lease_revoked'))
  ff.end_lease(ctx, record, list, true)
  return answer
end)

-- Lanes -------------------------------------------------------------------------------------------------------------
--
-- A lane is paused in every partition, and the first partition decides: it gives each change a turn, and the others follow.
-- A partition ignores a turn that is older than its own, so two changes at one moment end alike everywhere. A lane whose
-- last turn may not have reached all partitions stands in ':following', and upkeep completes what its caller did not.

-- How many lanes of ':following' one call of upkeep returns.
local MOST_FOLLOWING = 8

local function lane_key(ctx, lane)
  return ctx.base .. ':lane:' .. lane
end

-- Pause a lane since a moment, or resume it if the moment is ''.
local function write_pause(ctx, lane, turn, since)
  local parts = ff.unpack(lane)
  ff.register_lane(ctx, lane, ff.pack({ parts[1] }) .. parts[2])
  call('HSET', lane_key(ctx, lane), 'turn', turn, 'paused', since)
  if since == '' then
    call('HDEL', lane_key(ctx, lane), 'paused')
    -- Each woken waiter asks for the lane's classes itself, so the number of classes does not matter here.
    ctx.new_in[lane] = true
  end
end

-- Pause or resume a lane in the first partition. Return the reply of the call.
local function decide_pause(ctx, args, is_pause)
  local lane, call_id, has_followers = args[1], args[2], args[3] == '1'
  local stored = call('HMGET', lane_key(ctx, lane), 'paused', 'turn', 'answered')
  local since, turn, memory = stored[1] or '', stored[2] or '0', stored[3]
  local answer = ff.recall(memory, call_id)
  if answer then
    return answer
  elseif (since ~= '') == is_pause then
    return { 'already', turn, since }
  end
  turn = ff.text(math.max((tonumber(turn) or 0) + 1, ctx.now))
  since = is_pause and ctx.now_text or ''
  answer = { 'ok', turn, since }
  write_pause(ctx, lane, turn, since)
  call('HSET', lane_key(ctx, lane), 'answered', ff.remember(memory, call_id, answer))
  if has_followers then
    call('ZADD', ctx.base .. ':following', 0, lane)
  end
  ff.flush(ctx)
  return answer
end

-- pause_lane: stop handing out a lane's work. The lane keeps its work and accepts more.
-- Arguments: pack{namespace, lane}, call id, '1' if other partitions have to follow.
-- Replies: 'ok', or 'already' if the lane was paused before; the turn; since when the lane is paused.
ff.register('pause_lane', { 'allow-oom' }, function(ctx, args)
  return decide_pause(ctx, args, true)
end)

-- resume_lane: hand out a paused lane's work again.
-- Arguments: as of pause_lane.
-- Replies: 'ok', or 'already' if the lane was not paused; the turn; ''.
ff.register('resume_lane', { 'allow-oom' }, function(ctx, args)
  return decide_pause(ctx, args, false)
end)

-- follow_lane: pause or resume a lane as the first partition decided, unless this partition has followed a later turn.
-- Arguments: pack{namespace, lane}, turn, since when the lane is paused or ''.
-- Replies: 'ok'.
ff.register('follow_lane', { 'allow-oom' }, function(ctx, args)
  local lane, turn, since = args[1], args[2], args[3]
  local stored = call('HMGET', lane_key(ctx, lane), 'paused', 'turn')
  local followed = ff.number(stored[2]) or 0
  if tonumber(turn) > followed or tonumber(turn) == followed and since ~= (stored[1] or '') then
    write_pause(ctx, lane, turn, since)
    ff.flush(ctx)
  end
  return { 'ok' }
end)

-- end_following: note in the first partition that all others have followed a turn of a lane.
-- Arguments: pack{namespace, lane}, turn.
-- Replies: 'ok'.
ff.register('end_following', { 'allow-oom' }, function(ctx, args)
  local lane, turn = args[1], args[2]
  if (call('HGET', lane_key(ctx, lane), 'turn') or '0') == turn then
    call('ZREM', ctx.base .. ':following', lane)
  end
  return { 'ok' }
end)

-- Return the lanes whose last turn may not have reached all partitions: pack{namespace, lane}, turn, since when paused or
-- '', of each.
function ff.lanes_following(ctx)
  local rows = {}
  for i, lane in ipairs(call('ZRANGE', ctx.base .. ':following', 0, MOST_FOLLOWING - 1)) do
    local stored = call('HMGET', lane_key(ctx, lane), 'turn', 'paused')
    rows[i] = { lane, stored[1] or '0', stored[2] or '' }
  end
  return rows
end

-- set_tags: add tags to an execution and replace those that it has.
-- Arguments: uuid, pack{namespace}, call id, pack{key, value, ...}, most tags.
-- Replies: 'ok', the number of tags; or 'too_many', the number that there would be.
-- Errors: execution_not_found, written_by_newer_release.
ff.register_single('set_tags', {}, function(ctx, args)
  local uuid, namespace, call_id, tags, most_tags = args[1], args[2], args[3], args[4], tonumber(args[5])
  local record, answer = load_once(ctx, uuid, namespace, call_id)
  if not record then
    return answer
  end
  local order, values = {}, {}
  for _, text in ipairs({ record.tags or '', tags }) do
    local parts = ff.unpack(text)
    for i = 1, #parts, 2 do
      if not values[parts[i]] then
        order[#order + 1] = parts[i]
      end
      values[parts[i]] = parts[i + 1]
    end
  end
  if #order > most_tags then
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
  ff.move(ctx, record, nil, { tags = ff.pack(flat), answered = ff.remember(record.answered, call_id, answer) })
  return answer
end)

-- purge: remove an ended execution with all its keys before its retention is over, or a damaged one in any phase.
-- Arguments: uuid, pack{namespace}, call id.
-- Replies: 'removed', or 'purged' of a damaged execution.
-- Errors: execution_not_found, execution_not_terminal, flow_not_terminal.
ff.register_single('purge', { 'allow-oom' }, function(ctx, args)
  local uuid, namespace, call_id = args[1], args[2], args[3]
  if ff.was_removed(ctx, call_id) then
    return { 'removed' }
  end
  if not ff.is_in_namespace(ctx, namespace, uuid) then
    return ff.failure('execution_not_found', uuid)
  end
  local record, failure = ff.found(ctx, uuid, ff.load)
  if not record and failure[2] ~= 'corruption' then
    return failure
  elseif not record or ff.is_set_aside(ctx, uuid) then
    ff.remove_damaged(ctx, uuid, namespace)
    return { 'purged' }
  elseif record.words.phase ~= 'terminal' then
    return ff.failure('execution_not_terminal', uuid, record.words.public)
  end
  local flow = record.flow and ff.flow(ctx, record.flow)
  if flow and flow.ended == '' then
    return ff.failure('flow_not_terminal', flow.id, flow.state)
  elseif flow then
    ff.leave_flow(ctx, flow, uuid, record.words.public)
  end
  ff.remove(ctx, record)
  ff.remember_removal(ctx, call_id)
  return { 'removed' }
end)
