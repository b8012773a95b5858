-- How an attempt fails, and how past attempts are kept.

-- Failing -----------------------------------------------------------------------------------------------------------

-- Return the delay in ms before the next attempt. `draw` is a number in [0, 1) for the jitter.
function ff.backoff(policy, retry_count, draw)
  local delay = tonumber(policy.initial)
  -- Zero times infinity is not a number, so zero is left alone.
  if policy.backoff == 'exponential' and delay > 0 then
    delay = math.min(delay * tonumber(policy.multiplier) ^ retry_count, tonumber(policy.maximum))
  end
  if policy.jitter == '1' then
    delay = delay / 2 + draw * delay / 2
  end
  return math.floor(delay)
end

-- How many retries a failure may ask for if no policy says how many there are.
local RETRIES_ASKED_FOR = 3

-- Return whether a failure is tried again; `asked` is true if the failure asks for it.
function ff.may_retry(policy, class, retry_count, asked)
  local most = tonumber(policy.max_retries) or asked and RETRIES_ASKED_FOR or 0
  if class == 'permanent' or class == 'cancelled' or retry_count >= most then
    return false
  end
  if not policy.categories then
    return true
  end
  return string.find(',' .. policy.categories .. ',', ',' .. class .. ',', 1, true) ~= nil
end

-- End the running attempt as failed, and retry or end the execution as its policy says. Return the reply. `failed` has
-- class, message, detail, draw, and optionally after (ms), the fence of the reporting holder, and told as in ff.end_lease.
function ff.fail_attempt(ctx, record, failed)
  local policy = ff.policy(record)
  local retries = tonumber(record.retry_count or '0')
  local list = { 'error', failed.message, 'error_class', failed.class, 'error_detail', failed.detail or '' }
  local answer, state
  if ff.may_retry(policy, failed.class, retries, failed.after) then
    local at = ctx.now + (failed.after or ff.backoff(policy, retries, failed.draw))
    answer = { 'retry', ff.text(at) }
    state = (at > ctx.now and ff.BACKOFF or ff.READY) .. ff.RETRY
    ff.append(list, { 'state', state, 'retry_count', retries + 1 })
    ff.append(list, ff.end_attempt(ctx, record, failed.class == 'timeout' and 'timed_out' or 'attempt_failure'))
    if at > ctx.now then
      ff.append(list, { 'delay_until', at })
    end
  else
    answer = { failed.class == 'cancelled' and 'cancelled' or 'failed' }
  end
  if failed.fence then
    ff.append(list, { 'last', ff.remember_end(record, 'fail', failed.fence, answer) })
  end
  if state then
    ff.end_lease(ctx, record, list, failed.told)
  else
    ff.finish(ctx, record, answer[1], list, failed.told)
  end
  return answer
end

-- End an execution that has used up its reclaims, and return whether it did. `last` is the memory of ended leases to
-- store if a call gave the work up, or nil.
function ff.exhausted(ctx, record, last)
  if record.words.phase ~= 'active' then
    return false
  end
  local most = tonumber(ff.policy(record).max_reclaims) or ff.DEFAULT_MAX_RECLAIMS
  if tonumber(record.reclaim_count or '0') < most then
    return false
  end
  local why = ff.why_lost(ctx, record)
  local list = { 'error', 'reclaims_exhausted', 'error_class', 'infra_crash', 'error_detail', why }
  if last then
    ff.append(list, { 'last', last })
    -- End the attempt first: that of work that its holder gives up has not ended yet.
    ff.append(list, ff.end_attempt(ctx, record, 'lease_expired'))
  end
  ff.finish(ctx, record, 'failed', list)
  return true
end

-- Attempts ----------------------------------------------------------------------------------------------------------

-- The fields beyond the core that a past attempt is made of.
ff.ATTEMPT = { 'attempts', 'ended', 'holder', 'error', 'error_class', 'closed' }

-- Return the parts of the field `attempt`: number, type, kind of its claim, start, end; '' if a moment is unknown.
function ff.attempt_parts(text)
  return string.match(text, '^(%d+)|(%l+)|(%l+)|(%d*)|(%d*)$')
end

-- Return the field `attempt` made of its parts.
function ff.attempt_text(index, kind, came, started, ended)
  return index .. '|' .. kind .. '|' .. came .. '|' .. started .. '|' .. (ended or '')
end

-- Return the first `limit` bytes of a UTF-8 text at most, without half a character.
local function cut(text, limit)
  local behind = string.byte(text, limit + 1)
  while limit > 0 and behind and behind >= 128 and behind < 192 do
    behind = string.byte(text, limit)
    limit = limit - 1
  end
  return string.sub(text, 1, limit)
end

-- Return the past attempts of a record, each packed. To check one and to pack it again takes about 4 us.
function ff.past_attempts(ctx, record)
  local past = record.attempts and ff.unpack(record.attempts) or {}
  ff.spend(ctx, 0.4 * #past, 0)
  return past
end

-- Return the field of past attempts with the present one added, or nil if it has not begun. The oldest beyond
-- ff.PAST_ATTEMPTS are dropped.
function ff.archive(ctx, record, how)
  local index, kind, _, started, ended = ff.attempt_parts(record.attempt or '')
  if not started or started == '' then
    return nil
  end
  local past = record.past or ff.past_attempts(ctx, record)
  if #past >= ff.PAST_ATTEMPTS then
    table.remove(past, 1)
  end
  if ended == '' then
    -- An attempt that ran to the end of its execution ended with it.
    ended = record.ended or ctx.now_text
  end
  local failed = how == 'ended_failure'
  local why = failed and record.error or how == 'interrupted_reclaimed' and ff.why_lost(ctx, record) or ''
  past[#past + 1] = ff.pack({
    index, kind, how, started, ended, record.holder or '', failed and record.error_class or '', cut(why, 256),
    (ff.why_closed(record)),
  })
  return ff.pack(past)
end
