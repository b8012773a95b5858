-- Fourth part of what every stored function shares: what the holder of a lease must show, and what becomes of attempts.

-- Fences and repeats ------------------------------------------------------------------------------------------------

-- What a call of the holder needs of a record: the core, and the operation that ended the last lease.
local FENCED = ff.joined({ ff.CORE, { 'last' } })

-- A fence is '<lease id>:<epoch>:<attempt id>'.
function ff.fence_parts(fence)
  if not fence then
    return nil, 0, nil
  end
  local lease, epoch, attempt = string.match(fence, '^([^:]*):(%d+):(.*)$')
  return lease, tonumber(epoch), attempt
end

function ff.not_active(record)
  local _, epoch, attempt = ff.fence_parts(record.fence)
  return ff.failure('execution_not_active', record.uuid, record.words.outcome, ff.text(epoch), record.words.phase, attempt or '')
end

-- The checks of every call that a lease holder makes, in their order: exists, repeated, active, revoked, expired,
-- identity. Answers the record; or nil and the answer to give. `ending` names an operation that ends the lease.
function ff.fenced(ctx, uuid, fence, ending, fields)
  local record, failure = ff.load(ctx, uuid, fields or FENCED)
  if not record then
    return nil, failure
  end
  if ending and record.last then
    local mark = ending .. '|' .. fence .. '|'
    if string.sub(record.last, 1, #mark) == mark then
      return nil, ff.unpack(string.sub(record.last, #mark + 1))
    end
  end
  if record.words.phase ~= 'active' then
    return nil, ff.not_active(record)
  elseif record.words.ownership == 'lease_revoked' then
    return nil, ff.failure('lease_revoked', uuid)
  elseif record.words.ownership ~= 'leased' or tonumber(record.expires) <= ctx.now then
    return nil, ff.failure('lease_expired', uuid)
  elseif record.fence ~= fence then
    return nil, ff.failure('stale_lease', uuid)
  end
  return record
end

-- What the field `last` keeps of an operation that ended a lease, so that its repeat gets the same answer.
function ff.remembered(ending, fence, answer)
  return ending .. '|' .. fence .. '|' .. ff.pack(answer)
end

-- The same for a call without a lease: the field `answered` keeps it under the name that the caller gave the call.
function ff.remember_answer(call_id, answer)
  return call_id .. '|' .. ff.pack(answer)
end

-- What a call of that name was answered; nil when it is new.
function ff.answer_before(record, call_id)
  local mark = call_id .. '|'
  if record.answered and string.sub(record.answered, 1, #mark) == mark then
    return ff.unpack(string.sub(record.answered, #mark + 1))
  end
  return nil
end

-- Failing -----------------------------------------------------------------------------------------------------------

-- Milliseconds before the next attempt; `draw` is a number in [0, 1) that the caller drew for the jitter.
function ff.backoff(policy, retry_count, draw)
  local delay = tonumber(policy.initial)
  -- Nothing times infinity would be no number.
  if policy.backoff == 'exponential' and delay > 0 then
    delay = math.min(delay * tonumber(policy.multiplier) ^ retry_count, tonumber(policy.maximum))
  end
  if policy.jitter == '1' then
    delay = delay / 2 + draw * delay / 2
  end
  return math.floor(delay)
end

function ff.may_retry(policy, class, retry_count)
  if class == 'permanent' or class == 'cancelled' or retry_count >= (tonumber(policy.max_retries) or 0) then
    return false
  end
  if not policy.categories then
    return true
  end
  return string.find(',' .. policy.categories .. ',', ',' .. class .. ',', 1, true) ~= nil
end

-- Ends the running attempt as failed: the execution is tried again by its policy, or ends. Answers what became of it.
-- `failed` has class, message, detail, draw, and optionally after (ms) and a reason to end with.
function ff.fail_attempt(ctx, record, failed)
  local policy = ff.policy(record)
  local retries = tonumber(record.retry_count or '0')
  local changes = {
    error = failed.message,
    error_class = failed.class,
    error_detail = failed.detail or '',
    attempt_ended = ctx.now,
  }
  local answer
  if ff.may_retry(policy, failed.class, retries) then
    local at = ctx.now + (failed.after or ff.backoff(policy, retries, failed.draw))
    answer = { 'retry', ff.text(at) }
    changes.retry_count = retries + 1
    changes.last = failed.fence and ff.remembered('fail', failed.fence, answer) or nil
    if at > ctx.now then
      changes.delay_until = at
      ff.move(ctx, record, ff.BACKOFF .. 'pending_retry_attempt', changes)
    else
      ff.move(ctx, record, ff.READY .. 'pending_retry_attempt', changes)
    end
    return answer
  end
  local outcome = failed.class == 'cancelled' and 'cancelled' or 'failed'
  answer = { outcome }
  changes.last = failed.fence and ff.remembered('fail', failed.fence, answer) or nil
  ff.finish(ctx, record, outcome, changes)
  return answer
end

-- Attempts ----------------------------------------------------------------------------------------------------------

-- The fields that a past attempt is made of.
ff.ATTEMPT = {
  'attempts', 'attempt_type', 'attempt_started', 'attempt_ended', 'ended', 'holder', 'error', 'error_class',
}

-- The beginning of a UTF-8 text, at most so many bytes and no half character.
local function cut(text, limit)
  local behind = string.byte(text, limit + 1)
  while limit > 0 and behind and behind >= 128 and behind < 192 do
    behind = string.byte(text, limit)
    limit = limit - 1
  end
  return string.sub(text, 1, limit)
end

-- The field of past attempts with the present one added; nil when there is none to add. The oldest of many are dropped.
function ff.archive(ctx, record, how)
  if not record.attempt_started or record.attempt_started == '' then
    return nil
  end
  local past = record.attempts and ff.unpack(record.attempts) or {}
  if #past >= ff.PAST_ATTEMPTS then
    table.remove(past, 1)
  end
  -- The end of an execution is the end of its attempt.
  local ended = record.attempt_ended and record.attempt_ended ~= '' and record.attempt_ended or record.ended
  local failed = how == 'ended_failure'
  local why = failed and record.error or how == 'interrupted_reclaimed' and ff.why_lost(ctx, record) or ''
  past[#past + 1] = ff.pack({
    record.attempt, record.attempt_type or '', how, record.attempt_started,
    ended or ctx.now_text, record.holder or '',
    failed and record.error_class or '', cut(why, 256),
  })
  return ff.pack(past)
end
