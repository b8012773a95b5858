-- How ready work is found in the lanes that a call asks for.

-- How many entries that cannot be handed out one call passes over. The next call continues behind them.
local MOST_PASSED = 256

-- How many entries of a class are read at least, once some could not be handed out.
local LEAST_PAGE = 16

-- Return the lanes that a call asks for, from argument `at` on. Each lane is: pack{namespace, lane}, limit, revision of the
-- classes that the caller knows or '' for any, number of classes, the classes.
function ff.lanes_of(args, at)
  local lanes = {}
  while at <= #args do
    local lane = { name = args[at], limit = tonumber(args[at + 1]), revision = args[at + 2], classes = {} }
    local count = tonumber(args[at + 3])
    for i = 1, count do
      lane.classes[i] = args[at + 3 + i]
    end
    lanes[#lanes + 1] = lane
    at = at + 4 + count
  end
  return lanes
end

-- Read whether a lane is paused, and whether its classes are other than those that the caller knows.
function ff.look_at_lane(ctx, lane)
  local stored = call('HMGET', ctx.base .. ':lane:' .. lane.name, 'paused', 'revision')
  lane.paused = stored[1] ~= false
  lane.stale = lane.revision ~= '' and lane.revision ~= (stored[2] or '0')
end

-- Return the heads of several classes of a lane in their common order, { score, uuid, class } each, and whether there are
-- more. Each class gives a page; behind the end of a full page the order is unknown, so the list ends there.
local function heads(ctx, classes, wanted)
  local page = ctx.passed > 0 and math.max(LEAST_PAGE, wanted) or wanted
  page = math.min(page, math.max(2, math.floor(512 / math.max(1, #classes))))
  local found, more = {}, false
  for _, class in ipairs(classes) do
    local first = ctx.skipped[class] or 0
    local entries = call('ZRANGE', ctx.base .. ':ready:' .. class, first, first + page - 1, 'WITHSCORES')
    local is_full = #entries == page * 2
    more = more or is_full
    for i = 1, #entries, 2 do
      found[#found + 1] = { tonumber(entries[i + 1]), entries[i], class, is_full and i == page * 2 - 1 }
    end
  end
  if #classes > 1 then
    table.sort(found, function(a, b)
      if a[1] ~= b[1] then
        return a[1] < b[1]
      end
      return a[2] < b[2]
    end)
    for i = 1, #found do
      if found[i][4] then
        for j = #found, i + 1, -1 do
          found[j] = nil
        end
        break
      end
    end
  end
  return found, more
end

-- Pass over an entry of a newer release: it stays in the index and does not hide what is behind it.
function ff.skip(ctx, class)
  ctx.skipped[class] = (ctx.skipped[class] or 0) + 1
end

-- Give up to `wanted` ready records to `use` until it returns false. `find` returns the record of a head, or nil if it
-- cannot be handed out. Read further heads while there is progress, within a budget that the lanes of a call share.
function ff.each_ready(ctx, classes, wanted, find, use)
  local more = true
  while more and wanted > 0 do
    local list
    list, more = heads(ctx, classes, wanted)
    for _, head in ipairs(list) do
      local record = find(ctx, head)
      if not record then
        more = true
        ctx.passed = ctx.passed + 1
        if ctx.passed >= MOST_PASSED then
          return
        end
      elseif not use(record) then
        return
      else
        wanted = wanted - 1
        if wanted == 0 then
          return
        end
      end
    end
    more = more and #list > 0
    ff.flush_ready(ctx)
  end
end

-- Return whether a call passed over as many entries as it may.
function ff.has_passed_enough(ctx)
  return ctx.passed >= MOST_PASSED
end

-- Return the classes of some lanes that still hold work which may be handed out.
function ff.classes_left(ctx, lanes)
  local left = {}
  for _, lane in ipairs(lanes) do
    if not lane.paused then
      for _, class in ipairs(lane.classes) do
        if call('ZCARD', ctx.base .. ':ready:' .. class) > (ctx.skipped[class] or 0) then
          left[#left + 1] = class
        end
      end
    end
  end
  return left
end

-- Wake one waiter for each class that still holds work after this call.
function ff.wake_next(ctx, lanes)
  if call('EXISTS', ctx.base .. ':waiters') == 1 then
    for _, class in ipairs(ff.classes_left(ctx, lanes)) do
      ff.note_wake(ctx, class, 1)
    end
  end
end
