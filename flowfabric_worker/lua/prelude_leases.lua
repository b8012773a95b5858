-- Fourth part of what every stored function shares: what the holder of a lease must show, and what becomes of attempts.

-- Repeats -----------------------------------------------------------------------------------------------------------

-- Any call may come again after its reply was lost. What a call is about keeps the names of its last calls and what each
-- was answered, as pack{call, pack(answer), call, pack(answer), ...}: a repeat gets that answer and changes nothing. A
-- caller names each call; of the end of a lease the name is the operation and the fence.
ff.CALLS_REMEMBERED = 8

-- What a call was answered according to such a memory; nil when the call is new.
function ff.recall(memory, call_id)
  local parts = memory and ff.unpack(memory) or {}
  for i = 1, #parts - 1, 2 do
    if parts[i] == call_id then
      return ff.unpack(parts[i + 1])
    end
  end
  return nil
end

-- A memory with one more call; of more than the last ones the oldest is forgotten. A damaged memory is begun again.
function ff.remember(memory, call_id, answer)
  local parts = memory and ff.unpack(memory) or {}
  if #parts % 2 == 1 then
    parts = {}
  end
  for _ = ff.CALLS_REMEMBERED, #parts / 2 do
    table.remove(parts, 1)
    table.remove(parts, 1)
  end
  parts[#parts + 1] = call_id
  parts[#parts + 1] = ff.pack(answer)
  return ff.pack(parts)
end

-- What is removed cannot remember its removal, so the partition does.
function ff.was_removed(ctx, call_id)
  return ff.recall(call('HGET', ctx.base .. ':meta', 'removed'), call_id) ~= nil
end

function ff.remember_removal(ctx, call_id)
  local meta = ctx.base .. ':meta'
  call('HSET', meta, 'removed', ff.remember(call('HGET', meta, 'removed'), call_id, { 'removed' }))
end

-- How the end of a lease is named.
local function end_of(ending, fence)
  return ending .. ' ' .. fence
end

-- What the end of a lease was answered; nil when it did not end in this way.
function ff.recall_end(memory, ending, fence)
  return ff.recall(memory, end_of(ending, fence))
end

-- The memory of a record's ended leases with one more.
function ff.remember_end(record, ending, fence, answer)
  return ff.remember(record.last, end_of(ending, fence), answer)
end

-- Namespaces --------------------------------------------------------------------------------------------------------

-- Whether an execution is one of a namespace, also if its record is damaged. Another namespace's does not exist.
function ff.is_in_namespace(ctx, namespace, uuid)
  return call('ZSCORE', ctx.base .. ':ids', namespace .. uuid) ~= false
end

-- The record of an execution of a namespace, or nil and the failure to answer.
function ff.load_in(ctx, namespace, uuid, fields)
  local record, failure = ff.load(ctx, uuid, fields)
  if record and ff.class(record.class).namespace ~= namespace then
    return nil, ff.failure('execution_not_found', uuid)
  end
  return record, failure
end

-- Fences ------------------------------------------------------------------------------------------------------------

-- What a call of the holder needs of a record: the core, and the operations that ended the last leases.
local FENCED = ff.joined({ ff.CORE, { 'last' } })

-- A fence is '<lease id>:<epoch>:<attempt id>'; an attempt has the id of its first lease, and under that lease its own
-- place is empty.
function ff.fence_parts(fence)
  if not fence then
    return nil, 0, nil
  end
  local lease, epoch, attempt = string.match(fence, '^([^:]*):(%d+):(.*)$')
  return lease, tonumber(epoch), attempt ~= '' and attempt or lease
end

function ff.not_active(record)
  local _, epoch, attempt = ff.fence_parts(record.fence)
  return ff.failure('execution_not_active', record.uuid, record.words.outcome, ff.text(epoch), record.words.phase, attempt or '')
end

-- What the call of a holder was answered before; nil when it is new. A completed execution says so itself.
local function answer_before(record, fence, ending, call_id)
  if ending == 'complete' and record.words.outcome == 'success' and record.fence == fence then
    return { 'completed' }
  elseif ending then
    return record.last and ff.recall_end(record.last, ending, fence)
  end
  return call_id and ff.recall(record.reported, call_id)
end

local function is_over(ctx, moment)
  local at = ff.number(moment)
  return at and at <= ctx.now
end

-- The checks of every call that a lease holder makes, in their order: exists, repeated, active, revoked, expired,
-- identity. What time has decided of the execution is carried out first, so the answer is the same before and after
-- upkeep. Answers the record; or nil and the answer to give. `ending` names an operation that ends the lease; of another
-- one that changes something `call_id` is the call's name, and `fields` hold `reported`.
function ff.fenced(ctx, uuid, fence, ending, fields, call_id)
  local record, failure = ff.load(ctx, uuid, fields or FENCED)
  if not record then
    return nil, failure
  end
  local before = answer_before(record, fence, ending, call_id)
  if before then
    return nil, before
  end
  if record.words.phase == 'active' and (is_over(ctx, record.timeout_at) or is_over(ctx, record.deadline)) then
    ff.catch_up(ctx, record)
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

-- How many retries a failure that asks for one gets where no policy says how many there are.
local RETRIES_ASKED_FOR = 3

-- Whether a failure is tried again; `asked` says that it asks for it.
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

-- Ends the running attempt as failed: the execution is tried again by its policy, or ends. Answers what became of it.
-- `failed` has class, message, detail, draw, and optionally after (ms), the fence of the holder that reports it, and told,
-- as ff.end_lease has it.
function ff.fail_attempt(ctx, record, failed)
  local policy = ff.policy(record)
  local retries = tonumber(record.retry_count or '0')
  local list = { 'error', failed.message, 'error_class', failed.class, 'error_detail', failed.detail or '' }
  local answer, state
  if ff.may_retry(policy, failed.class, retries, failed.after) then
    local at = ctx.now + (failed.after or ff.backoff(policy, retries, failed.draw))
    answer = { 'retry', ff.text(at) }
    state = (at > ctx.now and ff.BACKOFF or ff.READY) .. ff.RETRY
    ff.append(list, { 'state', state, 'attempt', ff.ended_attempt(ctx, record), 'retry_count', retries + 1 })
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

-- Attempts ----------------------------------------------------------------------------------------------------------

-- The fields that a past attempt is made of, beyond the core.
ff.ATTEMPT = { 'attempts', 'ended', 'holder', 'error', 'error_class' }

-- What the field `attempt` says: its number, its type, how its holder came to it, and when it began and ended; '' where
-- that is not known.
function ff.attempt_parts(text)
  return string.match(text, '^(%d+)|(%l+)|(%l+)|(%d*)|(%d*)$')
end

function ff.attempt_text(index, kind, came, started, ended)
  return index .. '|' .. kind .. '|' .. came .. '|' .. started .. '|' .. (ended or '')
end

-- The field `attempt` of an attempt that ends now while its execution goes on.
function ff.ended_attempt(ctx, record)
  local index, kind, came, started = ff.attempt_parts(record.attempt)
  return ff.attempt_text(index, kind, came, started, ctx.now_text)
end

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
  local index, kind, _, started, ended = ff.attempt_parts(record.attempt or '')
  if not started or started == '' then
    return nil
  end
  local past = record.attempts and ff.unpack(record.attempts) or {}
  if #past >= ff.PAST_ATTEMPTS then
    table.remove(past, 1)
  end
  if ended == '' then
    -- The end of an execution is the end of its attempt.
    ended = record.ended or ctx.now_text
  end
  local failed = how == 'ended_failure'
  local why = failed and record.error or how == 'interrupted_reclaimed' and ff.why_lost(ctx, record) or ''
  past[#past + 1] = ff.pack({
    index, kind, how, started, ended, record.holder or '', failed and record.error_class or '', cut(why, 256),
  })
  return ff.pack(past)
end
