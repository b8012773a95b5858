-- The operations of a lease holder on its execution. Every call may be refused with the errors of ff.fenced:
-- execution_not_found, execution_not_active, lease_revoked, lease_expired, stale_lease.

-- renew_many: extend leases from now on.
-- Arguments per item: uuid, fence, lease in ms.
-- Replies per item: 'renewed', the moment at which the lease expires.
-- Errors per item: those of ff.fenced.
ff.register('renew_many', { 'allow-oom' }, function(ctx, args)
  return ff.each(ctx, args, 1, 3, 2, function(_, _, at)
    local uuid, fence, lease_ms = args[at], args[at + 1], tonumber(args[at + 2])
    local record, answer = ff.fenced(ctx, uuid, fence, nil, ff.CORE)
    if not record then
      return answer
    end
    local expires = ctx.now + lease_ms
    ff.move(ctx, record, nil, { expires = expires })
    return { 'renewed', ff.text(expires) }
  end)
end)

-- The fields that a holder's call reads if it does not end the lease. `reported` remembers those calls.
local REPORTING = ff.joined({ ff.CORE, { 'reported', 'steps', 'journal_bytes' } })

-- progress: record the progress of the handler.
-- Arguments: uuid, fence, percent or '', '=' + message or '', call id.
-- Replies: 'ok'.
-- Errors: those of ff.fenced.
ff.register_single('progress', { 'allow-oom' }, function(ctx, args)
  local uuid, fence, percent, message, call_id = args[1], args[2], args[3], args[4], args[5]
  local record, answer = ff.fenced(ctx, uuid, fence, nil, REPORTING, call_id)
  if not record then
    return answer
  end
  local changes = {}
  if percent ~= '' then
    changes.progress_percent = percent
  end
  if message ~= '' then
    changes.progress_message = string.sub(message, 2)
  end
  if next(changes) then
    changes.progress_at = ctx.now
    changes.reported = ff.remember(record.reported, call_id, { 'ok' })
    ff.move(ctx, record, nil, changes)
  end
  return { 'ok' }
end)

-- complete_many: end executions with success.
-- Arguments per item: uuid, fence, '=' + result or ''.
-- Replies per item: 'completed'.
-- Errors per item: those of ff.fenced.
ff.register('complete_many', { 'allow-oom' }, function(ctx, args)
  return ff.each(ctx, args, 1, 3, ff.cost_of_end(ctx), function(_, _, at)
    local uuid, fence, result = args[at], args[at + 1], args[at + 2]
    local record, answer = ff.fenced(ctx, uuid, fence, 'complete')
    if not record then
      return answer
    end
    answer = { 'completed' }
    ff.finish(ctx, record, 'success', { 'result', result })
    return answer
  end)
end)

-- fail_many: end attempts as failed. The policy of each execution decides whether it is retried.
-- Arguments per item: uuid, fence, class, message, detail, retry after in ms or '', draw in [0, 1) for the jitter.
-- Replies per item: 'retry' and when, 'failed', or 'cancelled'.
-- Errors per item: those of ff.fenced.
ff.register('fail_many', { 'allow-oom' }, function(ctx, args)
  return ff.each(ctx, args, 1, 7, ff.cost_of_end(ctx), function(_, _, at)
    local uuid, fence, class, message, detail = args[at], args[at + 1], args[at + 2], args[at + 3], args[at + 4]
    local retry_after, draw = ff.number(args[at + 5]), tonumber(args[at + 6])
    local record, answer = ff.fenced(ctx, uuid, fence, 'fail')
    if not record then
      return answer
    end
    return ff.fail_attempt(ctx, record, {
      fence = fence, class = class, message = message, detail = detail, after = retry_after, draw = draw,
    })
  end)
end)

-- cancel: end an execution as cancelled by its holder.
-- Arguments: uuid, fence, reason.
-- Replies: 'cancelled'.
-- Errors: those of ff.fenced.
ff.register_single('cancel', { 'allow-oom' }, function(ctx, args)
  local uuid, fence, reason = args[1], args[2], args[3]
  local record, answer = ff.fenced(ctx, uuid, fence, 'cancel')
  if not record then
    return answer
  end
  answer = { 'cancelled' }
  ff.finish(ctx, record, 'cancelled', {
    'cancel_reason', reason, 'cancelled_by', 'lease_holder', 'last', ff.remember_end(record, 'cancel', fence, answer),
  })
  return answer
end)

-- End a lease and let its attempt continue later: at a moment, or at once if that moment has passed; or in another state.
local function interrupt(ctx, record, ending, fence, until_ms, state)
  local answer = { 'ok' }
  local delayed = until_ms and until_ms > ctx.now
  local list = {
    'state', (state or delayed and ff.DELAYED or ff.READY) .. ff.INTERRUPTED, 'mutated', ctx.now_text, 'last',
    ff.remember_end(record, ending, fence, answer),
  }
  if delayed then
    ff.append(list, { 'delay_until', until_ms })
  end
  ff.end_lease(ctx, record, list)
  return answer
end

-- Return whether a worker waits for work of a class; the indexes are read once per class and call.
local function is_wanted(ctx, class)
  local wanted = ctx.wanted[class]
  if wanted == nil then
    wanted = ff.is_waited_for(ctx, class)
    ctx.wanted[class] = wanted
  end
  return wanted
end

-- End an attempt whose holder gives it up, and count it as a reclaim, as if the worker had been lost.
local function give_up(ctx, record, fence, why)
  local answer = { 'lost', why }
  local ended = ff.remember_end(record, 'release', fence, { 'failed' })
  record.last = ff.remember_end(record, 'release', fence, answer)
  if ff.exhausted(ctx, record, ended) then
    return { 'failed' }
  end
  local list = { 'state', ff.LAPSED, 'mutated', ctx.now_text, 'last', record.last }
  ff.append(list, ff.end_attempt(ctx, record, 'lease_expired'))
  ff.end_lease(ctx, record, list)
  return answer
end

-- release_many: release claims. The execution keeps its place and its attempt, and no retry is used.
-- Arguments per item: uuid, fence, and when the execution is ready again: a moment; '?' for at once, but only if another
-- worker waits for such work; or '!' + reason, which ends the attempt and counts as a reclaim.
-- Replies per item: 'ok'; 'kept' if no worker waits for such work; 'lost' if it counted as a reclaim; 'failed' if it was
-- the last reclaim allowed.
-- Errors per item: those of ff.fenced.
ff.register('release_many', { 'allow-oom' }, function(ctx, args)
  ctx.wanted = {}
  return ff.each(ctx, args, 1, 3, 2, function(_, _, at)
    local uuid, fence, ready = args[at], args[at + 1], args[at + 2]
    local record, answer = ff.fenced(ctx, uuid, fence, 'release')
    if not record then
      return answer
    elseif ready == '?' and not is_wanted(ctx, record.class) then
      return { 'kept' }
    elseif string.sub(ready, 1, 1) == '!' then
      return give_up(ctx, record, fence, string.sub(ready, 2))
    end
    return interrupt(ctx, record, 'release', fence, ff.moment(ready, ctx.now))
  end)
end)

-- delay: end a lease and let the attempt continue at a moment.
-- Arguments: uuid, fence, moment.
-- Replies: 'ok'.
-- Errors: those of ff.fenced.
ff.register_single('delay', { 'allow-oom' }, function(ctx, args)
  local uuid, fence, moment = args[1], args[2], args[3]
  local record, answer = ff.fenced(ctx, uuid, fence, 'delay')
  return record and interrupt(ctx, record, 'delay', fence, ff.moment(moment, ctx.now)) or answer
end)

-- wait_children: end a lease and let the attempt continue when enough children succeeded, or can succeed no more; or when
-- enough have ended. If that is so already, as without children, it is ready at once.
-- Arguments: uuid, fence, how many or '' for all, '1' if only ends count, call id, then the names of the children, none for all
-- that are not detached.
-- Replies: 'ok'; or 'more' to be called again with the same call id, because there are more children than one call counts.
-- Errors: those of ff.fenced.
ff.register_single('wait_children', { 'allow-oom' }, function(ctx, args)
  local uuid, fence, need, settles = args[1], args[2], tonumber(args[3] or ''), args[4] == '1'
  local record, answer = ff.fenced(ctx, uuid, fence, 'wait_children')
  if not record then
    return answer
  end
  local names = #args > 5 and { unpack(args, 6) } or nil -- bounded: the caller sends at most 1000 names
  local word = ff.await_children(ctx, record, { need = need, settles = settles, names = names, call_id = args[5] })
  if word == 'more' then
    return { 'more' }
  end
  return interrupt(ctx, record, 'wait_children', fence, nil, word == 'begun' and ff.WAITING_FOR_EDGES)
end)

-- record_step: record the result of a step for every later attempt. The first result of a name is kept.
-- Arguments: uuid, fence, name, value, most steps, most bytes of the journal, call id.
-- Replies: 'recorded' or 'known', then the recorded value.
-- Errors: those of ff.fenced, journal_full.
ff.register_single('record_step', {}, function(ctx, args)
  local uuid, fence, name, value, call_id = args[1], args[2], args[3], args[4], args[7]
  local most_steps, most_bytes = tonumber(args[5]), tonumber(args[6])
  local record, answer = ff.fenced(ctx, uuid, fence, nil, REPORTING, call_id)
  if not record and answer[1] ~= 'recorded' then
    return answer
  end
  local known = call('HGET', ff.record_key(ctx, uuid), 'step:' .. name)
  if known or not record then
    return { record and 'known' or 'recorded', known or value }
  end
  local steps = tonumber(record.steps or '0') + 1
  local bytes = tonumber(record.journal_bytes or '0') + #name + #value
  if steps > most_steps or bytes > most_bytes then
    return ff.failure('journal_full', uuid, ff.text(steps > most_steps and most_steps or most_bytes))
  end
  ff.move(ctx, record, nil, {
    steps = steps,
    journal_bytes = bytes,
    ['step#' .. steps] = name,
    ['step:' .. name] = value,
    reported = ff.remember(record.reported, call_id, { 'recorded' }),
  })
  return { 'recorded', value }
end)
