-- Budgets: what executions may spend. A budget is pack{namespace} and its id, see prelude_budgets.lua.

-- Definitions -------------------------------------------------------------------------------------------------------

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
    budget.has_space = true
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
    budget.has_space = true
    budget.next_reset = budget.interval ~= '' and ff.text(ctx.now + tonumber(budget.interval)) or ''
    return { 'reset', budget.next_reset }
  end)
end)

-- disuse_budget: forget a budget of another partition, before it is deleted, unless executions here name it.
-- Arguments: budget.
-- Replies: 'ok'; or 'more' if the call has to be repeated.
-- Errors: budget_in_use.
ff.register('disuse_budget', { 'allow-oom' }, function(ctx, args)
  local stopped = ff.forget_classes_of_gate(ctx, ff.gate_of_budget(args[1]))
  if stopped == 'in_use' then
    return ff.failure('budget_in_use', (ff.behind_first(args[1])))
  elseif not stopped then
    ff.forget_elsewhere(ctx, ff.gate_of_budget(args[1]))
  end
  return { stopped or 'ok' }
end)

-- use_from: note that executions of another partition name a budget.
-- Arguments: budget, partition.
-- Replies: 'used', the news for that partition.
-- Errors: budget_not_found, corruption.
ff.register('use_from', {}, function(ctx, args)
  local address, partition = args[1], args[2]
  local budget, failure = ff.budget(ctx, address)
  if not budget then
    return failure
  end
  local is_known = false
  for _, known in ipairs(budget.using) do
    is_known = is_known or known == partition
  end
  if not is_known then
    budget.using[#budget.using + 1] = partition
    ff.write_budget(ctx, budget)
    ff.flush(ctx)
  end
  return { 'used', ff.news_of_budget(budget) }
end)

-- delete_budget: remove a budget with everything that it has.
-- Arguments: budget, call id.
-- Replies: 'removed'; or 'more' if the call has to be repeated.
-- Errors: budget_not_found, budget_in_use.
ff.register('delete_budget', { 'allow-oom' }, function(ctx, args)
  local address, call_id = args[1], args[2]
  if ff.was_removed(ctx, call_id) then
    return { 'removed' }
  elseif not call('ZSCORE', ctx.base .. ':budgets', address) then
    return ff.failure('budget_not_found', (ff.behind_first(address)))
  end
  local stopped = ff.forget_classes_of_gate(ctx, ff.gate_of_budget(address))
  if stopped == 'in_use' then
    return ff.failure('budget_in_use', (ff.behind_first(address)))
  elseif stopped then
    return { stopped }
  end
  call('ZREM', ctx.base .. ':budgets', address)
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
-- Replies: 'checked'; or the mark of the answer, see ff.mark; 'ok', or 'soft_breach' or 'hard_breach', then dimension, counter,
-- limit.
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
    return ff.joined({ { ff.mark(ctx, is_again) }, answer })
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
  return ff.joined({ { ff.mark(ctx) }, answer })
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
    budget.has_space = #amounts > 0
    for _, amount in ipairs(amounts) do
      ff.append(answer, { amount[1], ff.text(amount[2]) })
    end
    return answer
  end)
end)

-- Uses by a holder --------------------------------------------------------------------------------------------------

-- The fields that a use reads.
local USING = ff.joined({ ff.SHARING, { 'last', 'keys' } })

-- Return the name under which a use is remembered that ends a lease.
local function ending_of(call_id)
  return 'budget ' .. call_id
end

-- Return who uses a budget: a record of this partition.
local function user(record)
  return { uuid = record.uuid, partition = '', score = record.place - record.priority * 1e12 }
end

-- Stop an execution because its budget has no space, as the answer of the use says. `words` are the id of the suspension and
-- its condition.
local function stop(ctx, record, fence, call_id, address, answer, words)
  local list = { 'last', ff.remember_end(record, ending_of(call_id), fence, answer), 'mutated', ctx.now_text }
  ff.note_budget(ctx, record, address)
  if answer[6] == 'fail' then
    local detail = 'budget ' .. ff.behind_first(address) .. ': ' .. answer[3] .. ' is at ' .. answer[4] .. ' of ' .. answer[5]
    ff.append(list, { 'error', 'budget_exceeded', 'error_class', 'permanent', 'error_detail', detail })
    ff.finish(ctx, record, 'failed', list)
  elseif answer[6] == 'suspend' then
    local asked = {
      '', '', '', words[1], 'fail', 'paused_by_budget', '', '0', '', words[2], '', '', 'budget ' .. words[1],
    }
    local draft = ff.draft_of(ctx, record, asked, {})
    ff.append(list, ff.begin_suspension(ctx, record, asked, draft, {}))
    ff.enter_suspension(ctx, record, 'paused_by_budget', list)
  else
    ff.append(list, { 'state', ff.BLOCKED_BY_BUDGET .. ff.INTERRUPTED })
    ff.end_lease(ctx, record, list)
  end
end

-- use_budget: use a budget of this partition on behalf of the holder of an execution, and stop the execution if the budget
-- has no space and says so.
-- Arguments: uuid, fence, the use as ff.use_of reads it, then the id and the condition of a suspension.
-- Replies: as ff.use_budget.
-- Errors: those of ff.fenced, budget_not_found, corruption, too_many_dimensions, reservation_never_fits,
-- reservation_settled, too_many_reservations.
ff.register_single('use_budget', { 'allow-oom' }, function(ctx, args)
  local uuid, fence, use = args[1], args[2], ff.use_of(args, 3)
  use.who = { uuid = uuid }
  local before, is_another = ff.reported(ctx, use.address, use.call_id, ff.key_of_use(use))
  if before and not is_another and ff.load(ctx, uuid, USING) then
    return ff.joined({ { '' }, before })
  end
  local record, failure = ff.fenced(ctx, uuid, fence, ending_of(use.call_id), USING)
  if not record then
    return failure
  end
  use.who = user(record)
  local answer = ff.use_budget(ctx, use)
  if answer[6] and answer[2] == 'hard_breach' and use.what ~= 'settle' then
    stop(ctx, record, fence, use.call_id, use.address, answer, { args[9], args[10] })
  elseif answer[2] == 'reserved' then
    ff.note_budget(ctx, record, use.address)
  end
  return answer
end)

-- begin_use: check that a caller holds an execution, before it uses a budget of another partition; or note in the record the
-- budget at which it has reserved.
-- Arguments: uuid, fence, call id, budget, '1' to note the budget.
-- Replies: 'begun', the place of the execution among those that wait; or the answer of the same use that ended the lease.
-- Errors: those of ff.fenced.
ff.register_single('begin_use', {}, function(ctx, args)
  local uuid, fence, call_id, address = args[1], args[2], args[3], args[4]
  local record, failure = ff.fenced(ctx, uuid, fence, ending_of(call_id), USING)
  if not record then
    return failure
  elseif args[5] == '1' then
    ff.note_budget(ctx, record, address)
  end
  return { 'begun', ff.text(user(record).score) }
end)

-- apply_use: use a budget on behalf of an execution of another partition.
-- Arguments: the use as ff.use_of reads it, then uuid, partition and place of the execution.
-- Replies and errors: as ff.use_budget.
ff.register('apply_use', { 'allow-oom' }, function(ctx, args)
  local who = { uuid = args[7], partition = args[8], score = args[9] }
  local answer = ff.use_budget(ctx, ff.use_of(args, 1, who))
  ff.flush(ctx)
  return answer
end)

-- stop_use: stop an execution because a budget of another partition has no space, and owe the question whether it still has
-- none.
-- Arguments: uuid, fence, call id, budget, the id and the condition of a suspension, then the answer of the use.
-- Replies: that answer.
-- Errors: those of ff.fenced.
ff.register_single('stop_use', { 'allow-oom' }, function(ctx, args)
  local uuid, fence, call_id, address = args[1], args[2], args[3], args[4]
  local record, failure = ff.fenced(ctx, uuid, fence, ending_of(call_id), USING)
  if not record then
    return failure
  end
  local answer = { unpack(args, 7) } -- bounded: the parts of one answer
  stop(ctx, record, fence, call_id, address, answer, { args[5], args[6] })
  if answer[6] ~= 'fail' then
    ff.owe(ctx, 'ask', address, uuid, '')
  end
  return answer
end)

-- pay: receive what another partition owes to a budget, to a quota or to an execution of this one.
-- Arguments: what it is, budget or quota, uuid or what the debt says, partition, see ff.owe; or 'open' for a budget if an
-- execution that was to go on did not wait, and 'pass' for a quota if the partition that was told had nothing to do, so that
-- others may go on.
-- Replies: 'ok'; to 'ask', 'go' if the execution may go on; to 'go' and 'news', 'idle' if nothing waited; to 'check', 'gone' if
-- the holder has no slot. About a quota, then what this partition owes by that.
-- Errors: corruption of a quota.
ff.register('pay', { 'allow-oom' }, function(ctx, args)
  local what, address, uuid = args[1], args[2], args[3]
  local answer = { 'ok' }
  if ff.payments[what] then
    answer = ff.payments[what](ctx, address, uuid, args[4])
    ff.flush(ctx)
    answer[2] = rawget(ctx, 'owes') or {}
    return answer
  end
  local budget = (what == 'open' or what == 'ask') and ff.budget(ctx, address)
  if what == 'tell' then
    ff.hear_of_budget(ctx, address, uuid)
  elseif what == 'go' then
    answer = { ff.go_on(ctx, uuid) and 'ok' or 'idle' }
  elseif what == 'open' and budget then
    ff.change_budget(ctx, budget)
  elseif what == 'ask' then
    answer = { budget and ff.still_waits(ctx, budget, uuid) and 'ok' or 'go' }
  else
    ff.end_share(ctx, address, uuid, what == 'gone')
  end
  ff.flush(ctx)
  return answer
end)

-- read_owed: read what this partition owes to others.
-- Arguments: the most to read.
-- Replies: pack{what, budget, uuid, partition of an execution} each.
ff.register('read_owed', { 'no-writes' }, function(ctx, args)
  return ff.owed(ctx, tonumber(args[1]))
end)

-- end_owed: forget what this partition owed and what was paid.
-- Arguments: as read_owed replied.
-- Replies: 'ok'.
ff.register('end_owed', { 'allow-oom' }, function(ctx, args)
  ff.chunked('ZREM', ctx.base .. ':owed', args)
  return { 'ok' }
end)
