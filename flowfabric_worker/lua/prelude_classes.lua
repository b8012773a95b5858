-- The claim classes: what a class says, and the registry of the classes that hold work.

-- There are few classes, so each is parsed once. The cache is emptied before it grows large.
ff.known_classes = {}
ff.known_class_count = 0

-- Return the parts of a class: its packed lane, its packed namespace, the lane's name, the task, the index of the lane's
-- delays, and its gates; nil if the class is damaged.
function ff.class(class)
  local known = ff.known_classes[class]
  if not known then
    local parts = ff.unpack(class)
    if not parts or #parts < 6 then
      return nil
    end
    local lane = ff.pack({ parts[1], parts[2] })
    known = {
      lane = lane, namespace = ff.pack({ parts[1] }), lane_name = parts[2], task = parts[3], delays = 'delays:' .. lane,
      of_lane = 'of_lane:' .. lane,
    }
    known.of_states = ff.state_indexes(known.namespace)
    known.gates, known.held = ff.gates_in(parts)
    known.is_gated = known.gates ~= nil or known.held ~= nil
    if ff.known_class_count >= 4096 then
      ff.known_classes, ff.known_class_count = {}, 0
    end
    ff.known_classes[class] = known
    ff.known_class_count = ff.known_class_count + 1
  end
  return known
end

-- Add a class to the registry and its lane to the list of lanes. With a limit, return false if the lane has that many
-- classes; without one, for work that exists already, the class is always added.
function ff.register_class(ctx, class, limit)
  if ctx.registered[class] or call('ZSCORE', ctx.base .. ':classes', class) then
    ctx.registered[class] = true
    return true
  end
  local known, classes = ff.class(class), ctx.base .. ':classes'
  -- Digits sort before ':', so this range holds exactly the lane's own classes.
  if limit and call('ZLEXCOUNT', classes, '[' .. known.lane, '(' .. known.lane .. ':') >= limit then
    return false
  end
  -- The commands below, and those that update the indexes of one more class when the call ends.
  ff.spend(ctx, 8, 0)
  call('ZADD', classes, 0, class)
  ff.list_gates(ctx, class, true)
  ff.register_lane(ctx, known.lane, known.namespace .. known.lane_name)
  ctx.registered[class] = true
  ff.revise(ctx, known.lane)
  ff.due_at(ctx, 'retention', 'c' .. class, ctx.now + ff.HOUR)
  ctx.new_in[known.lane] = true
  return true
end

-- Return whether a class is registered, or its lane may have one more.
function ff.has_place_for_class(ctx, class)
  local classes, lane = ctx.base .. ':classes', ff.class(class).lane
  if call('ZSCORE', classes, class) then
    return true
  end
  -- So that a call takes fewer executions if each of them brings a class.
  ff.spend(ctx, 8, 0)
  return call('ZLEXCOUNT', classes, '[' .. lane, '(' .. lane .. ':') < ff.MAX_CLASSES_PER_LANE
end

-- Add a lane to the list of lanes. `lane` is pack{namespace, lane}; `listed` is pack{namespace} followed by the name.
function ff.register_lane(ctx, lane, listed)
  if call('ZADD', ctx.base .. ':lanes', 0, listed) == 1 then
    ff.due_at(ctx, 'retention', 'l' .. lane, ctx.now + ff.DAY)
  end
end

-- Remove a lane that holds nothing, is not paused, has no classes, and whose last turn all partitions have followed. Each
-- lane is checked once a day.
function ff.forget_lane(ctx, lane)
  local key = ctx.base .. ':lane:' .. lane
  local depths = call('HMGET', key, 'paused', unpack(ff.PUBLIC_STATES)) -- bounded: a fixed list of names
  local is_used = depths[1] ~= false or #ff.classes_of(ctx, lane, '', 1) > 0
    or call('ZSCORE', ctx.base .. ':following', lane) ~= false
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

-- Give a lane's classes a new revision, which never repeats, even after a snapshot was restored.
function ff.revise(ctx, lane)
  local key = ctx.base .. ':lane:' .. lane
  local old = ff.number(call('HGET', key, 'revision')) or 0
  call('HSET', key, 'revision', ff.text(math.max(old + 1, ctx.now)))
end

-- Return a page of the classes of a lane that hold work, after one of them or ''. A lane may have more classes than its
-- limit, because work that exists is never refused.
function ff.classes_of(ctx, lane, after, limit)
  local first, last = after ~= '' and '(' .. after or '[' .. lane, '(' .. lane .. ':'
  return call('ZRANGE', ctx.base .. ':classes', first, last, 'BYLEX', 'LIMIT', 0, limit)
end

-- Remove a class from the registry.
function ff.forget_class(ctx, class)
  call('ZREM', ctx.base .. ':classes', class)
  call('HDEL', ctx.base .. ':held', class)
  ff.list_gates(ctx, class, false)
  ff.revise(ctx, ff.class(class).lane)
  ff.spend(ctx, 7, 0)
end
