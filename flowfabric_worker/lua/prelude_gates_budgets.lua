-- Budgets as gates of claim classes.
--
-- A budget is a gate: while a hard limit of it is reached, work that names it is not handed out. A partition with such work
-- but without the budget has a hash ':gate:<name>' for it: `shut` is '1' while the budget is full, `turn` is that of this news.
local gates = { eligibility = 'b', blocking = 'u', cost = 1 }
ff.gate_kinds.b = gates

-- Return the budget that a gate is named after, and the name of a budget's gate.
local function budget_of(name)
  local parts = ff.unpack(string.sub(name, 2))
  return ff.pack({ parts[1] }) .. parts[2]
end

function ff.gate_of_budget(address)
  local id, namespace = ff.behind_first(address)
  return ff.gate_name('b', ff.unpack(namespace)[1], id)
end

function gates.load(ctx, gate)
  local address = budget_of(gate.name)
  local is_full, failure = ff.is_budget_full(ctx, address)
  if not failure then
    gate.address = address
    gate.allowance = is_full and 0 or math.huge
  elseif failure[2] == 'corruption' then
    gate.damaged = failure[4]
  else
    local shut = call('HGET', gate.key, 'shut')
    gate.is_missing, gate.allowance = not shut, shut == '1' and 0 or math.huge
  end
end

function gates.flush(ctx, gate)
  if gate.address then
    gate.allowance = ff.is_budget_full(ctx, gate.address) and 0 or math.huge
  end
end

-- What is handed out is not counted: executions report what they use.
function gates.admit() end
function gates.leave() end
function gates.check() end

function gates.exists(ctx, name)
  return call('HEXISTS', ctx.base .. ':budget', budget_of(name)) == 1 or call('EXISTS', ctx.base .. ':gate:' .. name) == 1
end

function gates.unknown(id)
  return ff.failure('budget_not_found', id)
end

-- Return what explain_execution tells of a full budget: the dimension, what is used or reserved of it, the hard limit, and when
-- it is reset or ''; nothing if the budget is in another partition.
function gates.explain(ctx, gate)
  local budget = gate.address and ff.budget(ctx, gate.address)
  if not budget then
    return {}
  end
  local name, taken, hard = ff.full_dimension(budget)
  return { name or '', ff.text(taken or 0), ff.text(hard or 0), budget.next_reset }
end

-- Return the news for a partition that uses a budget: the turn, and '1' if the budget is full, else '0'.
function ff.news_of_budget(budget)
  return budget.turn .. ':' .. (ff.full_dimension(budget) and '1' or '0')
end

-- Close or open the gate of a budget that has become full, or has space again, here and in the partitions that use it.
function ff.turn_gate(ctx, budget, is_full)
  local gate = ff.gate(ctx, ff.gate_of_budget(budget.address))
  gate.was_closed, gate.is_changed = not is_full, true
  budget.turn = ff.text(math.max(tonumber(budget.turn) + 1, ctx.now))
  for _, partition in ipairs(budget.using) do
    ff.owe(ctx, 'tell', budget.address, ff.news_of_budget(budget), partition)
  end
end

-- Receive the news whether a budget of another partition is full. Old news is ignored.
function ff.hear_of_budget(ctx, address, news)
  local turn, is_full = string.match(news, '^(%d+):([01])$')
  local name = ff.gate_of_budget(address)
  local gate = ff.gate(ctx, name)
  if tonumber(turn) < (ff.number(call('HGET', gate.key, 'turn')) or 0) then
    return
  end
  call('HSET', gate.key, 'turn', turn, 'shut', is_full)
  call('ZADD', ctx.base .. ':elsewhere', 0, name)
  gate.was_closed, gate.is_changed = gate.allowance <= 0, true
  gate.allowance, gate.is_missing = is_full == '1' and 0 or math.huge, false
end
