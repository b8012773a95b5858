-- The types of a partition's keys, and how a key that holds another type is told.
--
-- A key that many executions share is no damage of the execution whose call meets it: the call fails as a whole, nothing is
-- set aside, and the error names the key.

-- The keys that a partition has once each. All other keys are found through their members.
ff.SINGLE_KEYS = {
  zset = {
    ':ids', ':damaged', ':classes', ':lanes', ':following', ':due', ':delayed', ':retention', ':waiting', ':lane_sets',
    ':idle:feed', ':workers', ':tasks', ':schedules', ':leaders', ':suspended', ':budgets', ':owed', ':gated', ':quotas',
    ':flows', ':building',
  },
  hash = {
    ':meta', ':damage', ':waiters', ':sets', ':woken', ':held', ':claims', ':worker', ':task', ':schedule', ':leader',
    ':secrets', ':budget', ':jobs',
  },
  stream = { ':feed' },
}

-- How many lanes, and how many classes, are looked at for a key of another type.
local MOST_LOOKED_AT = 100

-- Return the text that tells of a key if it holds another type than `wanted`, or nil.
local function told(key, wanted)
  local found = call('TYPE', key)
  found = type(found) == 'table' and found.ok or found
  return found ~= wanted and found ~= 'none' and 'MISTYPED ' .. found .. ' ' .. wanted .. ' ' .. key or nil
end

-- Return whether the record of an execution is stored as another type of value.
function ff.mistyped_record(ctx, uuid)
  return told(ff.record_key(ctx, uuid), 'hash') ~= nil
end

-- Return what tells of the first mistyped key of some lanes, or nil.
local function told_of_lanes(base, lanes)
  for _, lane in ipairs(lanes) do
    local name, namespace = ff.behind_first(lane)
    local packed = namespace .. ff.pack({ name })
    local problem = told(base .. ':lane:' .. packed, 'hash') or told(base .. ':of_lane:' .. packed, 'zset')
      or told(base .. ':delays:' .. packed, 'zset')
    for _, state in ipairs(ff.LISTED) do
      problem = problem or told(base .. ':' .. ff.state_index(namespace, state), 'zset')
    end
    if problem then
      return problem
    end
  end
  return nil
end

-- Return what tells of the first key of a partition that holds another type of value than it must, or nil. The keys of one
-- execution, flow, budget or quota are not looked at.
function ff.mistyped(base)
  for wanted, names in pairs(ff.SINGLE_KEYS) do
    for _, name in ipairs(names) do
      local problem = told(base .. name, wanted)
      if problem then
        return problem
      end
    end
  end
  for _, class in ipairs(call('ZRANGE', base .. ':classes', 0, MOST_LOOKED_AT - 1)) do
    local problem = told(base .. ':ready:' .. class, 'zset')
    if problem then
      return problem
    end
  end
  local readable, problem = pcall(told_of_lanes, base, call('ZRANGE', base .. ':lanes', 0, MOST_LOOKED_AT - 1))
  return readable and problem or nil
end
