-- running: what the holder of a lease does with its execution.

-- renew_many: leases go on. Items: uuid, fence, lease in ms. Answers per item: 'renewed' expires-at.
ff.register('renew_many', { 'allow-oom' }, function(ctx, args)
  return ff.each(ctx, args, 1, 3, 2, function(_, _, at)
    local record, answer = ff.fenced(ctx, args[at], args[at + 1])
    if not record then
      return answer
    end
    local expires = ctx.now + tonumber(args[at + 2])
    ff.move(ctx, record, nil, { expires = expires })
    return { 'renewed', ff.text(expires) }
  end)
end)

-- What a call of the holder needs that ends no lease: `reported` remembers those calls.
local REPORTING = ff.joined({ ff.CORE, { 'reported', 'steps', 'journal_bytes' } })

-- progress: how far the handler is. Arguments: uuid, fence, percent or '', '=' + message or '', call.
ff.register_single('progress', { 'allow-oom' }, function(ctx, args)
  local record, answer = ff.fenced(ctx, args[1], args[2], nil, REPORTING, args[5])
  if not record then
    return answer
  end
  local changes = {}
  if args[3] ~= '' then
    changes.progress_percent = args[3]
  end
  if args[4] ~= '' then
    changes.progress_message = string.sub(args[4], 2)
  end
  if next(changes) then
    changes.progress_at = ctx.now
    changes.reported = ff.remember(record.reported, args[5], { 'ok' })
    ff.move(ctx, record, nil, changes)
  end
  return { 'ok' }
end)

-- complete_many: executions end with success. Items: uuid, fence, '=' + result or ''. Answers per item: 'completed'.
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

-- fail_many: attempts end as failed. Items: uuid, fence, class, message, detail, retry after in ms or '', draw.
-- Answers per item: 'retry' at, 'failed', or 'cancelled'.
ff.register('fail_many', { 'allow-oom' }, function(ctx, args)
  return ff.each(ctx, args, 1, 7, ff.cost_of_end(ctx), function(_, _, at)
    local record, answer = ff.fenced(ctx, args[at], args[at + 1], 'fail')
    if not record then
      return answer
    end
    return ff.fail_attempt(ctx, record, {
      fence = args[at + 1],
      class = args[at + 2],
      message = args[at + 3],
      detail = args[at + 4],
      after = ff.number(args[at + 5]),
      draw = tonumber(args[at + 6]),
    })
  end)
end)

-- cancel: the holder gives the execution up. Arguments: uuid, fence, reason. Answers: 'cancelled'.
ff.register_single('cancel', { 'allow-oom' }, function(ctx, args)
  local record, answer = ff.fenced(ctx, args[1], args[2], 'cancel')
  if not record then
    return answer
  end
  answer = { 'cancelled' }
  ff.finish(ctx, record, 'cancelled', {
    'cancel_reason', args[3], 'cancelled_by', 'lease_holder', 'last', ff.remember_end(record, 'cancel', args[2], answer),
  })
  return answer
end)

-- The attempt stops here and goes on later: at a moment, or at once when that moment is past.
local function interrupt(ctx, record, ending, fence, until_ms)
  local answer = { 'ok' }
  local delayed = until_ms and until_ms > ctx.now
  local list = {
    'state', (delayed and ff.DELAYED or ff.READY) .. ff.INTERRUPTED, 'mutated', ctx.now_text, 'last',
    ff.remember_end(record, ending, fence, answer),
  }
  if delayed then
    ff.append(list, { 'delay_until', until_ms })
  end
  ff.end_lease(ctx, record, list)
  return answer
end

-- Whether somebody waits for work of a class, asked once per class and call.
local function is_wanted(ctx, class)
  local wanted = ctx.wanted[class]
  if wanted == nil then
    wanted = ff.is_waited_for(ctx, class)
    ctx.wanted[class] = wanted
  end
  return wanted
end

-- The holder gives an execution up for a reason that counts: as if its worker had been lost.
local function give_up(ctx, record, fence, why)
  local answer = { 'lost', why }
  local ended = ff.remember_end(record, 'release', fence, { 'failed' })
  record.last = ff.remember_end(record, 'release', fence, answer)
  if ff.exhausted(ctx, record, ended) then
    return { 'failed' }
  end
  ff.move(ctx, record, ff.LAPSED, { attempt_ended = ctx.now, last = record.last })
  return answer
end

-- release_many: claims are handed back: same place, same attempt, no retry used. Items: uuid, fence, and when they are
-- ready: a moment; or '?' for at once, but only if another worker waits for such work; or '!' and a reason, which
-- counts as a reclaim: the attempt is over.
-- Answers per item: 'ok', 'kept' of what no worker waits for, 'lost' of what counts, 'failed' of what was the last time.
ff.register('release_many', { 'allow-oom' }, function(ctx, args)
  ctx.wanted = {}
  return ff.each(ctx, args, 1, 3, 2, function(_, _, at)
    local record, answer = ff.fenced(ctx, args[at], args[at + 1], 'release')
    if not record then
      return answer
    elseif args[at + 2] == '?' and not is_wanted(ctx, record.class) then
      return { 'kept' }
    elseif string.sub(args[at + 2], 1, 1) == '!' then
      return give_up(ctx, record, args[at + 1], string.sub(args[at + 2], 2))
    end
    return interrupt(ctx, record, 'release', args[at + 1], ff.moment(args[at + 2], ctx.now))
  end)
end)

-- delay: the handler goes on at a moment. Arguments: uuid, fence, moment.
ff.register_single('delay', { 'allow-oom' }, function(ctx, args)
  local record, answer = ff.fenced(ctx, args[1], args[2], 'delay')
  if not record then
    return answer
  end
  answer = interrupt(ctx, record, 'delay', args[2], ff.moment(args[3], ctx.now))
  return answer
end)

-- wait_children: the handler goes on when its children are through. An execution without a flow has no children that
-- are outstanding, so it is ready at once. Arguments: uuid, fence.
ff.register_single('wait_children', { 'allow-oom' }, function(ctx, args)
  local record, answer = ff.fenced(ctx, args[1], args[2], 'wait_children')
  if not record then
    return answer
  end
  answer = interrupt(ctx, record, 'wait_children', args[2], nil)
  return answer
end)

-- record_step: the result of a step, kept for every later run; the first one stands.
-- Arguments: uuid, fence, name, value, most steps, most bytes, call. Answers: 'recorded' or 'known', and the value that stands.
ff.register_single('record_step', {}, function(ctx, args)
  local name, value = args[3], args[4]
  local record, answer = ff.fenced(ctx, args[1], args[2], nil, REPORTING, args[7])
  if not record and answer[1] ~= 'recorded' then
    return answer
  end
  local known = call('HGET', ff.record_key(ctx, args[1]), 'step:' .. name)
  if known or not record then
    return { record and 'known' or 'recorded', known or value }
  end
  local steps = tonumber(record.steps or '0') + 1
  local bytes = tonumber(record.journal_bytes or '0') + #name + #value
  if steps > tonumber(args[5]) or bytes > tonumber(args[6]) then
    return ff.failure('journal_full', args[1], steps > tonumber(args[5]) and args[5] or args[6])
  end
  ff.move(ctx, record, nil, {
    steps = steps,
    journal_bytes = bytes,
    ['step#' .. steps] = name,
    ['step:' .. name] = value,
    reported = ff.remember(record.reported, args[7], { 'recorded' }),
  })
  return { 'recorded', value }
end)
