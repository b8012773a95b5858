-- Reservations, executions that wait for a budget, and what one partition owes to another.

-- How many reservations of one budget an execution may have open.
local MOST_RESERVED = 100

-- How many executions that wait for a budget one call looks at: at most, and however little of its work is left. Each takes about
-- so many commands.
local MOST_LOOKED_AT, LEAST_LOOKED_AT, LOOK = 50, 10, 12

-- Owed --------------------------------------------------------------------------------------------------------------

-- Write down what this partition owes to another one: 'end' and 'gone' say to a budget that an execution ended or was
-- removed, 'go' says to an execution that it may go on, 'ask' asks a budget whether an execution still has to wait, and 'tell'
-- says to a partition whether a budget is full. The kinds of ff.payments are about quotas, and say what they need in place of a
-- uuid. The caller pays it at once, and upkeep pays what is left.
function ff.owe(ctx, kind, address, uuid, partition)
  local debt = ff.pack({ kind, address, uuid, partition })
  call('ZADD', ctx.base .. ':owed', ctx.now, debt)
  ctx.owes[#ctx.owes + 1] = debt
end

-- Return the mark of an answer: '1' if it repeats that of another call, followed by 'o' if this partition owes something.
function ff.mark(ctx, is_again)
  return (is_again and '1' or '') .. (call('EXISTS', ctx.base .. ':owed') == 1 and 'o' or '')
end

-- Return what this partition owes, the oldest first, at most `limit`.
function ff.owed(ctx, limit)
  return call('ZRANGE', ctx.base .. ':owed', 0, limit - 1)
end

-- Waiting -----------------------------------------------------------------------------------------------------------

-- Return amounts that are at most the hard limits of a budget, so that what can never fit goes on after a reset.
local function capped(budget, amounts)
  local needed = {}
  for i, amount in ipairs(amounts) do
    local limit = budget.by_name[amount[1]]
    needed[i] = { amount[1], math.min(amount[2], limit and limit.hard or ff.MAX_COUNT) }
  end
  return needed
end

-- Note that an execution waits until a budget has space for amounts. `who` has its uuid, its partition if that is another
-- one, and its place among those that wait.
local function wait_for(ctx, budget, who, amounts)
  local share = ff.read_share(ctx, budget.address, who.uuid)
  share[3], share[4] = ff.pack_amounts(capped(budget, amounts)), who.partition
  ff.write_share(ctx, budget.address, who.uuid, share)
  call('ZADD', ctx.base .. ':blocked:' .. budget.address, who.score, who.uuid)
end

-- Return the record of an execution of this partition that waits for a budget; or nil if something else happened to it, such
-- as a resume by an operator.
local function waiting_record(ctx, uuid)
  local record = ff.found(ctx, uuid, ff.load)
  local words = record and record.words
  local waits = words and (words.eligibility == 'blocked_by_budget' or words.state == ff.suspended_state('paused_by_budget'))
  return waits and record or nil
end

local function resume(ctx, record)
  ff.resume(ctx, record, 'resumed', 'operator', 0, {})
end

-- Let an execution of this partition go on if it waits for a budget, and return whether it did.
function ff.go_on(ctx, uuid)
  local record = waiting_record(ctx, uuid)
  if not record then
    return false
  elseif record.words.phase == 'suspended' then
    ff.isolated(ctx, uuid, resume, record)
  else
    ff.move(ctx, record, ff.READY .. string.sub(record.words.state, 6), {})
  end
  return true
end

-- Return whether amounts fit into a budget beside further ones, which are then added to those.
local function fits(budget, amounts, further)
  for _, amount in ipairs(amounts) do
    local limit, counter = budget.by_name[amount[1]], budget.counted[amount[1]]
    local taken = (counter and counter.used + counter.reserved or 0) + (further[amount[1]] or 0)
    if taken + amount[2] > (limit and limit.hard or ff.MAX_COUNT) then
      return false
    end
  end
  for _, amount in ipairs(amounts) do
    further[amount[1]] = (further[amount[1]] or 0) + amount[2]
  end
  return true
end

-- Let an execution stop waiting for a budget.
local function end_wait(ctx, budget, uuid, share)
  share[3] = ''
  ff.write_share(ctx, budget.address, uuid, share)
  call('ZREM', ctx.base .. ':blocked:' .. budget.address, uuid)
end

-- Let the executions go on that wait for a budget, in their order, as many as fit. If there are too many for one call, the
-- due entry of the budget continues behind those that did not fit.
function ff.open_budget(ctx, budget, walked)
  local key, further = ctx.base .. ':blocked:' .. budget.address, {}
  local most = math.max(LEAST_LOOKED_AT, ff.allowed(ctx, MOST_LOOKED_AT, LOOK, 1))
  local uuids = call('ZRANGE', key, walked, walked + most - 1)
  for _, uuid in ipairs(uuids) do
    local share = ff.read_share(ctx, budget.address, uuid)
    if share[4] == '' and not waiting_record(ctx, uuid) then
      end_wait(ctx, budget, uuid, share)
    elseif not fits(budget, ff.amounts_of(share[3]), further) then
      walked = walked + 1
    else
      end_wait(ctx, budget, uuid, share)
      if share[4] == '' then
        ff.go_on(ctx, uuid)
      else
        ff.owe(ctx, 'go', budget.address, uuid, share[4])
      end
    end
  end
  ff.spend(ctx, LOOK * #uuids, 0)
  budget.walked = #uuids == most and ff.text(walked) or ''
end

-- Return whether an execution still waits for a budget: it does not if the budget got space before it had stopped.
function ff.still_waits(ctx, budget, uuid)
  return ff.read_share(ctx, budget.address, uuid)[3] ~= ''
end

-- Reservations ------------------------------------------------------------------------------------------------------

-- Return the open reservations of a share. What they reserve stays packed, since most calls need it of few of them.
local function reservations_of(share)
  local parts, list = ff.unpack(share[2]) or {}, {}
  for i = 1, #parts - 2, 3 do
    list[#list + 1] = { key = parts[i], until_ms = tonumber(parts[i + 1]), packed = parts[i + 2] }
  end
  return list
end

-- Store the open reservations of a share, and note when the first of them is over.
local function store_reservations(ctx, address, uuid, share, list)
  local parts, first = {}, nil
  for _, each in ipairs(list) do
    ff.append(parts, { each.key, ff.text(each.until_ms), each.packed })
    first = math.min(first or each.until_ms, each.until_ms)
  end
  share[2] = ff.pack(parts)
  ff.write_share(ctx, address, uuid, share)
  ff.due_at(ctx, 'due', 'h' .. ff.pack({ address, uuid }), first or false)
end

-- Free the reservations of a share for which `is_over` is true. Return those that are left, and how many were freed.
local function free(budget, share, is_over)
  local kept, freed = {}, 0
  for _, each in ipairs(reservations_of(share)) do
    if is_over(each) then
      ff.add_amounts(budget, ff.amounts_of(each.packed), 'reserved', -1)
      freed = freed + 1
    else
      kept[#kept + 1] = each
    end
  end
  return kept, freed
end

-- Handle the due entry of an execution's reservations at a budget: free those that are over.
function ff.expire_reservations(ctx, member)
  local parts = ff.unpack(member)
  local budget = ff.budget(ctx, parts[1])
  if not budget then
    return
  end
  local share = ff.read_share(ctx, parts[1], parts[2])
  local kept, freed = free(budget, share, function(each)
    return each.until_ms <= ctx.now
  end)
  store_reservations(ctx, parts[1], parts[2], share, kept)
  if freed > 0 then
    ff.change_budget(ctx, budget)
  end
end

-- End what a budget of this partition keeps for an execution that ended, or everything of one that is gone.
function ff.end_share(ctx, address, uuid, is_gone)
  local share = ff.read_share(ctx, address, uuid)
  local budget = (share[2] ~= '' or share[3] ~= '') and ff.budget(ctx, address)
  if budget then
    local _, freed = free(budget, share, function()
      return true
    end)
    end_wait(ctx, budget, uuid, share)
    store_reservations(ctx, address, uuid, share, {})
    if freed > 0 then
      ff.change_budget(ctx, budget)
    end
  end
  if is_gone then
    call('HDEL', ctx.base .. ':shares:' .. address, uuid)
  end
  ff.spend(ctx, 4, 0)
end

-- Uses by a holder --------------------------------------------------------------------------------------------------

-- Note that amounts do not fit, and return the answer, with what follows for the execution. It waits for the budget unless
-- it fails.
local function refuse(ctx, budget, use, name, current, hard)
  local answer = ff.note_breach(ctx, budget, name, current, hard)
  answer[5] = budget.on_hard
  if budget.on_hard ~= 'fail' then
    wait_for(ctx, budget, use.who, use.amounts)
  end
  ff.remember_report(ctx, budget.address, use.call_id, '', answer)
  ff.write_budget(ctx, budget)
  return answer
end

local uses = {}

-- Count amounts, or refuse them all.
function uses.report(ctx, budget, use)
  local name, current, hard = ff.breach_of(budget, use.amounts)
  if name then
    return refuse(ctx, budget, use, name, current, hard)
  end
  return (ff.spend_from(ctx, budget, use.call_id, use.key, use.amounts))
end

-- Return the key under which the settling of a reservation is remembered. No key of a caller has a NUL.
local function settled_key(use)
  return '\0' .. use.who.uuid .. use.key
end

-- Return the key under which the answer to a use is remembered beside its call id, or ''.
function ff.key_of_use(use)
  return use.what == 'report' and use.key or use.what == 'settle' and settled_key(use) or ''
end

-- Return the failure of a reservation that can never be made, or nil.
local function impossible(ctx, budget, use, open)
  if ff.reported(ctx, budget.address, use.call_id, settled_key(use)) then
    return ff.failure('reservation_settled', (ff.behind_first(budget.address)), use.key)
  elseif open >= MOST_RESERVED then
    return ff.failure('too_many_reservations', (ff.behind_first(budget.address)), MOST_RESERVED)
  end
  for _, amount in ipairs(use.amounts) do
    local limit = budget.by_name[amount[1]]
    if amount[2] > (limit and limit.hard or ff.MAX_COUNT) then
      return ff.failure(
        'reservation_never_fits', (ff.behind_first(budget.address)), amount[1], ff.text(amount[2]), ff.text(limit.hard)
      )
    end
  end
  return nil
end

-- Reserve amounts under a key, or refuse them all.
function uses.reserve(ctx, budget, use)
  local address, uuid = budget.address, use.who.uuid
  local share = ff.read_share(ctx, address, uuid)
  local list = free(budget, share, function(each)
    return each.until_ms <= ctx.now
  end)
  for _, each in ipairs(list) do
    if each.key == use.key then
      return { 'reserved', ff.text(each.until_ms), '1' }
    end
  end
  local failure = impossible(ctx, budget, use, #list)
  if failure then
    return failure
  end
  local name, current, hard = ff.breach_of(budget, use.amounts)
  if name then
    return refuse(ctx, budget, use, name, current, hard)
  end
  ff.add_amounts(budget, use.amounts, 'reserved', 1)
  list[#list + 1] = { key = use.key, until_ms = ctx.now + use.hold, packed = ff.pack_amounts(use.amounts) }
  share[4] = use.who.partition
  store_reservations(ctx, address, uuid, share, list)
  local answer = { 'reserved', ff.text(ctx.now + use.hold) }
  ff.remember_report(ctx, address, use.call_id, '', answer)
  ff.write_budget(ctx, budget)
  return answer
end

-- Return the first dimension of amounts that is above its hard limit, as the answer to a settlement; or nil.
local function excess_of(budget, amounts)
  for _, amount in ipairs(amounts) do
    local limit, used = budget.by_name[amount[1]], budget.counted[amount[1]].used
    if limit and limit.hard and used > limit.hard then
      return { 'hard_breach', amount[1], ff.text(used), ff.text(limit.hard) }
    end
  end
  return nil
end

-- Count amounts in place of what was reserved under a key, also if they are more, or come after the reservation was over.
function uses.settle(ctx, budget, use)
  local address, uuid = budget.address, use.who.uuid
  local share = ff.read_share(ctx, address, uuid)
  local was_open = false
  local list = free(budget, share, function(each)
    local is_over = each.until_ms <= ctx.now
    was_open = was_open or each.key == use.key and not is_over
    return is_over or each.key == use.key
  end)
  ff.add_amounts(budget, use.amounts, 'used', 1)
  local answer = excess_of(budget, use.amounts) or ff.standing_of(budget, use.amounts)
  answer[5] = was_open and '' or 'late'
  for i = 1, 4 do
    answer[i] = answer[i] or ''
  end
  store_reservations(ctx, address, uuid, share, list)
  ff.remember_report(ctx, address, use.call_id, settled_key(use), answer)
  ff.change_budget(ctx, budget)
  return answer
end

-- Return the use that begins at argument `at`: what is done ('report', 'reserve' or 'settle'), budget, call id, key or '',
-- amounts, for how long a reservation holds in ms or ''. `who` is as in wait_for.
function ff.use_of(args, at, who)
  return {
    what = args[at], address = args[at + 1], call_id = args[at + 2], key = args[at + 3],
    amounts = ff.amounts_of(args[at + 4]), hold = ff.number(args[at + 5]), who = who,
  }
end

-- Use a budget of this partition on behalf of a holder. Return the answer: its mark, see ff.mark; 'ok', 'reserved' and until when, 'soft_breach' or 'hard_breach' with dimension, counter and limit; then what follows for
-- the execution of a breach, or 'late' for what is settled without an open reservation. Or return the failure.
function ff.use_budget(ctx, use)
  local budget, failure = ff.budget(ctx, use.address)
  if not budget then
    return failure
  end
  local answer, is_again = ff.reported(ctx, use.address, use.call_id, ff.key_of_use(use))
  if not answer then
    failure = ff.uncountable(budget, use.amounts)
    answer = failure or uses[use.what](ctx, budget, use)
    if answer[1] == 'error' then
      return answer
    end
  end
  return ff.joined({ { ff.mark(ctx, is_again) }, answer })
end
