#!lua name=ff_bare
-- The bare commands of creating, claiming and completing executions: what any functions over this layout would cost.

local function key_of(base, i)
  return base .. ':x:01a220a6-f2c8-7000-8000-' .. string.format('%012d', i)
end

-- bare_create: Arguments: first number, how many.
redis.register_function('bare_create', function(keys, args)
  local base, first, count = keys[1], tonumber(args[1]), tonumber(args[2])
  local ready, ids = {}, {}
  for i = first, first + count - 1 do
    local key = key_of(base, i)
    redis.call('EXISTS', key)
    redis.call('HSET', key, 's', 'ready', 'c', '7:default7:default4:noop0:0:0:', 'p', '0', 'o', '1764312000000', 'd', '=[1]', 'e', 'json')
    ready[#ready + 1], ready[#ready + 2] = 1764312000000, key
    ids[#ids + 1], ids[#ids + 2] = 0, key
  end
  redis.call('ZADD', base .. ':ready', unpack(ready))
  redis.call('ZADD', base .. ':ids', unpack(ids))
  redis.call('ZADD', base .. ':of_lane', unpack(ids))
  redis.call('HINCRBY', base .. ':lane', 'waiting', count)
  return count
end)

-- bare_claim: Arguments: first number, how many.
redis.register_function('bare_claim', function(keys, args)
  local base, count = keys[1], tonumber(args[2])
  local heads = redis.call('ZRANGE', base .. ':ready', 0, count - 1, 'WITHSCORES')
  local due, gone, items, active = {}, {}, {}, {}
  for i = 1, #heads, 2 do
    local key = heads[i]
    items[#items + 1] = redis.call('HMGET', key, 's', 'c', 'p', 'o', 'l', 'y', 'd', 'e', 't')
    redis.call('HSET', key, 's', 'running', 'l', '4b6f0b3e-7b7e-4bb5-8d3f-d1e2d1f7a6b1:1:1764312000000', 't', '1764312000000', 'h', '2:w12:w1')
    due[#due + 1], due[#due + 2] = 1764312000000, key
    gone[#gone + 1] = key
    active[#active + 1], active[#active + 2] = 0, key
  end
  redis.call('ZREM', base .. ':ready', unpack(gone))
  redis.call('ZADD', base .. ':due', unpack(due))
  redis.call('ZADD', base .. ':active', unpack(active))
  redis.call('HINCRBY', base .. ':lane', 'waiting', -count)
  redis.call('HINCRBY', base .. ':lane', 'active', count)
  return items
end)

-- bare_complete: Arguments: first number, how many.
redis.register_function('bare_complete', function(keys, args)
  local base, first, count = keys[1], tonumber(args[1]), tonumber(args[2])
  local due, kept, answers = {}, {}, {}
  for i = first, first + count - 1 do
    local key = key_of(base, i)
    redis.call('HMGET', key, 's', 'c', 'l', 't', 'w')
    redis.call('HSET', key, 's', 'completed', 'r', '=1', 'e', '1764312000000')
    redis.call('XADD', base .. ':feed', '*', 'x', key, 'o', 'success', 'c', '7:default7:default4:noop0:0:0:')
    due[#due + 1] = key
    kept[#kept + 1], kept[#kept + 2] = 1764312000000, key
    answers[#answers + 1] = 'completed'
  end
  redis.call('ZREM', base .. ':due', unpack(due))
  redis.call('ZREM', base .. ':active', unpack(due))
  redis.call('ZADD', base .. ':retention', unpack(kept))
  redis.call('HINCRBY', base .. ':lane', 'active', -count)
  redis.call('HINCRBY', base .. ':lane', 'completed', count)
  return answers
end)
