-- Second part of what every stored function shares: when something is due.
--
-- Three kinds of index hold one entry for each thing that time will change. ':due' comes first: leases, time-outs,
-- deadlines and reservations. Delays stand in one index per lane, so that many delays of a lane hold up no other lane.
-- ':retention' holds what is kept for a time: ended executions, and entries that are no executions
-- (a waiter, a remembered claim, an idle class, a worker's registration, the feed). Removal has a budget to itself, so
-- it delays nothing.

-- Notes when something is due: `member` at a moment in one of the due indexes, or false when it leaves that index.
function ff.due_at(ctx, index, member, moment)
  local entries = ctx.due[index]
  if not entries then
    entries = {}
    ctx.due[index] = entries
  end
  entries[member] = moment
end

-- The lane of an index of delays, or nil for another index.
function ff.lane_of_delays(index)
  return string.match(index, '^delays:(.*)$')
end

-- The first moment that an index holds, or nil.
function ff.first_moment(ctx, index)
  return ff.number(call('ZRANGE', ctx.base .. index, 0, 0, 'WITHSCORES')[2])
end

-- The next moment at which somebody has to come, or nil. What is kept for a time is removed in passing.
function ff.next_due(ctx)
  local due, delayed = ff.first_moment(ctx, ':due'), ff.first_moment(ctx, ':delayed')
  return due and delayed and math.min(due, delayed) or due or delayed
end

-- The same, with removals.
function ff.next_due_or_removal(ctx)
  local due, removal = ff.next_due(ctx), ff.first_moment(ctx, ':retention')
  return due and removal and math.min(due, removal) or due or removal
end

-- Splits the notes of one index: { moment, member, ... }, { member, ... }, and the first moment among them.
local function split(entries)
  local added, removed, first = {}, {}, math.huge
  for member, moment in pairs(entries) do
    if moment then
      added[#added + 1] = moment
      added[#added + 1] = member
      first = math.min(first, moment)
    else
      removed[#removed + 1] = member
    end
  end
  return added, removed, first
end

-- Sets the moment at which a lane's delays are due: that of its first, or now if some were just handled and some are
-- left, so that the lanes take turns. A lane without delays leaves the index.
function ff.settle_lane(ctx, lane)
  local head = ff.first_moment(ctx, ':delays:' .. lane)
  if head then
    call('ZADD', ctx.base .. ':delayed', math.max(head, ctx.now), lane)
  else
    call('ZREM', ctx.base .. ':delayed', lane)
  end
end

-- Brings the due indexes after. Answers whether something is due sooner than the waiting workers expect.
function ff.flush_due(ctx)
  local noted = ctx.due
  if not next(noted) then
    return false
  end
  ctx.due, ctx.removals = {}, 0
  local before = nil
  local sooner = false
  for index, entries in pairs(noted) do
    local added, removed, first = split(entries)
    if index ~= 'retention' and first <= ctx.now + ff.FALLBACK and not sooner then
      before = before or ff.next_due(ctx) or math.huge
      sooner = first < before
    end
    ff.chunked('ZADD', ctx.base .. ':' .. index, added)
    ff.chunked('ZREM', ctx.base .. ':' .. index, removed)
    local lane = ff.lane_of_delays(index)
    if lane and #added > 0 then
      call('ZADD', ctx.base .. ':delayed', 'LT', first, lane)
    elseif lane and call('EXISTS', ctx.base .. ':' .. index) == 0 then
      call('ZREM', ctx.base .. ':delayed', lane)
    end
  end
  return sooner
end
