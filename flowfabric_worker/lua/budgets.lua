-- Budgets: what executions may spend. A budget is pack{namespace} and its id, see prelude_budgets.lua.

-- Return the definition that begins at argument `at`: on_hard, on_soft, interval in ms or '', limits as they are stored.
local function definition_of(args, at)
  return { on_hard = args[at], on_soft = args[at + 1], interval = args[at + 2], limits = args[at + 3] }
end

-- Return the reply that shows a budget: 'budget', then its parts in their order.
local function shown(budget)
  local answer = { 'budget' }
  ff.append(answer, ff.budget_parts(budget))
  return answer
end

-- create_budget: create a budget whose counters are zero.
-- Arguments: budget, call id, the definition as definition_of reads it.
-- Replies: 'created'; or 'known' if the same budget exists.
-- Errors: conflict if it exists with another definition, corruption.
ff.register('create_budget', {}, function(ctx, args)
  local address, call_id, definition = args[1], args[2], definition_of(args, 3)
  local budget, failure = ff.budget(ctx, address)
  if not budget and failure[2] ~= 'budget_not_found' then
    return failure
  elseif not budget then
    call('ZADD', ctx.base .. ':budgets', 0, address)
    ff.remember_report(ctx, address, call_id, '', { 'created' })
    ff.write_budget(ctx, ff.new_budget(ctx, address, definition))
    ff.flush(ctx)
    return { 'created' }
  end
  local before = ff.reported(ctx, address, call_id)
  for field, value in pairs(before and {} or definition) do
    if budget[field] ~= value then
      return ff.failure('conflict', (ff.behind_first(address)))
    end
  end
  return before or { 'known' }
end)

-- Run an operator's call on a budget once, and remember its answer. Return the answer, or the failure.
local function operate(ctx, address, call_id, run)
  local budget, failure = ff.budget(ctx, address)
  if not budget then
    return failure
  end
  local answer = ff.reported(ctx, address, call_id)
  if not answer then
    answer = run(budget)
    ff.remember_report(ctx, address, call_id, '', answer)
    ff.write_budget(ctx, budget)
    ff.flush(ctx)
  end
  return answer
end

-- update_budget: replace the definition of a budget. Its counters are kept; another interval begins now.
-- Arguments: budget, call id, the definition as definition_of reads it.
-- Replies: 'budget' and its parts.
-- Errors: budget_not_found, corruption.
ff.register('update_budget', {}, function(ctx, args)
  return operate(ctx, args[1], args[2], function(budget)
    ff.define_budget(ctx, budget, definition_of(args, 3))
    return shown(budget)
  end)
end)

-- reset_budget: set the counters of a budget to zero. Its interval begins now.
-- Arguments: budget, call id.
-- Replies: 'reset', when it is reset next or ''.
-- Errors: budget_not_found, corruption.
ff.register('reset_budget', { 'allow-oom' }, function(ctx, args)
  return operate(ctx, args[1], args[2], function(budget)
    ff.clear_budget(budget)
    budget.next_reset = budget.interval ~= '' and ff.text(ctx.now + tonumber(budget.interval)) or ''
    return { 'reset', budget.next_reset }
  end)
end)

-- delete_budget: remove a budget with everything that it has.
-- Arguments: budget, call id.
-- Replies: 'removed'.
-- Errors: budget_not_found.
ff.register('delete_budget', { 'allow-oom' }, function(ctx, args)
  local address, call_id = args[1], args[2]
  if ff.was_removed(ctx, call_id) then
    return { 'removed' }
  elseif call('ZREM', ctx.base .. ':budgets', address) == 0 then
    return ff.failure('budget_not_found', (ff.behind_first(address)))
  end
  call('HDEL', ctx.base .. ':budget', address)
  ff.remove_keys_of_budget(ctx, address)
  ff.due_at(ctx, 'due', 'b' .. address, false)
  ff.due_at(ctx, 'retention', 'u' .. address, false)
  ff.remember_removal(ctx, call_id)
  ff.flush(ctx)
  return { 'removed' }
end)

-- read_budget: read a budget.
-- Arguments: budget.
-- Replies: 'budget' and its parts.
-- Errors: budget_not_found, corruption.
ff.register('read_budget', { 'no-writes' }, function(ctx, args)
  local budget, failure = ff.budget(ctx, args[1])
  return budget and shown(budget) or failure
end)

-- list_budgets: read a page of a namespace's budgets in this partition.
-- Arguments: pack{namespace}, after (a budget) or '', limit.
-- Replies: '1' if there may be more budgets, else '0'; then per budget: its name, then its parts; a damaged one is its name
-- and the damage.
ff.register('list_budgets', { 'no-writes' }, function(ctx, args)
  local namespace, after, limit = args[1], args[2], tonumber(args[3])
  local from = after ~= '' and '(' .. after or '[' .. namespace
  local names = call('ZRANGE', ctx.base .. ':budgets', from, '(' .. namespace .. '\255', 'BYLEX', 'LIMIT', 0, limit)
  return ff.read_rows(ctx, names, limit, function(address)
    local budget, failure = ff.budget(ctx, address)
    local row = { address }
    ff.append(row, budget and ff.budget_parts(budget) or { failure[4] or '' })
    return row
  end)
end)

-- spend: count usage on behalf of an operator, and record it as the share of an execution if one is given.
-- Arguments: budget, call id, key of the caller or '', pack{dimension, amount, ...}, pack{namespace}, execution or '', and
-- where that is: 'here' in this partition, 'there' in another one, which knows of the share, or 'check' to count nothing.
-- Replies: 'checked'; or '1' if this repeats a report of another call, else ''; 'ok', or 'soft_breach' or 'hard_breach', then dimension,
-- counter, limit.
-- Errors: budget_not_found, corruption, too_many_dimensions, execution_not_found.
ff.register('spend', {}, function(ctx, args)
  local address, call_id, key, amounts = args[1], args[2], args[3], ff.amounts_of(args[4])
  local namespace, uuid, place = args[5], args[6], args[7]
  local budget, failure = ff.budget(ctx, address)
  if not budget then
    return failure
  end
  local answer, is_again = ff.reported(ctx, address, call_id, key)
  if answer then
    return ff.joined({ { is_again and '1' or '' }, answer })
  end
  local record
  if place == 'here' then
    record, failure = ff.load_in(ctx, namespace, uuid, ff.SHARING)
  end
  failure = failure or ff.uncountable(budget, amounts)
  if failure or place == 'check' then
    return failure or { 'checked' }
  end
  local is_counted
  answer, is_counted = ff.spend_from(ctx, budget, call_id, key, amounts)
  if is_counted and uuid ~= '' then
    ff.record_share(ctx, address, uuid, amounts)
    ff.note_budget(ctx, record, address)
  end
  ff.flush(ctx)
  return ff.joined({ { '' }, answer })
end)

-- note_budget: note in the record of an execution that a budget in another partition has a share of it.
-- Arguments: uuid, pack{namespace}, budget.
-- Replies: 'ok'.
-- Errors: execution_not_found, corruption.
ff.register_single('note_budget', {}, function(ctx, args)
  local uuid, namespace, address = args[1], args[2], args[3]
  local record, failure = ff.load_in(ctx, namespace, uuid, ff.SHARING)
  if not record then
    return failure
  end
  ff.note_budget(ctx, record, address)
  return { 'ok' }
end)

-- release_budget: take back what an execution recorded.
-- Arguments: budget, call id, execution.
-- Replies: 'released', then dimension, amount, ...
-- Errors: budget_not_found, corruption.
ff.register('release_budget', { 'allow-oom' }, function(ctx, args)
  return operate(ctx, args[1], args[2], function(budget)
    local answer, amounts = { 'released' }, ff.take_recorded(ctx, args[1], args[3])
    ff.add_amounts(budget, amounts, 'used', -1)
    for _, amount in ipairs(amounts) do
      ff.append(answer, { amount[1], ff.text(amount[2]) })
    end
    return answer
  end)
end)
