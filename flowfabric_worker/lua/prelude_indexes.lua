-- What every stored function shares: the classes that hold work, and the indexes that follow the records.

-- Classes -----------------------------------------------------------------------------------------------------------

-- Puts a class into the registry, and its lane into the list of lanes; answers false if the lane is full. Work that
-- exists already must have its class: for it there is no limit.
function ff.register_class(ctx, class, limit)
  if ctx.registered[class] or call('ZSCORE', ctx.base .. ':classes', class) then
    ctx.registered[class] = true
    return true
  end
  local known, classes = ff.class(class), ctx.base .. ':classes'
  -- Digits sort before ':', so the range is the lane's own classes.
  if limit and call('ZLEXCOUNT', classes, '[' .. known.lane, '(' .. known.lane .. ':') >= limit then
    return false
  end
  call('ZADD', classes, 0, class)
  ff.register_lane(ctx, known.lane, known.namespace .. known.lane_name)
  ctx.registered[class] = true
  ff.revise(ctx, known.lane)
  ff.due_at(ctx, 'retention', 'c' .. class, ctx.now + ff.HOUR)
  ctx.new_in[known.lane] = true
  return true
end

-- Puts a lane into the list of lanes: `lane` is its packed name, `listed` how the list has it.
function ff.register_lane(ctx, lane, listed)
  if call('ZADD', ctx.base .. ':lanes', 0, listed) == 1 then
    ff.due_at(ctx, 'retention', 'l' .. lane, ctx.now + ff.DAY)
  end
end

-- Forgets a lane that holds nothing, is not paused and has no classes; each is looked at once a day.
function ff.forget_lane(ctx, lane)
  local key = ctx.base .. ':lane:' .. lane
  local depths = call('HMGET', key, 'paused', unpack(ff.PUBLIC_STATES)) -- bounded: a fixed list of names
  local is_used = depths[1] ~= false or #ff.classes_of(ctx, lane, '') > 0
  for i = 2, #ff.PUBLIC_STATES + 1 do
    is_used = is_used or (ff.number(depths[i]) or 0) ~= 0
  end
  if is_used then
    ff.due_at(ctx, 'retention', 'l' .. lane, ctx.now + ff.DAY)
    return
  end
  local parts = ff.unpack(lane)
  call('DEL', key, ctx.base .. ':of_lane:' .. lane)
  call('ZREM', ctx.base .. ':lanes', ff.pack({ parts[1] }) .. parts[2])
end

-- Gives a lane's list of classes a new revision. It never repeats, also not after a restored snapshot.
function ff.revise(ctx, lane)
  local key = ctx.base .. ':lane:' .. lane
  local old = ff.number(call('HGET', key, 'revision')) or 0
  call('HSET', key, 'revision', ff.text(math.max(old + 1, ctx.now)))
end

-- A page of the classes of a lane that hold work, after one of them or ''. A lane may have more than its limit, since work
-- that exists is never refused.
function ff.classes_of(ctx, lane, after)
  local first, last = after ~= '' and '(' .. after or '[' .. lane, '(' .. lane .. ':'
  return call('ZRANGE', ctx.base .. ':classes', first, last, 'BYLEX', 'LIMIT', 0, ff.MAX_CLASSES_PER_LANE)
end

-- Takes a class from the registry.
function ff.forget_class(ctx, class)
  call('ZREM', ctx.base .. ':classes', class)
  call('HDEL', ctx.base .. ':held', class)
  ff.revise(ctx, ff.class(class).lane)
end

-- Bringing the indexes after ----------------------------------------------------------------------------------------

function ff.flush_ready(ctx)
  for class, entries in pairs(ctx.ready) do
    local added, removed, count = {}, {}, 0
    for uuid, score in pairs(entries) do
      if score then
        added[#added + 1] = score
        added[#added + 1] = uuid
        count = count + 1
      else
        removed[#removed + 1] = uuid
      end
    end
    if count > 0 then
      ff.register_class(ctx, class)
      ff.chunked('ZADD', ctx.base .. ':ready:' .. class, added)
      ff.note_wake(ctx, class, count)
    end
    ff.chunked('ZREM', ctx.base .. ':ready:' .. class, removed)
  end
  ctx.ready = {}
end

-- Adds to a counter and answers its new value. A damaged counter begins again: it must stop nothing.
function ff.add(key, field, change)
  local good, value = pcall(call, 'HINCRBY', key, field, change)
  if not good then
    value = math.max(change, 0)
    call('HSET', key, field, value)
  end
  return value
end

local function flush_counts(ctx)
  for lane, counts in pairs(ctx.counts) do
    for state, change in pairs(counts) do
      if change ~= 0 then
        ff.add(ctx.base .. ':lane:' .. lane, state, change)
      end
    end
  end
  ctx.counts = {}
  for class, change in pairs(ctx.held) do
    if change ~= 0 then
      ff.add(ctx.base .. ':held', class, change)
    end
  end
  ctx.held = {}
end

-- Removes the records that this call gave up.
local function flush_gone(ctx)
  for first = 1, #ctx.gone, 1000 do
    call('DEL', unpack(ctx.gone, first, math.min(first + 999, #ctx.gone))) -- bounded: 1000 at a time
  end
  ctx.gone = {}
end

function ff.flush(ctx)
  ff.keep_pace(ctx)
  flush_gone(ctx)
  ff.flush_listings(ctx)
  ff.flush_ready(ctx)
  flush_counts(ctx)
  ff.flush_wakes(ctx, ff.flush_due(ctx))
end
