-- The indexes of what time will change.
--
-- ':due' has leases, time-outs, deadlines and reservations, which are handled first. Each lane has its own index of delays,
-- so the many delays of one lane do not hold up another. ':retention' has what is kept for a time: ended executions,
-- waiters, remembered claims, empty classes, registrations and the feed. Removal has its own budget, so it delays nothing.

-- Note that `member` is due at a moment in one of the due indexes, or leaves that index if the moment is false.
function ff.due_at(ctx, index, member, moment)
  local entries = ctx.due[index]
  if entries then
    entries[member] = moment
  else
    ctx.due[index] = { [member] = moment }
  end
end

-- Return the lane of an index of delays, or nil for another index.
function ff.lane_of_delays(index)
  return string.match(index, '^delays:(.*)$')
end

-- Return the first moment in an index, or nil.
function ff.first_moment(ctx, index)
  return ff.number(call('ZRANGE', ctx.base .. index, 0, 0, 'WITHSCORES')[2])
end

-- Return the next moment at which a worker has to call, or nil. Removals are handled in passing and do not count.
function ff.next_due(ctx)
  local due, delayed = ff.first_moment(ctx, ':due'), ff.first_moment(ctx, ':delayed')
  return due and delayed and math.min(due, delayed) or due or delayed
end

-- Return the next moment at which something is due, removals included, or nil.
function ff.next_due_or_removal(ctx)
  local due, removal = ff.next_due(ctx), ff.first_moment(ctx, ':retention')
  return due and removal and math.min(due, removal) or due or removal
end

-- Split the notes of one index: { moment, member, ... } to add, { member, ... } to remove, and the first moment added.
function ff.split(entries)
  local added, removed, first, size = {}, {}, math.huge, 0
  for member, moment in pairs(entries) do
    if moment then
      added[size + 1], added[size + 2] = moment, member
      size = size + 2
      first = moment < first and moment or first
    else
      removed[#removed + 1] = member
    end
  end
  return added, removed, first
end

-- Set the moment at which a lane's delays are due: that of its first delay, but not before now, so that lanes take turns. A
-- lane without delays leaves the index.
function ff.settle_lane(ctx, lane)
  local head = ff.first_moment(ctx, ':delays:' .. lane)
  if head then
    call('ZADD', ctx.base .. ':delayed', math.max(head, ctx.now), lane)
  else
    call('ZREM', ctx.base .. ':delayed', lane)
  end
end

-- Update the due indexes. Return whether something is due sooner than the waiting workers expect.
function ff.flush_due(ctx)
  local noted = ff.take_noted(ctx, 'due')
  if not noted then
    return false
  end
  ctx.removals = 0
  local before = nil
  local sooner = false
  for index, entries in pairs(noted) do
    local added, removed, first = ff.split(entries)
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
