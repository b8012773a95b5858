-- Budgets: how they are stored, and how usage is checked and counted.
--
-- A budget is pack{namespace} and its id, and is in the partition that its id gives. Its entry in the hash ':budget' is the
-- pack of these parts; the index ':budgets' has the names in order:
--
--   created            when it was created
--   on_hard, on_soft   what a breach of a hard or a soft limit causes
--   interval           how often it is reset, in ms, or ''
--   next_reset         when it is reset next, or ''
--   limits             pack{dimension, hard limit or '', soft limit or '', ...}
--   counters           pack{dimension, used, reserved, ...}
--   breaches, soft_breaches    reports that broke a hard limit, and that passed a soft one
--   breached_at, breached      when a hard limit was last broken since the last reset, and its dimension; or ''
--   walked             how many of the executions that wait for the budget did not fit so far, while more have to be looked
--                      at; else ''
--   users              pack{partition, ...}: the other partitions that have executions which name the budget
--   turn               grows whenever the budget becomes full or gets space again, so that the others ignore old news
--
-- Further keys of a budget: ':reports:<budget>' has the answers to its last calls, by their keys, and ':report_ages:<budget>'
-- until when each is kept. For ':shares:<budget>' see prelude_shares.lua.

local FIELDS = {
  'created', 'on_hard', 'on_soft', 'interval', 'next_reset', 'limits', 'counters', 'breaches', 'soft_breaches',
  'breached_at', 'breached', 'walked', 'users', 'turn',
}

ff.MAX_BUDGET_DIMENSIONS = 64
-- No counter and no limit is larger, so that numbers are exact.
ff.MAX_COUNT = 2 ^ 53 - 1

-- How many answers that are over one call forgets, and how many upkeep forgets at once.
local FORGOTTEN_PER_CALL, FORGOTTEN_AT_ONCE = 2, 100

-- How long the answer to a call without a key of the caller is kept, in ms.
local CALL_KEPT = 600000

-- Entries -----------------------------------------------------------------------------------------------------------

-- Return a whole number, or nil if the text is none.
local function count_of(text)
  return text and #text <= 16 and string.find(text, '^%d+$') and tonumber(text) or nil
end

-- The limits of budgets by their texts, which seldom change. The cache is emptied before it grows large.
local known_limits, known_limit_bytes = {}, 0
local MOST_LIMIT_BYTES = 4 * 1024 * 1024

-- Return the limits by dimension, or nil if they are damaged. The table is shared and stays as it is.
local function parse_limits(text)
  if known_limits[text] then
    return known_limits[text]
  end
  local parts, limits = ff.unpack(text), {}
  for i = 1, parts and #parts or 0, 3 do
    local hard, soft = parts[i + 1], parts[i + 2]
    if not soft or hard ~= '' and not count_of(hard) or soft ~= '' and not count_of(soft) then
      return nil
    end
    limits[parts[i]] = { hard = count_of(hard), soft = count_of(soft) }
  end
  if not parts then
    return nil
  elseif known_limit_bytes > MOST_LIMIT_BYTES then
    known_limits, known_limit_bytes = {}, 0
  end
  known_limits[text], known_limit_bytes = limits, known_limit_bytes + #text
  return limits
end

-- Return the counters in their order and by dimension, or nil if they are damaged.
local function parse_counters(text)
  local parts, counters = ff.unpack(text), {}
  for i = 1, parts and #parts or 0, 3 do
    local counter = { name = parts[i], used = count_of(parts[i + 1]), reserved = count_of(parts[i + 2]) }
    if not counter.used or not counter.reserved then
      return nil
    end
    counters[#counters + 1] = counter
    counters[counter.name] = counter
  end
  return parts and counters
end

-- Carry out a scheduled reset that is due. Resets stay on their grid, and those that were missed are one.
local function catch_up(ctx, budget)
  local due = ff.number(budget.next_reset)
  if not due or due > ctx.now then
    return
  end
  local interval = tonumber(budget.interval)
  ff.clear_budget(budget)
  budget.next_reset = ff.text(due + (math.floor((ctx.now - due) / interval) + 1) * interval)
  budget.has_space = true
end

-- Return a budget from its stored entry, or nil and the name of its damaged field.
local function parse(address, stored)
  local parts = ff.unpack(stored)
  if not parts or #parts < #FIELDS then
    return nil, 'entry'
  end
  local budget = { address = address, parts = parts, due_before = '' }
  for i, field in ipairs(FIELDS) do
    budget[field] = parts[i]
  end
  budget.by_name, budget.counted = parse_limits(budget.limits), parse_counters(budget.counters)
  for _, field in ipairs({ 'created', 'breaches', 'soft_breaches', 'turn' }) do
    if not count_of(budget[field]) then
      return nil, field
    end
  end
  for _, field in ipairs({ 'interval', 'next_reset', 'breached_at', 'walked' }) do
    if budget[field] ~= '' and not ff.stored_moment(budget[field]) then
      return nil, field
    end
  end
  if budget.next_reset ~= '' and (ff.number(budget.interval) or 0) == 0 then
    return nil, 'interval'
  end
  budget.using = ff.unpack(budget.users)
  return budget.by_name and budget.counted and budget.using and budget,
    not budget.by_name and 'limits' or not budget.counted and 'counters' or 'users'
end

-- Return when the due entry of a budget is due: at its next reset, or now if more executions have to be looked at. '' is
-- never.
local function due_of(budget, now)
  return budget.walked ~= '' and now or budget.next_reset
end

-- Load a budget, once per call, and carry out the reset that is due. Return it, or nil and the failure.
function ff.budget(ctx, address)
  ctx.budgets = ctx.budgets or {}
  if ctx.budgets[address] then
    return ctx.budgets[address]
  end
  local stored = call('HGET', ctx.base .. ':budget', address)
  if not stored then
    return nil, ff.failure('budget_not_found', (ff.behind_first(address)))
  end
  local budget, damaged = parse(address, stored)
  if not budget then
    return nil, ff.failure('corruption', '', 'budget ' .. ff.behind_first(address) .. ': ' .. damaged)
  end
  -- To read a dimension, and to pack it again, takes about 5 us.
  ff.spend(ctx, 1 + #budget.counted / 2, 0)
  budget.due_before = due_of(budget, '')
  budget.was_full = ff.full_dimension(budget) ~= nil
  catch_up(ctx, budget)
  ctx.budgets[address] = budget
  return budget
end

-- Whether budgets are full by their addresses: { what is stored, whether it is full, until when that holds }. Most calls that pass
-- a budget need nothing else of it. The cache is emptied before it grows large.
local known_fullness, known_bytes = {}, 0
local MOST_KNOWN_BYTES = 4 * 1024 * 1024

-- Return whether a budget is full; or nil and the failure if it cannot be read.
function ff.is_budget_full(ctx, address)
  local budget = ctx.budgets and ctx.budgets[address]
  local stored = not budget and call('HGET', ctx.base .. ':budget', address)
  local known = stored and known_fullness[address]
  if known and known[1] == stored and ctx.now < known[3] then
    return known[2]
  end
  local failure
  budget, failure = ff.budget(ctx, address)
  if not budget then
    return nil, failure
  end
  local is_full = ff.full_dimension(budget) ~= nil
  if stored and not budget.has_space then
    if known_bytes > MOST_KNOWN_BYTES then
      known_fullness, known_bytes = {}, 0
    end
    known_fullness[address] = { stored, is_full, tonumber(budget.next_reset) or math.huge }
    known_bytes = known_bytes + #stored
  end
  return is_full
end

-- Return the parts of a budget in their order, after those that a newer release added were kept.
function ff.budget_parts(budget)
  local parts, counters = budget.parts, {}
  for i, counter in ipairs(budget.counted) do
    counters[3 * i - 2], counters[3 * i - 1], counters[3 * i] = counter.name, ff.text(counter.used), ff.text(counter.reserved)
  end
  budget.counters, budget.users = ff.pack(counters), ff.pack(budget.using)
  for i, field in ipairs(FIELDS) do
    parts[i] = budget[field]
  end
  return parts
end

-- Write a budget, and note when it is due if that has changed. If it has more space, the executions go on that wait for it;
-- if it is full now or not any more, its gate closes or opens.
function ff.write_budget(ctx, budget)
  if budget.has_space then
    budget.has_space = false
    ff.open_budget(ctx, budget, 0)
  end
  local is_full = ff.full_dimension(budget) ~= nil
  if is_full ~= budget.was_full then
    budget.was_full = is_full
    ff.turn_gate(ctx, budget, is_full)
  end
  call('HSET', ctx.base .. ':budget', budget.address, ff.pack(ff.budget_parts(budget)))
  local due = due_of(budget, ctx.now_text)
  if due ~= budget.due_before then
    ff.due_at(ctx, 'due', 'b' .. budget.address, ff.number(due) or false)
    budget.due_before = due
  end
end

-- Write a budget that may have more space than before.
function ff.change_budget(ctx, budget)
  budget.has_space = true
  ff.write_budget(ctx, budget)
end

-- Replace the definition of a budget. `definition` has on_hard, on_soft, interval and limits. Another interval begins now.
function ff.define_budget(ctx, budget, definition)
  if budget.interval ~= definition.interval then
    budget.next_reset = definition.interval ~= '' and ff.text(ctx.now + tonumber(definition.interval)) or ''
  end
  for _, field in ipairs({ 'on_hard', 'on_soft', 'interval', 'limits' }) do
    budget[field] = definition[field]
  end
  budget.by_name = parse_limits(budget.limits)
end

-- Create a budget in memory.
function ff.new_budget(ctx, address, definition)
  local budget = {
    using = {}, was_full = false, address = address, parts = {}, created = ctx.now_text, interval = '', next_reset = '', breaches = '0',
    soft_breaches = '0', breached_at = '', breached = '', walked = '', users = '', turn = '0', counted = {}, due_before = '',
  }
  ff.define_budget(ctx, budget, definition)
  return budget
end

-- Remove the further keys of a budget. They may be large, so the server frees them in the background.
function ff.remove_keys_of_budget(ctx, address)
  for _, key in ipairs({ ':reports:', ':report_ages:', ':shares:', ':blocked:' }) do
    call('UNLINK', ctx.base .. key .. address)
  end
end

-- Set the counters of a budget to zero. What is reserved stays reserved, and breaches stay counted.
function ff.clear_budget(budget)
  for _, counter in ipairs(budget.counted) do
    counter.used = 0
  end
  budget.breached_at, budget.breached = '', ''
end

-- Handle the due entry of a budget: it is reset if its time has come, and executions go on that wait for it.
function ff.reset_due_budget(ctx, address)
  local budget, failure = ff.budget(ctx, address)
  if budget then
    -- The entry that is handled is gone, so the next one is noted even if nothing was due.
    budget.due_before = ''
    if budget.walked ~= '' and not budget.has_space then
      ff.open_budget(ctx, budget, tonumber(budget.walked))
    end
    ff.write_budget(ctx, budget)
  elseif failure[2] == 'corruption' then
    ff.due_at(ctx, 'due', 'b' .. address, ctx.now + ff.POSTPONED)
  end
end

-- Answers -----------------------------------------------------------------------------------------------------------

-- Return the answer that is stored under a key and the call that got it, or nil.
local function stored_answer(ctx, address, key)
  local stored = call('HGET', ctx.base .. ':reports:' .. address, key)
  local parts = stored and ff.unpack(stored)
  if not parts or #parts < 3 or not ff.stored_moment(parts[1]) or tonumber(parts[1]) <= ctx.now then
    return nil
  end
  return { unpack(parts, 3) }, parts[2] -- bounded: the parts of one answer
end

-- Return what a call of a budget was answered before, or nil if it is new. `key` is that of the caller, or ''. Return also
-- whether another call with that key got the answer.
function ff.reported(ctx, address, call_id, key)
  if key and key ~= '' then
    local answer, of_call = stored_answer(ctx, address, 'k' .. key)
    if answer then
      return answer, of_call ~= call_id
    end
  end
  return stored_answer(ctx, address, 'c' .. call_id), false
end

-- Forget up to `limit` answers of a budget that are over. Return when the next one is, or nil.
local function forget_answers(ctx, address, limit)
  local ages = ctx.base .. ':report_ages:' .. address
  local over = call('ZRANGE', ages, '-inf', ctx.now, 'BYSCORE', 'LIMIT', 0, limit)
  ff.chunked('ZREM', ages, over)
  ff.chunked('HDEL', ctx.base .. ':reports:' .. address, over)
  return ff.first_moment(ctx, ':report_ages:' .. address)
end

-- Handle the retention entry of a budget's answers.
function ff.forget_reports(ctx, address)
  local first = forget_answers(ctx, address, FORGOTTEN_AT_ONCE)
  if first then
    ff.due_at(ctx, 'retention', 'u' .. address, math.max(first, ctx.now))
  end
end

-- Remember the answer to a call: a day under a key of the caller, else as long as the call may be repeated.
function ff.remember_report(ctx, address, call_id, key, answer)
  local has_key = key and key ~= ''
  local kept = ctx.now + (has_key and ff.DAY or CALL_KEPT)
  local name = has_key and 'k' .. key or 'c' .. call_id
  local stored = { ff.text(kept), call_id }
  ff.append(stored, answer)
  local first = forget_answers(ctx, address, FORGOTTEN_PER_CALL)
  call('HSET', ctx.base .. ':reports:' .. address, name, ff.pack(stored))
  call('ZADD', ctx.base .. ':report_ages:' .. address, kept, name)
  if not first or kept < first then
    ff.due_at(ctx, 'retention', 'u' .. address, kept)
  end
end

-- Usage -------------------------------------------------------------------------------------------------------------

-- Return the amounts of a packed usage: { name, amount }, ...
function ff.amounts_of(packed)
  local parts, amounts = ff.unpack(packed), {}
  for i = 1, #parts, 2 do
    amounts[#amounts + 1] = { parts[i], tonumber(parts[i + 1]) }
  end
  return amounts
end

-- Return what a budget counts in a dimension: how much is used or reserved.
local function taken(budget, name)
  local counter = budget.counted[name]
  return counter and counter.used + counter.reserved or 0
end

-- Return the first dimension of a budget whose hard limit is reached, what is used or reserved of it, and the limit; or nil.
-- New work is not handed out then.
function ff.full_dimension(budget)
  for _, counter in ipairs(budget.counted) do
    local limit = budget.by_name[counter.name]
    if limit and limit.hard and counter.used + counter.reserved >= limit.hard then
      return counter.name, counter.used + counter.reserved, limit.hard
    end
  end
  return nil
end

-- Return the first dimension in which amounts do not fit into a budget, what is used or reserved of it, and its hard limit.
function ff.breach_of(budget, amounts)
  for _, amount in ipairs(amounts) do
    local name, limit = amount[1], budget.by_name[amount[1]]
    local hard = limit and limit.hard or ff.MAX_COUNT
    if taken(budget, name) + amount[2] > hard then
      return name, taken(budget, name), hard
    end
  end
  return nil
end

-- Return the failure if a budget cannot have counters for all dimensions of some amounts, else nil.
function ff.uncountable(budget, amounts)
  local new = 0
  for _, amount in ipairs(amounts) do
    new = new + (budget.counted[amount[1]] and 0 or 1)
  end
  if #budget.counted + new <= ff.MAX_BUDGET_DIMENSIONS then
    return nil
  end
  return ff.failure('too_many_dimensions', (ff.behind_first(budget.address)), ff.MAX_BUDGET_DIMENSIONS)
end

-- Add amounts to the counters of a budget: to what is used, or to what is reserved. No counter falls below zero.
function ff.add_amounts(budget, amounts, part, sign)
  for _, amount in ipairs(amounts) do
    local counter = budget.counted[amount[1]]
    if not counter then
      counter = { name = amount[1], used = 0, reserved = 0 }
      budget.counted[#budget.counted + 1] = counter
      budget.counted[amount[1]] = counter
    end
    counter[part] = math.min(math.max(counter[part] + sign * amount[2], 0), ff.MAX_COUNT)
  end
end

-- Note a breach of a hard limit, and return the answer.
function ff.note_breach(ctx, budget, name, current, hard)
  budget.breaches = ff.text(tonumber(budget.breaches) + 1)
  budget.breached_at, budget.breached = ctx.now_text, name
  return { 'hard_breach', name, ff.text(current), ff.text(hard) }
end

-- Return the answer to a report that was counted: the first dimension of it that has passed its soft limit by it, else the
-- first that is above its soft limit.
function ff.standing_of(budget, amounts)
  local answer, has_passed = nil, false
  for _, amount in ipairs(amounts) do
    local limit, used = budget.by_name[amount[1]], budget.counted[amount[1]].used
    if limit and limit.soft and used > limit.soft and not has_passed then
      has_passed = used - amount[2] <= limit.soft
      if has_passed or not answer then
        answer = { 'soft_breach', amount[1], ff.text(used), ff.text(limit.soft) }
      end
    end
  end
  if answer then
    budget.soft_breaches = ff.text(tonumber(budget.soft_breaches) + 1)
  end
  return answer or { 'ok' }
end

-- Check all amounts of a report, then count all of them; a breach of a hard limit counts nothing. Return the answer, and
-- whether the amounts were counted.
function ff.spend_from(ctx, budget, call_id, key, amounts)
  local name, current, hard = ff.breach_of(budget, amounts)
  local answer
  if name then
    answer = ff.note_breach(ctx, budget, name, current, hard)
    -- The caller's key stays unused, so that the report may be sent again after a reset.
    key = ''
  else
    ff.add_amounts(budget, amounts, 'used', 1)
    answer = ff.standing_of(budget, amounts)
  end
  ff.remember_report(ctx, budget.address, call_id, key, answer)
  ff.write_budget(ctx, budget)
  return answer, not name
end
