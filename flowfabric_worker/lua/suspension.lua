-- Executions that wait for signals, an operator or a time-out, and continue.

-- The fields that a holder's call reads for waiting, and the fields that a delivered signal reads.
local WAITING = ff.joined({ ff.CORE, { 'last', 'reported', 'keys' } })
local SIGNALLED = ff.joined({ ff.CORE, { 'max_signals', 'answered' } })

-- How many secrets may hold at once.
local MAX_SECRETS = 64

-- Waitpoints ------------------------------------------------------------------------------------------------------------

-- create_waitpoint: create a waitpoint before its suspension, or return the one that has the name.
-- Arguments: uuid, fence, name, id of a new one, which also names the call, kid, fingerprint of the secret, how long it waits
-- in ms, '=' + document or ''.
-- Replies: 'waitpoint', id, kid, when it expires; or 'secret_moved' if another secret signs by now.
-- Errors: those of ff.fenced, document_mismatch, too_many_waitpoints.
ff.register_single('create_waitpoint', {}, function(ctx, args)
  local uuid, fence, name, id, kid, fingerprint = args[1], args[2], args[3], args[4], args[5], args[6]
  local wait_ms, shown = tonumber(args[7]), args[8]
  local record, answer = ff.fenced(ctx, uuid, fence, nil, WAITING, id)
  if not record then
    return answer
  elseif not ff.is_signing(ctx, kid, fingerprint) then
    return { 'secret_moved' }
  end
  local waitpoint, standing = ff.asked_for(ctx, record, name, id, kid)
  if ff.shows_another(ctx, uuid, waitpoint, shown) then
    return ff.failure('document_mismatch', name)
  end
  local list = {}
  if standing == 'new' or standing == 'reopened' then
    if ff.count_open(ctx, uuid) >= ff.MAX_WAITPOINTS then
      return ff.failure('too_many_waitpoints', uuid, ff.MAX_WAITPOINTS)
    end
    list = { 'mutated', ctx.now_text }
    waitpoint.expires = ff.text(ctx.now + wait_ms)
    ff.begin_waits(record, list)
    ff.open_waitpoint(ctx, uuid, waitpoint, waitpoint.expires)
  end
  local is_shown = standing ~= 'closed' and ff.show(ctx, uuid, waitpoint, shown)
  answer = { 'waitpoint', waitpoint.id, waitpoint.kid, waitpoint.expires }
  if #list > 0 or is_shown then
    ff.append(list, { 'reported', ff.remember(record.reported, id, answer) })
    ff.change(ctx, record, list)
  end
  return answer
end)

-- Suspending ------------------------------------------------------------------------------------------------------------

-- Begin a suspension, or close it at once if its condition is met. If `at_once`, only the latter is done.
local function suspend(ctx, args, at_once)
  local uuid, fence, ending = args[1], args[2], args[3]
  local record, answer = ff.fenced(ctx, uuid, fence, ending, WAITING)
  if not record then
    return answer
  elseif #args > 13 and not ff.is_signing(ctx, args[11], args[12]) then
    return { 'secret_moved' }
  end
  local waitpoints, failure = ff.bind(ctx, record, args, 14)
  if not waitpoints then
    return failure
  end
  local draft = ff.draft_of(ctx, record, args, waitpoints)
  if not ff.count_page(ctx, record, args, draft, waitpoints, at_once) then
    return { 'more' }
  end
  local is_met = ff.is_met(draft.leaves, draft.counts)
  if at_once and not is_met then
    return { 'waiting' }
  end
  answer = { is_met and 'satisfied' or 'suspended', args[4] }
  for _, waitpoint in ipairs(waitpoints) do
    ff.append(answer, { waitpoint.id, waitpoint.kid, waitpoint.name })
  end
  local list = ff.begin_suspension(ctx, record, args, draft, waitpoints)
  ff.append(list, { 'last', ff.remember_end(record, ending, fence, answer) })
  if is_met then
    record.suspension, record.suspended_at = draft.number, ctx.now
    ff.close_suspension(ctx, record, 'already_satisfied', 'signal', list)
    ff.change(ctx, record, list)
    return answer
  end
  ff.enter_suspension(ctx, record, args[6], list)
  return answer
end

-- suspend: end the lease and let the execution wait until its condition is met; unless buffered signals meet it at once.
-- Arguments: uuid, fence, name of the ending (the same for the same request), suspension id, behavior, reason, timeout in
-- ms or '', delay of the resume in ms, continuation or '', condition, kid, fingerprint of the secret, request (as in a
-- draft), then the waitpoints as ff.bind reads them.
-- Replies: 'suspended' or 'satisfied', suspension id, then id, kid and name of each waitpoint; 'more' to be called again
-- because there are more buffered signals than one call counts; 'secret_moved' if another secret signs by now.
-- Errors: those of ff.fenced, pending_waitpoint_expired, waitpoint_not_pending, waitpoint_not_found,
-- invalid_waitpoint_for_execution, document_mismatch, too_many_waitpoints.
ff.register_single('suspend', { 'allow-oom' }, function(ctx, args)
  return suspend(ctx, args, false)
end)

-- try_satisfy: check what suspend would, and end the wait at once if buffered signals meet its condition.
-- Arguments: those of suspend.
-- Replies: those of suspend, but 'waiting' instead of 'suspended'.
-- Errors: those of suspend.
ff.register_single('try_satisfy', { 'allow-oom' }, function(ctx, args)
  return suspend(ctx, args, true)
end)

-- Signals ---------------------------------------------------------------------------------------------------------------

-- deliver_signal: deliver a signal from the bearer of a token.
-- Arguments: uuid, pack{namespace}, call id, waitpoint id, kid and fingerprint of the secret that the token was checked
-- with, '1' if the token is right, the signal as ff.signal_of reads it, window of its key in ms.
-- Replies: those of ff.deliver; or 'secret_moved' if the kid has another secret by now.
-- Errors: execution_not_found, invalid_token, those of ff.deliver.
ff.register_single('deliver_signal', {}, function(ctx, args)
  local uuid, namespace, call_id, waitpoint_id = args[1], args[2], args[3], args[4]
  local kid, fingerprint, is_right, window_ms = args[5], args[6], args[7] == '1', tonumber(args[16])
  local record, failure = ff.load_now(ctx, namespace, uuid, SIGNALLED)
  if not record then
    return failure
  end
  local secret = ff.secret_of(ctx, kid)
  if not secret or ff.is_over(ctx, secret) then
    return ff.failure('invalid_token')
  elseif secret[2] ~= fingerprint then
    return { 'secret_moved' }
  end
  local waitpoint = is_right and ff.waitpoint(ctx, record.uuid, waitpoint_id)
  if not waitpoint then
    return ff.failure('invalid_token')
  end
  return ff.deliver(ctx, record, waitpoint, ff.signal_of(args, 8, waitpoint_id, call_id), window_ms)
end)

-- deliver_approval_signal: deliver the decision of an operator.
-- Arguments: uuid, pack{namespace}, call id, waitpoint id, lane or '', the signal as ff.signal_of reads it, window of its
-- key in ms.
-- Replies: those of ff.deliver.
-- Errors: execution_not_found, lane_mismatch, waitpoint_not_found, those of ff.deliver.
ff.register_single('deliver_approval_signal', {}, function(ctx, args)
  local uuid, namespace, call_id, waitpoint_id, wanted_lane = args[1], args[2], args[3], args[4], args[5]
  local window_ms = tonumber(args[14])
  local record, failure = ff.load_now(ctx, namespace, uuid, SIGNALLED)
  if not record then
    return failure
  end
  local lane = ff.class(record.class).lane_name
  if wanted_lane ~= '' and wanted_lane ~= lane then
    return ff.failure('lane_mismatch', record.uuid, lane)
  end
  local waitpoint = ff.waitpoint(ctx, record.uuid, waitpoint_id)
  if not waitpoint then
    return ff.failure('waitpoint_not_found', waitpoint_id)
  end
  return ff.deliver(ctx, record, waitpoint, ff.signal_of(args, 6, waitpoint_id, call_id), window_ms)
end)

-- resume_execution: resume an execution on behalf of an operator, even if its condition is not met.
-- Arguments: uuid, pack{namespace}, call id, delay in ms.
-- Replies: 'resumed', the moment at which it is ready.
-- Errors: execution_not_found, execution_not_suspended.
ff.register_single('resume_execution', { 'allow-oom' }, function(ctx, args)
  local uuid, namespace, call_id, delay_ms = args[1], args[2], args[3], tonumber(args[4])
  local record, failure = ff.load_now(ctx, namespace, uuid, SIGNALLED)
  if not record then
    return failure
  end
  local before = ff.recall(record.answered, call_id)
  if before then
    return before
  elseif record.words.phase ~= 'suspended' then
    return ff.failure('execution_not_suspended', uuid)
  end
  local answer = { 'resumed', ff.text(ctx.now + delay_ms) }
  ff.resume(ctx, record, 'resumed', 'operator', delay_ms, {
    'answered', ff.remember(record.answered, call_id, answer),
  })
  return answer
end)

-- Secrets ------------------------------------------------------------------------------------------------------------

-- rotate_secret: sign waitpoint tokens with another secret from now on.
-- Arguments: kid, secret, fingerprint, grace of the secret before in ms, call id.
-- Replies: 'rotated', the kid before, number of expired secrets that were removed; or 'unchanged'.
-- Errors: rotation_conflict, too_many_secrets.
ff.register('rotate_secret', {}, function(ctx, args)
  local kid, secret, fingerprint, grace_ms, call_id = args[1], args[2], args[3], tonumber(args[4]), args[5]
  local key = ctx.base .. ':secrets'
  local stored = call('HMGET', key, 'current', 'answered')
  local before = ff.recall(stored[2], call_id)
  if before then
    return before
  end
  local kept, over = ff.sort_kids(ctx)
  local known = ff.secret_of(ctx, kid)
  if known and ff.is_over(ctx, known) then
    known = nil
  end
  if known and known[1] ~= secret then
    return ff.failure('rotation_conflict', kid)
  elseif stored[1] == kid then
    return { 'unchanged' }
  elseif not known and #kept >= MAX_SECRETS then
    return ff.failure('too_many_secrets', MAX_SECRETS)
  end
  for _, each in ipairs(over) do
    call('HDEL', key, 's' .. each)
  end
  local previous = ff.promote(ctx, kept, kid, secret, fingerprint, grace_ms)
  local answer = { 'rotated', previous, ff.text(#over) }
  call('HSET', key, 'answered', ff.remember(stored[2], call_id, answer))
  return answer
end)

-- read_secrets: read the secrets of waitpoint tokens.
-- Replies: the kid that signs, or '' if there is none or its secret is damaged; then kid, secret and fingerprint of each
-- secret that is valid.
ff.register('read_secrets', { 'no-writes' }, function(ctx)
  local current = call('HGET', ctx.base .. ':secrets', 'current')
  local answer = { current and ff.secret_of(ctx, current) and current or '' }
  for _, kid in ipairs((ff.sort_kids(ctx))) do
    local secret = ff.secret_of(ctx, kid)
    ff.append(answer, { kid, secret[1], secret[2] })
  end
  return answer
end)

-- Reading ---------------------------------------------------------------------------------------------------------------

-- Return some fields of an execution's record, or nil if a namespace has no such execution.
local function fields_of(ctx, namespace, uuid, ...)
  if not ff.is_in_namespace(ctx, namespace, uuid) then
    return nil
  end
  return call('HMGET', ff.record_key(ctx, uuid), ...)
end

-- Return what observe_signals replies.
local function observe(ctx, args)
  local uuid, namespace, after, limit = args[1], args[2], tonumber(args[3]), tonumber(args[4])
  local stored = fields_of(ctx, namespace, uuid, 'suspension')
  if not stored then
    return ff.failure('execution_not_found', uuid)
  end
  local number = ff.number(stored[1]) or 0
  local v = number > 0 and call(
    'HMGET', ff.suspension_key(ctx, uuid, number), 'resumed', 'continuation', 'condition', 'waitpoints', 'from', 'last'
  )
  if not v or not v[1] or v[1] == '' then
    return { '', '', '', '' }
  end
  local signals, by_id, answer = ff.waits_key(ctx, 'g', uuid), {}, { v[1], v[2], v[3], '' }
  for _, id in ipairs(ff.unpack(v[4])) do
    by_id[id] = true
  end
  local at, last = math.max(after + 1, tonumber(v[5])), tonumber(v[6])
  local stop = at + ff.MAX_WORK
  while at <= last and at < stop and #answer < 4 + 2 * limit and ctx.work > 0 do
    local values = call('HMGET', signals, 'h' .. ff.text(at), 'p' .. ff.text(at))
    local parts = ff.unpack(values[1] or '')
    -- A damaged signal is returned too, because the decoder reports it.
    if not parts or not parts[2] or by_id[parts[2]] then
      answer[#answer + 1], answer[#answer + 2] = values[1], values[2]
      ff.spend(ctx, 0, #(values[2] or ''))
    end
    ff.spend(ctx, 1, 0)
    at = at + 1
  end
  answer[4] = at <= last and ff.text(at - 1) or ''
  return answer
end

-- observe_signals: read a page of the signals that the last suspension received.
-- Arguments: uuid, pack{namespace}, number of the signal to begin after, most signals.
-- Replies: reason of the resume or '', continuation, condition, next place or '', then head and payload of each signal.
-- Errors: execution_not_found, corruption.
ff.register('observe_signals', { 'no-writes' }, function(ctx, args)
  return ff.isolated_read(ctx, args[1], observe, args)
end)

-- list_suspended: read a page of a namespace's suspended executions.
-- Arguments: pack{namespace}, after (15 digits and a uuid) or '', limit.
-- Replies per execution: 15 digits and the uuid, { suspended_at, suspended_until, class } of the record, { id, behavior,
-- reason } of the suspension; false for what is damaged.
ff.register('list_suspended', { 'no-writes' }, function(ctx, args)
  local namespace, after, limit = args[1], args[2], tonumber(args[3])
  local from = after ~= '' and '(' .. namespace .. after or '[' .. namespace
  local members = call(
    'ZRANGE', ctx.base .. ':suspended', from, '(' .. namespace .. ':', 'BYLEX', 'LIMIT', 0, limit
  )
  local answer = {}
  for i, member in ipairs(members) do
    local place = string.sub(member, #namespace + 1)
    local uuid = string.sub(place, 16)
    local readable, stored = pcall(
      call, 'HMGET', ff.record_key(ctx, uuid), 'suspended_at', 'suspended_until', 'class', 'suspension'
    )
    local number = readable and tonumber(stored[4] or '')
    local has_suspension, suspension
    if number then
      has_suspension, suspension = pcall(
        call, 'HMGET', ff.suspension_key(ctx, uuid, number), 'id', 'behavior', 'reason'
      )
    end
    answer[i] = { place, readable and { stored[1], stored[2], stored[3] } or false, has_suspension and suspension or false }
  end
  return answer
end)

-- Return whether the last suspension of an execution is open. A time-out that has passed closes it, even if it has not been
-- handled yet.
local function is_open(ctx, suspension, suspended_until)
  local moment = ff.number(suspended_until)
  return not moment or moment > ctx.now or suspension[2] == 'escalate'
end

-- Return what list_pending_waitpoints replies.
local function list_waitpoints(ctx, args)
  local uuid, namespace, after, limit = args[1], args[2], args[3], tonumber(args[4])
  local stored = fields_of(ctx, namespace, uuid, 'suspension', 'suspended_at', 'suspended_until', 'deadline')
  if not stored then
    return ff.failure('execution_not_found', uuid)
  end
  local number, deadline = ff.number(stored[1]), ff.number(stored[4])
  local is_suspended, condition = ff.number(stored[2]) ~= nil, ''
  if not number or deadline and deadline <= ctx.now then
    return { '', '' }
  end
  if is_suspended then
    local suspension = call('HMGET', ff.suspension_key(ctx, uuid, number), 'condition', 'behavior')
    condition = suspension[1] or ''
    is_suspended = is_open(ctx, suspension, stored[3])
  end
  local open = call(
    'ZRANGE', ff.waits_key(ctx, 'o', uuid), '(' .. ctx.now_text, '+inf', 'BYSCORE', 'LIMIT', 0, ff.MAX_WAITPOINTS
  )
  table.sort(open)
  local answer, key = { condition, '' }, ff.waits_key(ctx, 'w', uuid)
  for _, id in ipairs(open) do
    local stored_waitpoint = id > after and (call('HGET', key, 'w' .. id) or '')
    local parts = stored_waitpoint and ff.unpack(stored_waitpoint) or {}
    -- A damaged waitpoint is returned too, because the decoder reports it.
    local is_active = parts[6] ~= nil and parts[6] ~= ''
    if stored_waitpoint and (is_suspended or not is_active) then
      if #answer >= 2 + 4 * limit or ctx.work <= 0 then
        answer[2] = answer[#answer - 3]
        break
      end
      local shown = call('HGET', key, 'v' .. id) or ''
      ff.append(answer, { id, stored_waitpoint, is_active and 'active' or 'pending', shown })
      ff.spend(ctx, 2, #shown)
    end
  end
  return answer
end

-- list_pending_waitpoints: read a page of an execution's open waitpoints, by id.
-- Arguments: uuid, pack{namespace}, after (an id) or '', limit.
-- Replies: condition of the open suspension or '', next place or '', then id, waitpoint, state, and '=' +
-- document or '' of each.
-- Errors: execution_not_found, corruption.
ff.register('list_pending_waitpoints', { 'no-writes' }, function(ctx, args)
  return ff.isolated_read(ctx, args[1], list_waitpoints, args)
end)
