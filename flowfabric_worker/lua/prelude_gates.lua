-- The gates of claim classes: quotas and budgets, which limit how much work of their classes is handed out.
--
-- A gate is named by the letter of its kind and pack{namespace, id}, and its state is in one place:
--
--   :gate:<name>     hash    what it allows, and what it counts
--   :gated           zset    the classes of each gate, '<name>\0<class>', and the classes with gates of each lane,
--                            'l<lane>\0<class>'
--
-- Whether a gate is closed follows from what it counts and from the time, and is stored nowhere. So a gate opens by itself,
-- and work that waits behind it is not rewritten. A call reads each of its gates once and writes it once.
--
-- An execution may keep a slot of a quota while no worker holds it. Its class then has one more part, '*' and the quota, and
-- does not have that quota as a gate: a full quota never holds back an execution that has a slot.

-- The kinds of gates by their letters. A kind has these functions of a call's context and a gate:
--   load    read it, and set `allowance`, how many more executions it admits; `till`, when that may change, or nil
--   admit   note that an execution is handed out, until a moment; a further argument tells whether its attempt began earlier
--   leave   note that an execution, given by its uuid, is not running any more; further, the claim that took its slot, if known
--   flush   write what was noted, and set `allowance` and `till` again
--   check   look for what it counts wrongly, now and then
--   watch   note that this has to be done, because a claim finds the gate closed; only of quotas
--   explain what explain_execution replies of it if it is closed
--   exists  return whether a gate of a name exists
--   unknown return the failure for an id that does not exist
-- the letters `eligibility` and `blocking` of the state that an execution behind it has, and `cost`, how many commands a call
-- takes for a gate.
ff.gate_kinds = {}

-- How many classes of a gate are looked at when it opens, and how many of a lane when its depths are read.
local MOST_GATED = 1024

-- How many classes are looked at together for ready executions.
local LOOKED_AT_ONCE = 64

-- How many classes of a gate one call looks at for work, before it removes them.
local MOST_FORGOTTEN = 256

-- Return the name of a gate.
function ff.gate_name(letter, namespace, id)
  return letter .. ff.pack({ namespace, id })
end

-- Return the gates of a class from its parts, or nil if it has none, and the quota of which its executions have a slot, or
-- nil. The gates are in the order in which they admit.
function ff.gates_in(parts)
  local held
  for i = 7, #parts do
    held = held or string.match(parts[i], '^%*(.*)$')
  end
  local gates = {}
  for i, budget in ipairs(ff.unpack(parts[5]) or {}) do
    gates[i] = ff.gate_name('b', parts[1], budget)
  end
  if parts[6] ~= '' and parts[6] ~= held then
    gates[#gates + 1] = ff.gate_name('q', parts[1], parts[6])
  end
  return #gates > 0 and gates or nil, held and ff.gate_name('q', parts[1], held)
end

-- State -------------------------------------------------------------------------------------------------------------

-- Return a gate, read once per call. A damaged gate admits nothing, and so does a kind that only a newer release knows.
function ff.gate(ctx, name)
  local gate = ctx.gates[name]
  if not gate then
    local kind = ff.gate_kinds[string.sub(name, 1, 1)]
    gate = { name = name, key = ctx.base .. ':gate:' .. name, kind = kind, allowance = 0 }
    ctx.gates[name] = gate
    gate.is_damaged = kind and (not ff.readable(kind.load, ctx, gate) or gate.damaged)
    if gate.is_damaged then
      gate.allowance, gate.till = 0, nil
    end
    gate.was_closed = gate.allowance <= 0
    ff.spend(ctx, kind and kind.cost or 1, 0)
  end
  return gate
end

-- Return how many more executions some gates admit now.
function ff.allowance(ctx, gates)
  local least = math.huge
  for i = 1, #gates do
    least = math.min(least, ff.gate(ctx, gates[i]).allowance)
  end
  return least
end

-- Note that some gates are closed to a claim.
function ff.watch_gates(ctx, gates)
  for i = 1, #gates do
    local gate = ff.gate(ctx, gates[i])
    if gate.allowance <= 0 and gate.kind and gate.kind.watch then
      gate.kind.watch(ctx, gate)
    end
  end
end

-- Return the first gate of a class that is closed, or nil.
function ff.closed_gate(ctx, class)
  local gates = ff.class(class).gates
  for i = 1, gates and #gates or 0 do
    local gate = ff.gate(ctx, gates[i])
    if gate.allowance <= 0 or gate.looks_closed then
      return gate
    end
  end
  return nil
end

-- Return the state that an execution has for readers: ready work behind a closed gate is blocked by it.
function ff.shown_state(ctx, state, class)
  local words, known = ff.words(state), ff.class(class)
  if not words or not known or not known.gates or words.phase ~= 'runnable' or not words.claimable then
    return state
  end
  local gate = ff.closed_gate(ctx, class)
  if not gate or not gate.kind then
    return state
  end
  return string.sub(state, 1, 2) .. gate.kind.eligibility .. gate.kind.blocking .. string.sub(state, 5)
end

-- Return how many executions of a lane are ready behind closed gates.
function ff.held_back(ctx, lane)
  local prefix = 'l' .. lane
  local members = call(
    'ZRANGE', ctx.base .. ':gated', '[' .. prefix .. '\0', '(' .. prefix .. '\1', 'BYLEX', 'LIMIT', 0, MOST_GATED
  )
  local count, fields = 0, {}
  for _, member in ipairs(members) do
    local class = string.sub(member, #prefix + 2)
    local gate = ff.class(class) and ff.closed_gate(ctx, class)
    if gate and gate.kind then
      fields[#fields + 1] = ff.waiting_in(class)
    end
  end
  -- To look at a class takes a tenth of a command.
  ff.spend(ctx, 1 + #members / 10, 0)
  local counts = #fields > 0 and call('HMGET', ctx.base .. ':lane:' .. lane, unpack(fields)) or {} -- bounded: MOST_GATED
  for i = 1, #fields do
    count = count + (ff.number(counts[i]) or 0)
  end
  return count
end

-- Count that so many more executions wait in a class with gates.
function ff.count_waiting(ctx, known, class, change)
  local counts, field = ctx.counts[known.lane] or {}, ff.waiting_in(class)
  counts[field] = (counts[field] or 0) + change
  ctx.counts[known.lane] = counts
end

-- Return the field of a lane that counts the waiting executions of a class with gates.
function ff.waiting_in(class)
  return 'w' .. class
end

-- Classes -----------------------------------------------------------------------------------------------------------

-- Return the members of ':gated' for a class.
local function members_of(class, known)
  local members = { 'l' .. known.lane .. '\0' .. class }
  for i = 1, known.gates and #known.gates or 0 do
    members[i + 1] = known.gates[i] .. '\0' .. class
  end
  if known.held then
    members[#members + 1] = known.held .. '\0' .. class
  end
  return members
end

-- Add a class to those of its gates, or remove it.
function ff.list_gates(ctx, class, is_in)
  local known = ff.class(class)
  if not known.gates and not known.held then
    return
  end
  for _, member in ipairs(members_of(class, known)) do
    if is_in then
      call('ZADD', ctx.base .. ':gated', 0, member)
    else
      call('ZREM', ctx.base .. ':gated', member)
    end
  end
  if not is_in then
    call('HDEL', ctx.base .. ':lane:' .. known.lane, ff.waiting_in(class))
  end
end

-- Return the classes of a gate, at most `limit`.
function ff.classes_of_gate(ctx, name, limit)
  local classes =
    call('ZRANGE', ctx.base .. ':gated', '[' .. name .. '\0', '(' .. name .. '\1', 'BYLEX', 'LIMIT', 0, limit)
  for i, member in ipairs(classes) do
    classes[i] = string.sub(member, #name + 2)
  end
  return classes
end

-- Remove the classes of a gate that hold no work. Return 'in_use' if one does, 'more' if there may be more classes, or nil.
function ff.forget_classes_of_gate(ctx, name)
  local classes = ff.classes_of_gate(ctx, name, MOST_FORGOTTEN)
  local held = #classes > 0 and call('HMGET', ctx.base .. ':held', unpack(classes)) or {} -- bounded: MOST_FORGOTTEN
  for i = 1, #classes do
    if (ff.number(held[i]) or 0) > 0 then
      return 'in_use'
    end
  end
  for i, class in ipairs(classes) do
    if i > 1 and ctx.work <= 0 then
      return 'more'
    end
    ff.forget_class(ctx, class)
  end
  return #classes == MOST_FORGOTTEN and 'more' or nil
end

-- Return the failure if a class that is not registered names a gate that does not exist.
function ff.unknown_gate(ctx, class)
  local gates = ff.class(class).gates
  if not gates or call('ZSCORE', ctx.base .. ':classes', class) then
    return nil
  end
  for _, name in ipairs(gates) do
    local kind = ff.gate_kinds[string.sub(name, 1, 1)]
    if kind and not kind.exists(ctx, name) then
      return kind.unknown(ff.unpack(string.sub(name, 2))[2])
    end
  end
  return nil
end

-- Return a class whose executions have a slot of a quota, or of none if the quota is nil.
local function class_with_slot(class, quota)
  local parts = {}
  for i, part in ipairs(ff.unpack(class)) do
    if i <= 6 or string.sub(part, 1, 1) ~= '*' then
      parts[#parts + 1] = part
    end
  end
  if quota then
    parts[#parts + 1] = '*' .. quota
  end
  return ff.pack(parts)
end

-- Move a record to the class of those that have a slot of a quota, or of none if it is nil. `claim` is what took the slot if the
-- quota is in another partition. Return the fields to write.
function ff.keep_slot(ctx, record, quota, claim)
  local public, ready = ff.derive(record)
  local old, new = record.class, class_with_slot(record.class, quota)
  if ready then
    ff.ready_at(ctx, old, record.uuid, false)
    ff.ready_at(ctx, new, record.uuid, ready)
  end
  ff.register_class(ctx, new)
  for class, change in pairs({ [old] = -1, [new] = 1 }) do
    local known = ff.class(class)
    ctx.held[class] = (ctx.held[class] or 0) + change
    if known.gates and public == 'waiting' then
      ff.count_waiting(ctx, known, class, change)
    end
  end
  record.class = new
  if not claim and not record.slot then
    return { 'class', new }
  end
  return { 'class', new, 'slot', claim or '' }
end

-- Keep the slot of a record that a claim takes, at a quota whose slots are held for the whole run. Return the fields to write,
-- or nil.
function ff.keep_for_run(ctx, record, gates, claim)
  for i = 1, #gates do
    local gate = ff.gate(ctx, gates[i])
    if gate.is_for_run then
      return ff.keep_slot(ctx, record, ff.unpack(string.sub(gates[i], 2))[2], gate.is_elsewhere and claim)
    end
  end
  return nil
end

-- Admitting and leaving ---------------------------------------------------------------------------------------------

-- Note that a record was put under a lease, at the gates of its class. `again` is true if its attempt began earlier.
function ff.admit(ctx, record, gates, again)
  for i = 1, #gates do
    local gate = ff.gate(ctx, gates[i])
    if gate.kind and not gate.is_damaged then
      gate.kind.admit(ctx, gate, record.uuid, tonumber(record.expires), again)
    end
  end
end

local function leave(ctx, name, uuid, claim)
  local gate = ff.gate(ctx, name)
  if gate.kind and not gate.is_damaged then
    gate.kind.leave(ctx, gate, uuid, claim)
  end
end

-- Return whether the fields to write end an execution.
local function is_end(list)
  for i = 1, #list, 2 do
    if list[i] == 'state' then
      return ff.words(list[i + 1]).phase == 'terminal'
    end
  end
  return false
end

-- Note that a record leaves its gates, because its lease or the execution ends. `list` has the fields to write. A slot that
-- is held for the whole run is given back at the end of the execution, or if `is_unused`.
function ff.leave_gates(ctx, record, list, is_unused)
  local known = ff.class(record.class)
  if known.gates and record.words.leased then
    for i = 1, #known.gates do
      leave(ctx, known.gates[i], record.uuid, (ff.fence_parts(record.fence)))
    end
  end
  if known.held and (is_unused or is_end(list) or not ff.gate(ctx, known.held).is_for_run) then
    leave(ctx, known.held, record.uuid, record.slot)
    ff.append(list, ff.keep_slot(ctx, record, nil))
  end
end

-- Note that an execution that cannot be read is in no gate of its class any more.
function ff.forget_in_gates(ctx, uuid, known)
  for i = 1, known.gates and #known.gates or 0 do
    leave(ctx, known.gates[i], uuid)
  end
  if known.held then
    leave(ctx, known.held, uuid)
  end
end

-- Wake waiters for `left` executions behind a gate. Return whether a waiter waits for one of them.
function ff.wake_behind(ctx, gate, left)
  local is_waited_for = false
  if call('EXISTS', ctx.base .. ':waiters') == 0 then
    return false
  end
  local classes = ff.classes_of_gate(ctx, gate.name, MOST_GATED)
  local has_any = false
  for i, class in ipairs(classes) do
    if i % LOOKED_AT_ONCE == 1 then
      -- Most of many classes have none, so they are looked at together.
      has_any = left > 0 and ff.any_ready(ctx, classes, i, math.min(i + LOOKED_AT_ONCE - 1, #classes))
    end
    if has_any and left > 0 and ff.is_waited_for(ctx, class) then
      local count = math.min(left, call('ZCARD', ctx.base .. ':ready:' .. class))
      ff.note_wake(ctx, class, count)
      left = left - count
      is_waited_for = is_waited_for or gate.is_elsewhere and count > 0
    end
  end
  return is_waited_for
end

-- Wake waiters for as many executions as an open gate admits, unless it `was_open`, and tell the partitions that it refused. One
-- waiter that has to ask what the gate admits is enough: a claim that leaves work wakes the next.
local function open_gate(ctx, gate, was_open)
  if not was_open then
    ff.wake_behind(ctx, gate, gate.is_elsewhere and 1 or gate.allowance)
  end
  if gate.asking then
    ff.tell_partitions(ctx, gate, 'asking', was_open and 1 or gate.allowance)
  end
end

-- Write what was noted of the gates of this call, wake waiters behind those that opened, and note when a closed gate may
-- open.
function ff.flush_gates(ctx)
  local gates = rawget(ctx, 'gates')
  if not gates then
    return
  end
  for name, gate in pairs(gates) do
    if gate.is_changed then
      gate.is_changed = false
      gate.kind.flush(ctx, gate)
      if gate.allowance <= 0 and gate.till then
        ff.due_at(ctx, 'due', 'g' .. name, gate.till)
      elseif gate.allowance > 0 and (gate.was_closed or gate.asking) then
        -- What a partition that was told leaves is for the next one.
        open_gate(ctx, gate, not gate.was_closed)
      end
      gate.was_closed = gate.allowance <= 0
    end
  end
end

-- Handle the due entry of a gate: wake waiters if it is open, or look again when it may be. In the index of removals it means
-- that what the gate counts has to be checked.
function ff.handle_gate(ctx, name, index)
  local gate = ff.gate(ctx, name)
  if not gate.kind or gate.is_damaged or gate.is_missing then
    return
  elseif index == 'retention' then
    gate.kind.check(ctx, gate)
  elseif gate.allowance > 0 then
    open_gate(ctx, gate)
  elseif gate.till then
    ff.due_at(ctx, 'due', 'g' .. name, math.max(gate.till, ctx.now + 1))
  end
end
