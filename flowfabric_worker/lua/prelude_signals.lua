-- Signals: how they are stored, counted, and answered.

-- The parts of the head of a signal, in their order.
local HEAD = {
  'id', 'waitpoint', 'waitpoint_name', 'name', 'category', 'source_type', 'source', 'accepted', 'correlation', 'effect',
  'call',
}

-- Return the head of a stored signal.
function ff.read_head(text)
  local parts, signal = ff.unpack(text), {}
  for i, name in ipairs(HEAD) do
    signal[name] = parts[i] .. ''
  end
  return signal
end

-- Return the field of a signal's idempotency key.
local function key_field(signal)
  return 'k' .. signal.waitpoint .. ':' .. signal.key
end

-- Return the reply to a signal whose key or id is known, or nil if the signal is new. The window of a key ends only while its
-- waitpoint is open: at a closed one nothing can happen again.
local function answered_before(ctx, uuid, signal, is_closed)
  local signals = ff.waits_key(ctx, 'g', uuid)
  local stored = call('HMGET', signals, 'i' .. signal.id, key_field(signal))
  local number = stored[1]
  local kept = signal.key ~= '' and stored[2] and ff.unpack(stored[2])
  if kept and (is_closed or tonumber(kept[2]) > ctx.now) then
    number = kept[1]
  end
  if not number then
    return nil
  end
  local head = ff.read_head(call('HGET', signals, 'h' .. number))
  if head.call == signal.call then
    return { 'accepted', head.id, head.effect }
  end
  return { 'duplicate', head.id }
end

-- Return the condition that a signal failed to match, or '' if its suspension is not the last one.
local function awaited(ctx, record, waitpoint)
  if waitpoint.suspension ~= ff.text(ff.suspension_of(record)) then
    return ''
  end
  return call('HGET', ff.suspension_key(ctx, record.uuid, tonumber(waitpoint.suspension)), 'condition') or ''
end

-- Write an accepted signal under a number.
local function write_signal(ctx, uuid, signal, number, window)
  local signals, parts = ff.waits_key(ctx, 'g', uuid), {}
  for i, name in ipairs(HEAD) do
    parts[i] = signal[name]
  end
  local list = { 'last', number, 'h' .. number, ff.pack(parts), 'i' .. signal.id, number }
  if signal.payload ~= '' then
    ff.append(list, { 'p' .. number, signal.payload })
  end
  if signal.key ~= '' and window > 0 then
    ff.append(list, { key_field(signal), ff.pack({ number, ff.text(ctx.now + window) }) })
  end
  call('HSET', signals, unpack(list)) -- bounded: the fields of one signal
end

-- Count a signal to an active waitpoint, and return its effect; nil if only a newer release can decide it.
local function count(ctx, record, signal)
  local key = ff.suspension_key(ctx, record.uuid, ff.suspension_of(record))
  local stored = call('HMGET', key, 'condition', 'counts')
  local leaves, until_ms = ff.leaves(stored[1]), ff.number(record.suspended_until)
  if leaves.is_foreign or until_ms and until_ms <= ctx.now then
    return nil
  end
  local counts = ff.read_counts(stored[2], leaves)
  if not ff.count_signal(ctx, key, leaves, counts, signal) then
    ff.add(key, 'unmatched', 1)
    return 'no_op'
  end
  call('HSET', key, 'counts', table.concat(counts, ','))
  return ff.is_met(leaves, counts) and 'resume_condition_satisfied' or 'appended_to_waitpoint'
end

-- Return the failure of a signal to a closed waitpoint, or of a second decision; nil if the waitpoint takes the signal.
local function not_taken(ctx, record, waitpoint, signal, standing, why)
  local decision = call('HGET', ff.waits_key(ctx, 'w', record.uuid), 'd' .. waitpoint.id)
  local decided = decision and signal.category == 'approval'
  if standing ~= 'closed' and not decided then
    return nil
  end
  local parts = decision and ff.unpack(decision) or {}
  return ff.failure('waitpoint_closed', waitpoint.id, why or 'decided', parts[2] or '', parts[4] or '')
end

-- Deliver a signal, whose sender has been checked, to a waitpoint of a record.
-- Replies: 'accepted', id, effect, and for a signal that matched nothing the condition and the waitpoint's name; or
-- 'duplicate', id of the first signal.
-- Errors: waitpoint_closed, signal_limit_exceeded, written_by_newer_release.
function ff.deliver(ctx, record, waitpoint, signal, window)
  local uuid = record.uuid
  local standing, why = ff.standing(ctx, uuid, waitpoint)
  local before = answered_before(ctx, uuid, signal, standing == 'closed')
  if before then
    if before[3] == 'no_op' then
      ff.append(before, { awaited(ctx, record, waitpoint), waitpoint.name })
    end
    return before
  end
  local failure = not_taken(ctx, record, waitpoint, signal, standing, why)
  if failure then
    return failure
  end
  local number = tonumber(call('HGET', ff.waits_key(ctx, 'g', uuid), 'last') or '0') + 1
  local limit = ff.number(record.max_signals) or ff.MAX_SIGNALS
  if number > limit then
    return ff.failure('signal_limit_exceeded', uuid, ff.text(limit))
  end
  signal.waitpoint_name, signal.accepted = waitpoint.name, ctx.now_text
  signal.effect = 'buffered_for_pending_waitpoint'
  if standing == 'active' then
    signal.effect = count(ctx, record, signal)
    if not signal.effect then
      return ff.failure('written_by_newer_release', uuid)
    end
  end
  write_signal(ctx, uuid, signal, ff.text(number), window)
  if standing == 'pending' and waitpoint.first == '' then
    waitpoint.first = ff.text(number)
    ff.write_waitpoint(ctx, uuid, waitpoint)
  end
  if signal.category == 'approval' then
    local decision = ff.pack({ signal.id, signal.name, signal.source_type, signal.source })
    call('HSET', ff.waits_key(ctx, 'w', uuid), 'd' .. waitpoint.id, decision)
  end
  local answer = { 'accepted', signal.id, signal.effect }
  if signal.effect == 'no_op' then
    ff.append(answer, { awaited(ctx, record, waitpoint), waitpoint.name })
  end
  if signal.effect == 'resume_condition_satisfied' then
    local delay = call('HGET', ff.suspension_key(ctx, uuid, ff.suspension_of(record)), 'delay')
    ff.resume(ctx, record, 'resumed', 'signal', ff.number(delay), {})
  end
  return answer
end

-- Return the signal in the arguments from `at` on: id, name, category, source type, source, correlation id, '=' + payload or '',
-- idempotency key.
function ff.signal_of(args, at, waitpoint, call_id)
  return {
    waitpoint = waitpoint, call = call_id, id = args[at], name = args[at + 1], category = args[at + 2],
    source_type = args[at + 3], source = args[at + 4], correlation = args[at + 5], payload = args[at + 6],
    key = args[at + 7],
  }
end
