-- Quotas of other partitions, and the chain by which a claim passes one: it asks the quota's partition to admit some, takes at
-- most that many, and settles what it took. Each step may be repeated under the claim's id, and what one step owes to the next
-- is in ':owed', see ff.owe.
--
-- The partition of the quota has, beside what prelude_quotas.lua lists:
--
--   :admitted:<quota> hash   what claims of other partitions may still take, by '<claim>@<partition>': pack{count, until}
--   :gate:q<quota>   hash    pending: the sum of these counts; users: pack{partition, ...} whose executions name the quota;
--                            asking: pack{partition, ...} that were refused since the quota opened last; turn: grows with
--                            each news, so that the others ignore old news
--
-- What is admitted counts against both limits until the claim has settled; an attempt is counted in the window when it is
-- settled, which is later than its start, so no window ever has more. What a claim does not settle lapses, after everything
-- that its partition owes was paid.
--
-- A partition whose executions name a quota of another one has a hash ':gate:q<quota>' with turn and hold, and with shut, the
-- moment until which its claims need not ask, and why; ':elsewhere' lists these gates. An execution that keeps a slot while no
-- worker leases it has the claim that took the slot in the field `slot` of its record.

-- For how long a claim may use what it was admitted to, and after how long it lapses, in ms.
local USABLE_FOR, LAPSES_AFTER = 1000, 2000

-- How many executions one news lets a partition wake waiters for at most.
local MOST_WOKEN = 1000

-- What a partition does when it receives what another one owes to it, by the kind of the debt. Each function gets a quota, what
-- the debt says, and a partition; it returns the reply, or nil for 'ok'.
ff.payments = {}

-- Gates of other partitions -----------------------------------------------------------------------------------------

-- Set what a gate of another partition admits: what the claim was admitted to; else nothing while it is shut; else it is unknown,
-- and a claim has to ask. Readers see a gate without a free slot as closed until a claim or the news says otherwise.
function ff.load_elsewhere(ctx, gate)
  local admission, is_shut = ctx.admissions[gate.name], (gate.shut or 0) > ctx.now
  gate.is_missing, gate.is_elsewhere = not gate.turn, gate.turn ~= nil
  gate.must_ask = gate.is_elsewhere and not admission and not is_shut
  gate.till = is_shut and gate.shut or nil
  gate.allowance = admission and admission.count or is_shut and 0 or math.huge
  gate.looks_closed = gate.shut and gate.why == 'concurrency' and not ctx.asks
end

-- Return the first gate of some gates that a claim has to ask for, or nil.
function ff.gate_to_ask(ctx, gates)
  for i = 1, #gates do
    if ff.gate(ctx, gates[i]).must_ask then
      return gates[i]
    end
  end
  return nil
end

-- Take one execution from what a claim was admitted to.
function ff.take_admission(ctx, gate, uuid, again)
  local admission = ctx.admissions[gate.name]
  ff.append(admission.taken, { uuid, again and '1' or '' })
  admission.count = admission.count - 1
  gate.allowance = admission.count
end

-- Note that an execution leaves a gate of another partition. Without the claim that took its slot, that partition finds out
-- when it checks its holders.
function ff.leave_elsewhere(gate, uuid, claim)
  if claim then
    gate.left = gate.left or {}
    ff.append(gate.left, { uuid, claim })
    gate.is_changed = true
  end
end

-- Write down what left a gate of another partition, in one debt for the call.
function ff.flush_elsewhere(ctx, gate)
  if gate.left then
    ff.owe(ctx, 'left', string.sub(gate.name, 2), ff.pack(gate.left), ctx.partition)
    gate.left = nil
  end
end

-- Return the mark that an execution gave back the slot of a lease that it still has.
function ff.given_back(lease)
  return '-' .. lease
end

-- Receive what a claim was admitted to: the fourth part of its holder is pack{gate, count, usable until, lapses, news}. `news` is
-- '' unless the quota is full.
function ff.receive_admissions(ctx, claim, holder)
  local admitted = ff.holder_in(holder).admitted
  if admitted == '' then
    return
  end
  local name, count, usable, lapses, news = unpack(ff.unpack(admitted), 1, 5) -- bounded: the five parts
  ctx.admissions[name] = {
    claim = claim, lapses = lapses, granted = tonumber(count), taken = {},
    count = ctx.now <= tonumber(usable) and tonumber(count) or 0,
  }
  local gate = ff.gate(ctx, name)
  if news ~= '' then
    ff.hear_of_quota(ctx, name, news)
  elseif gate.is_elsewhere and gate.shut then
    gate.shut = nil
    call('HSET', gate.key, 'shut', '')
  end
end

-- Forget what a call was admitted to, because it repeats one that has settled.
function ff.forget_admissions(ctx)
  ctx.admissions = nil
end

-- Write down what a claim took of what it was admitted to, for leases of `ttl` ms. Afterwards its gates are as they are for
-- every other call.
function ff.settle_admissions(ctx, ttl)
  for name, admission in pairs(ff.take_noted(ctx, 'admissions') or {}) do
    if admission.granted > 0 then
      local settled = { admission.claim, admission.lapses, ff.text(ttl) }
      ff.append(settled, admission.taken)
      ff.owe(ctx, 'held', string.sub(name, 2), ff.pack(settled), ctx.partition)
    end
    local gate = ff.gate(ctx, name)
    if gate.is_elsewhere then
      ff.load_elsewhere(ctx, gate)
    end
  end
end

-- Receive news of a quota of another partition: pack{turn, hold, for how many ms it is shut or '', why, how many may begin}. Old
-- news is ignored, and news without a turn, of a quota that could not be asked, changes nothing else. Return the gate, or nil.
function ff.hear_of_quota(ctx, name, news)
  local turn, hold, shut_for, why = unpack(ff.unpack(news), 1, 4) -- bounded: four parts
  local gate = ff.gate(ctx, name)
  if turn == '' then
    turn, hold, why = ff.text(gate.turn or 0), gate.hold or '', gate.why or ''
  end
  if gate.window or not gate.is_damaged and tonumber(turn) < (gate.turn or 0) then
    return nil
  end
  gate.turn, gate.hold, gate.why, gate.is_for_run = tonumber(turn), hold, why, hold == 'run'
  gate.shut = shut_for ~= '' and ctx.now + tonumber(shut_for) or nil
  call('HSET', gate.key, 'turn', turn, 'hold', hold, 'why', why, 'shut', gate.shut and ff.text(gate.shut) or '')
  call('ZADD', ctx.base .. ':elsewhere', 0, name)
  gate.is_damaged, gate.damaged, gate.is_changed = false, nil, true
  ff.load_elsewhere(ctx, gate)
  return gate
end

-- 'news' tells a partition how a quota of another one is. The reply is 'idle' if no waiter is woken by it.
function ff.payments.news(ctx, quota, news)
  local gate = ff.hear_of_quota(ctx, 'q' .. quota, news)
  if not gate or gate.allowance <= 0 then
    return { 'ok' }
  end
  gate.was_closed = false
  return { ff.wake_behind(ctx, gate, tonumber(ff.unpack(news)[5])) and 'ok' or 'idle' }
end

-- 'check' asks whether a holder still has the slot that a claim took: 'gone' if not. `what` is pack{uuid, claim}.
function ff.payments.check(ctx, quota, what)
  local uuid, claim = unpack(ff.unpack(what), 1, 2) -- bounded: two parts
  local _, claimed = ff.gate_kinds.q.has_until(ctx, ff.gate(ctx, 'q' .. quota), uuid)
  return { claimed == claim and 'ok' or 'gone' }
end

-- Forget a gate of another partition.
function ff.forget_elsewhere(ctx, name)
  call('DEL', ctx.base .. ':gate:' .. name)
  call('ZREM', ctx.base .. ':elsewhere', name)
end

-- The partition of a quota ------------------------------------------------------------------------------------------

-- Return the uuid, the partition and the claim of a holder that is in another partition, or nil.
function ff.holder_elsewhere(holder)
  return string.match(holder, '^([^@]*)@(%d+)@(.*)$')
end

-- Return the key of what a quota has admitted, and the field of a claim.
local function admission_of(ctx, gate, claim, partition)
  return ctx.base .. ':admitted:' .. string.sub(gate.name, 2), claim .. '@' .. partition
end

-- Return the news of a quota: shut for a time in ms, or not if that is nil.
local function news_of(gate, shut_for)
  return ff.pack({
    ff.text(gate.turn or 0), gate.hold or '', shut_for and ff.text(shut_for) or '', gate.why or '',
    ff.text(math.min(gate.allowance, MOST_WOKEN)),
  })
end

-- Note in a field of a quota that it knows a partition.
local function add_partition(gate, field, partition)
  local partitions = ff.unpack(gate[field] or '')
  for _, known in ipairs(partitions) do
    if known == partition then
      return
    end
  end
  partitions[#partitions + 1] = partition
  gate[field] = ff.pack(partitions)
  call('HSET', gate.key, field, gate[field])
end

-- Note that executions of another partition name a quota, and return the news for that partition.
function ff.use_quota(gate, partition)
  add_partition(gate, 'users', partition)
  return news_of(gate)
end

-- Admit up to `wanted` of the executions that are ready in another partition to a claim. Return how many, for how many ms it may
-- take them, when they lapse, and the news for its partition if the quota is full and more are ready there, else ''.
function ff.admit_claim(ctx, gate, claim, partition, wanted, ready)
  local key, field = admission_of(ctx, gate, claim, partition)
  local stored = ff.unpack(call('HGET', key, field) or '')
  local count, lapses = tonumber(stored[1] or '0'), tonumber(stored[2] or '0')
  if not stored[1] then
    count, lapses = math.min(wanted, gate.allowance), ctx.now + LAPSES_AFTER
    if count > 0 then
      call('HSET', key, field, ff.pack({ ff.text(count), ff.text(lapses) }))
      ff.due_at(ctx, 'retention', 'a' .. ff.pack({ gate.name, claim, partition }), lapses)
      gate.pending, gate.has_pending, gate.is_changed = gate.pending + count, true, true
      ff.gate_kinds.q.measure(gate)
    end
  end
  local usable_for = math.max(0, lapses - LAPSES_AFTER + USABLE_FOR - ctx.now)
  if count == ready or count == wanted and gate.allowance > 0 then
    return { ff.text(count), ff.text(usable_for), ff.text(lapses), '' }
  end
  add_partition(gate, 'asking', partition)
  ff.gate_kinds.q.watch(ctx, gate)
  local shut_for = gate.till and math.max(1, gate.till - ctx.now) or ff.FALLBACK
  return { ff.text(count), ff.text(usable_for), ff.text(lapses), news_of(gate, shut_for) }
end

-- Tell partitions that they may ask a quota again, at most `most` of those in a field of it: `asking` or `users`. Those that
-- asked first are told first.
function ff.tell_partitions(ctx, gate, field, most)
  local known, left = ff.unpack(gate[field] or ''), {}
  if #known == 0 then
    return
  end
  gate.turn = math.max((gate.turn or 0) + 1, ctx.now)
  for i, partition in ipairs(known) do
    if i <= most then
      ff.owe(ctx, 'news', string.sub(gate.name, 2), news_of(gate), partition)
    else
      left[#left + 1] = partition
    end
  end
  gate.asking = #left > 0 and ff.pack(left) or nil
  call('HSET', gate.key, 'turn', ff.text(gate.turn), 'asking', gate.asking or '')
end

-- Return the gate of a quota of this partition that receives something, or nil and the reply: the debt to a damaged quota stays,
-- and one to a quota that was deleted is over.
local function receiving(ctx, quota)
  local gate = ff.gate(ctx, 'q' .. quota)
  if gate.is_damaged then
    return nil, ff.failure('corruption', '', 'quota policy ' .. ff.unpack(quota)[2])
  end
  return gate.window and gate, { 'ok' }
end

-- Take what a claim was admitted to back. Return whether it was admitted and has not settled.
local function end_admission(ctx, gate, claim, partition, lapses)
  local key, field = admission_of(ctx, gate, claim, partition)
  local stored = ff.unpack(call('HGET', key, field) or '')
  if stored[2] ~= lapses then
    return false
  end
  call('HDEL', key, field)
  ff.due_at(ctx, 'retention', 'a' .. ff.pack({ gate.name, claim, partition }), false)
  gate.pending, gate.has_pending = math.max(0, gate.pending - tonumber(stored[1])), true
  gate.is_changed = true
  ff.gate_kinds.q.measure(gate)
  return true
end

-- 'held' settles a claim: `what` is pack{claim, lapses, lease in ms, uuid, '1' if its attempt began earlier, ...}.
function ff.payments.held(ctx, quota, what, partition)
  local gate, answer = receiving(ctx, quota)
  local parts = ff.unpack(what)
  local claim, ttl = parts[1], tonumber(parts[3])
  if gate and end_admission(ctx, gate, claim, partition, parts[2]) then
    for i = 4, #parts, 2 do
      ff.gate_kinds.q.take_slot(ctx, gate, parts[i] .. '@' .. partition .. '@' .. claim, ctx.now + ttl, parts[i + 1] == '1')
    end
  end
  return answer
end

-- 'left' gives slots back: `what` is pack{uuid, claim, ...}.
function ff.payments.left(ctx, quota, what, partition)
  local gate, answer = receiving(ctx, quota)
  local parts = ff.unpack(what)
  for i = 1, gate and #parts or 0, 2 do
    ff.gate_kinds.q.leave(ctx, gate, parts[i] .. '@' .. partition .. '@' .. parts[i + 1])
  end
  return answer
end

-- 'lapse' ends what a claim did not settle, when its partition owes nothing any more: `what` is pack{claim, lapses}.
function ff.payments.lapse(ctx, quota, what, partition)
  local gate, answer = receiving(ctx, quota)
  if gate then
    local parts = ff.unpack(what)
    end_admission(ctx, gate, parts[1], partition, parts[2])
  end
  return answer
end

-- 'pass' says that a partition which was told that a quota is open has nothing to do, so that the next one is told.
function ff.payments.pass(ctx, quota)
  local gate, answer = receiving(ctx, quota)
  if gate and gate.allowance > 0 then
    ff.tell_partitions(ctx, gate, 'asking', 1)
  end
  return answer
end

-- Owe it to a quota to look whether a claim has settled, when that should have happened.
function ff.lapse_admission(ctx, member)
  local name, claim, partition = unpack(ff.unpack(member), 1, 3) -- bounded: three parts
  local key, field = admission_of(ctx, { name = name }, claim, partition)
  local stored = ff.unpack(call('HGET', key, field) or '')
  if stored[2] then
    ff.owe(ctx, 'lapse', string.sub(name, 2), ff.pack({ claim, stored[2] }), partition)
  end
end

-- Return whether there is another partition of this number.
local function is_other_partition(ctx, partition)
  local count = ff.number(call('HGET', ctx.base .. ':meta', 'partitions')) or math.huge
  return partition ~= ctx.partition and tonumber(partition) < count
end

-- Ask the partition of a holder whether the holder still has its slot, if that is another one. Return whether it is.
function ff.ask_about(ctx, gate, holder)
  local uuid, partition, claim = ff.holder_elsewhere(holder)
  if not uuid or not is_other_partition(ctx, partition) then
    return false
  end
  ff.owe(ctx, 'check', string.sub(gate.name, 2), ff.pack({ uuid, claim }), partition)
  return true
end
