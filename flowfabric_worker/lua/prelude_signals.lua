-- Signals: how they are kept, counted, and answered.

-- What the head of a signal holds.
local HEAD = {
  'id', 'waitpoint', 'waitpoint_name', 'name', 'category', 'source_type', 'source', 'accepted', 'correlation', 'effect',
  'call',
}

function ff.read_head(text)
  local parts, signal = ff.unpack(text), {}
  for i, name in ipairs(HEAD) do
    signal[name] = parts[i] .. ''
  end
  return signal
end

-- The fields of a signal's idempotency key and of its id.
local function key_field(signal)
  return 'k' .. signal.waitpoint .. ':' .. signal.key
end

-- What a signal was answered that came before, by its key or its id; nil of a new one.
local function answered_before(ctx, uuid, signal)
  local signals = ff.waits_key(ctx, 'g', uuid)
  local stored = call('HMGET', signals, 'i' .. signal.id, key_field(signal))
  local number = stored[1]
  local kept = signal.key ~= '' and stored[2] and ff.unpack(stored[2])
  if kept and tonumber(kept[2]) > ctx.now then
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

-- What is to be told of a signal that matched nothing: the condition.
local function awaited(ctx, record, waitpoint)
  if waitpoint.suspension ~= ff.text(ff.suspension_of(record)) then
    return ''
  end
  return call('HGET', ff.suspension_key(ctx, record.uuid, tonumber(waitpoint.suspension)), 'condition') or ''
end

-- Writes an accepted signal under the next number.
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

-- Counts a signal to an active waitpoint; answers its effect.
local function count(ctx, record, signal)
  local key = ff.suspension_key(ctx, record.uuid, ff.suspension_of(record))
  local stored = call('HMGET', key, 'condition', 'counts')
  local leaves = ff.leaves(stored[1])
  local counts = ff.read_counts(stored[2], leaves)
  if not ff.count_signal(key, leaves, counts, signal) then
    ff.add(key, 'unmatched', 1)
    return 'no_op'
  end
  call('HSET', key, 'counts', table.concat(counts, ','))
  return ff.is_met(leaves, counts) and 'resume_condition_satisfied' or 'appended_to_waitpoint'
end

-- The failure of a signal that its waitpoint does not take: it is closed, or its one decision was made.
local function not_taken(ctx, record, waitpoint, signal, standing, why)
  local decision = call('HGET', ff.waits_key(ctx, 'w', record.uuid), 'd' .. waitpoint.id)
  local decided = decision and signal.category == 'approval'
  if standing ~= 'closed' and not decided then
    return nil
  end
  local parts = decision and ff.unpack(decision) or {}
  return ff.failure('waitpoint_closed', waitpoint.id, why or 'decided', parts[2] or '', parts[4] or '')
end

-- Delivers a signal whose sender may do so to a waitpoint of a record. Answers 'accepted' id effect, and of one that
-- matched nothing the condition; 'duplicate' id; or a failure.
function ff.deliver(ctx, record, waitpoint, signal, window)
  local uuid = record.uuid
  local before = answered_before(ctx, uuid, signal)
  if before then
    if before[3] == 'no_op' then
      ff.append(before, { awaited(ctx, record, waitpoint), waitpoint.name })
    end
    return before
  end
  local standing, why = ff.standing(ctx, uuid, waitpoint)
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
  signal.effect = standing == 'active' and count(ctx, record, signal) or 'buffered_for_pending_waitpoint'
  write_signal(ctx, uuid, signal, ff.text(number), window)
  if standing == 'pending' and waitpoint.first == '' then
    waitpoint.first = ff.text(number)
    call('HSET', ff.waits_key(ctx, 'w', uuid), 'w' .. waitpoint.id, ff.pack_waitpoint(waitpoint))
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
    ff.resume(ctx, record, 'resumed', 'signal', tonumber(delay), {})
  end
  return answer
end

-- The signal of some arguments from `at` on: id, name, category, source type, source, correlation id, '=' + payload or '',
-- idempotency key.
function ff.signal_of(args, at, waitpoint, call_id)
  return {
    waitpoint = waitpoint, call = call_id, id = args[at], name = args[at + 1], category = args[at + 2],
    source_type = args[at + 3], source = args[at + 4], correlation = args[at + 5], payload = args[at + 6],
    key = args[at + 7],
  }
end
