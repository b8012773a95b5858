-- Suspensions and their waitpoints: how they are stored, and the one routine that closes them.
--
-- An execution that has waitpoints names four further keys in its record, and the number of its last suspension in the
-- field `suspension`, from 0:
--
--   :w:<uuid>            hash  the waitpoints: n<name> is the id of a name, w<id> a waitpoint, v<id> what it shows, d<id> the decision on it;
--                              s<number> says why a suspension closed, e<life> why what was pending was closed; life counts
--                              the ends of the execution, and no name means a waitpoint of a life before forgotten
--   :o:<uuid>            zset  the ids of the open waitpoints; score = when each expires, inf when its suspension decides
--   :g:<uuid>            hash  the signals: h<number> is the head of one, p<number> its payload, i<id> the number of an id,
--                              k<waitpoint>:<key> that of an idempotency key; last is the last number
--   :s0:<uuid>, :s1:...  hash  the last suspension and the one before it, or a draft of the next; by its number modulo 2
--
-- A waitpoint is never rewritten when it closes. What closed it is written once, for all waitpoints of a suspension or of
-- an execution, and each waitpoint names its suspension or its life: so an end costs the same however many are open.

ff.MAX_SIGNALS = 10000
ff.MAX_WAITPOINTS = 1000

-- The states of a suspended execution: what it is blocked by follows from the reason.
local BLOCKED_BY = {
  waiting_for_signal = 's', waiting_for_approval = 'a', waiting_for_callback = 'c', waiting_for_tool_result = 't',
  waiting_for_operator_review = 'o', paused_by_policy = 'p', paused_by_budget = 'u', step_boundary = 's',
  manual_pause = 'o',
}

-- Return the state of an execution that is suspended for a reason.
function ff.suspended_state(reason)
  return 'sun' .. (BLOCKED_BY[reason] or 's') .. 'n' .. ff.INTERRUPTED
end

-- Return one of the further keys of an execution that waits, by its kind.
function ff.waits_key(ctx, kind, uuid)
  return ctx.base .. ':' .. kind .. ':' .. uuid
end

-- Return the key of a suspension by its number.
function ff.suspension_key(ctx, uuid, number)
  return ff.waits_key(ctx, 's' .. number % 2, uuid)
end

-- Return the number of a record's last suspension: 0 before the first, nil if the record never had a waitpoint.
function ff.suspension_of(record)
  return ff.number(record.suspension)
end

-- Add the fields of a record that is about to have waitpoints to `list`. The record's field `keys` must have been read.
function ff.begin_waits(record, list)
  if not ff.suspension_of(record) then
    local uuid, names = record.uuid, {}
    for i, kind in ipairs({ 'w', 'o', 'g', 's0', 's1' }) do
      names[i] = ':' .. kind .. ':' .. uuid
    end
    ff.append(list, { 'suspension', 0, 'keys', (record.keys or '') .. ff.pack(names) })
  end
end

-- Return what is stored of the suspension that an execution is in: the present moment, since when, until when or '', behavior,
-- reason, condition, number of signals that matched nothing, pack{ids of its waitpoints}. Return {} if it is not suspended.
function ff.open_suspension(ctx, uuid)
  local stored = call('HMGET', ff.record_key(ctx, uuid), 'suspension', 'suspended_at', 'suspended_until')
  local number = ff.number(stored[1])
  if not number or not ff.number(stored[2]) then
    return {}
  end
  local kept = call(
    'HMGET', ff.suspension_key(ctx, uuid, number), 'behavior', 'reason', 'condition', 'unmatched', 'waitpoints'
  )
  return { ctx.now, stored[2], stored[3] or '', kept[1], kept[2], kept[3], kept[4] or '0', kept[5] }
end

-- Suspend an execution whose suspension was written, and end its lease. `list` has further fields to write.
function ff.enter_suspension(ctx, record, reason, list)
  local timeout = ff.number(record.timeout_at)
  ff.append(list, {
    'state', ff.suspended_state(reason), 'timeout_left', timeout and ff.text(timeout - ctx.now) or '', 'timeout_at', '',
  })
  local namespace = ff.class(record.class).namespace
  call('ZADD', ctx.base .. ':suspended', 0, ff.suspended_member(namespace, ctx.now, record.uuid))
  ff.end_lease(ctx, record, list)
end

-- Listings --------------------------------------------------------------------------------------------------------------

-- Return the member for an execution in the list of suspended executions, which is sorted by namespace, moment and id.
function ff.suspended_member(namespace, at, uuid)
  return namespace .. string.format('%015.0f', at) .. uuid
end

-- Remove an execution from the list of suspended executions.
function ff.unlist_suspended(ctx, class, at, uuid)
  call('ZREM', ctx.base .. ':suspended', ff.suspended_member(ff.class(class).namespace, tonumber(at), uuid))
end

-- Closing ---------------------------------------------------------------------------------------------------------------

-- Close the open suspension of a record, whatever ends it: the suspension, all of its waitpoints, and its timers, which are
-- fields added to `list`. `reason` is what resumed the execution, or nil if the execution ends.
function ff.close_suspension(ctx, record, why, reason, list)
  local uuid, number = record.uuid, ff.suspension_of(record)
  local key, kept, open = ff.suspension_key(ctx, uuid, number), ff.waits_key(ctx, 'w', uuid), ff.waits_key(ctx, 'o', uuid)
  local waitpoints = ff.unpack(call('HGET', key, 'waitpoints'))
  local last = call('HGET', ff.waits_key(ctx, 'g', uuid), 'last') or '0'
  -- Damage must raise an error before the first write.
  local _ = #waitpoints + call('HLEN', kept) + call('ZCARD', open)
  ff.spend(ctx, 8, 0)
  call('HSET', key, 'closed', ctx.now_text, 'why', why, 'resumed', reason or '', 'last', last)
  call('HSET', kept, 's' .. number, ff.pack({ why, reason and '1' or '' }))
  ff.chunked('ZREM', open, waitpoints)
  ff.unlist_suspended(ctx, record.class, record.suspended_at, uuid)
  record.suspended_at = ''
  ff.append(list, { 'suspended_at', '', 'suspended_until', '' })
end

-- Close every waitpoint of an execution that ends. Further fields to write are added to `list`.
function ff.close_waits(ctx, record, why, list)
  if not ff.suspension_of(record) then
    return
  elseif ff.number(record.suspended_at) then
    ff.close_suspension(ctx, record, why, nil, list)
  end
  local key = ff.waits_key(ctx, 'w', record.uuid)
  local life = tonumber(call('HGET', key, 'life') or '0')
  ff.spend(ctx, 3, 0)
  call('HSET', key, 'e' .. ff.text(life), ff.pack({ why, ctx.now_text }), 'life', life + 1)
  call('UNLINK', ff.waits_key(ctx, 'o', record.uuid))
end

-- Forget what the waits of an ended execution brought, so that each begins again with another waitpoint. The ones before
-- stay closed.
function ff.forget_waits(ctx, record)
  local number = ff.suspension_of(record)
  if number then
    local key = ff.waits_key(ctx, 'w', record.uuid)
    call('HSET', key, 'forgotten', call('HGET', key, 'life') or '0')
    call('HSET', ff.suspension_key(ctx, record.uuid, number), 'resumed', '')
  end
end

-- Resume a suspended execution after a delay in ms, for a reason: signal, operator or timeout. `list` has further fields to
-- write.
function ff.resume(ctx, record, why, reason, delay, list)
  ff.close_suspension(ctx, record, why, reason, list)
  ff.append(list, { 'state', (delay > 0 and ff.RESUMING or ff.READY) .. ff.INTERRUPTED, 'mutated', ctx.now_text })
  if delay > 0 then
    ff.append(list, { 'delay_until', ctx.now + delay })
  end
  ff.change(ctx, record, list)
end

local TIMED_OUT = {
  fail = { 'failed', 'error', 'suspension_timeout', 'error_class', 'timeout', 'error_detail', '' },
  expire = { 'expired', 'error', 'suspension_timeout', 'error_class', 'timeout', 'error_detail', '' },
  cancel = { 'cancelled', 'cancel_reason', 'suspension_timeout', 'cancelled_by', 'system_timeout' },
}

-- Carry out the time-out behavior of a suspension. Return false if only a newer release knows the behavior.
function ff.time_out(ctx, record)
  local key = ff.suspension_key(ctx, record.uuid, ff.suspension_of(record))
  local stored = call('HMGET', key, 'behavior', 'delay')
  if stored[1] == 'auto_resume_with_timeout_signal' then
    ff.resume(ctx, record, 'timed_out', 'timeout', ff.number(stored[2]), {})
  elseif stored[1] == 'escalate' then
    call('HSET', key, 'reason', 'waiting_for_operator_review', 'until', '')
    ff.move(ctx, record, ff.suspended_state('waiting_for_operator_review'), { suspended_until = '' })
  elseif not TIMED_OUT[stored[1]] then
    return not ff.is_word(stored[1]) and error('a behavior is damaged')
  else
    local list, written = {}, TIMED_OUT[stored[1]]
    for i = 2, #written do
      list[i - 1] = written[i]
    end
    ff.close_suspension(ctx, record, 'timed_out', nil, list)
    ff.finish(ctx, record, written[1], list)
  end
  return true
end
