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

-- How many classes, and how many lanes, are looked at for a key of another type, and how many keys in one search.
local MOST_CLASSES, MOST_LANES, MOST_KEYS = 100, 50, 250

-- How many keys the present search may still look at.
local keys_left

-- Return the text that tells of a key if it holds another type than `wanted`, or nil.
local function told(key, wanted)
  if keys_left == 0 then
    return nil
  end
  keys_left = keys_left - 1
  local found = call('TYPE', key)
  found = type(found) == 'table' and found.ok or found
  return found ~= wanted and found ~= 'none' and 'MISTYPED ' .. found .. ' ' .. wanted .. ' ' .. key or nil
end

-- Return whether the record of an execution is stored as another type of value.
function ff.mistyped_record(ctx, uuid)
  keys_left = 1
  return told(ff.record_key(ctx, uuid), 'hash') ~= nil
end

-- Return what tells of the first mistyped key of some lanes, or nil.
local function told_of_lanes(base, lanes)
  local last
  for _, lane in ipairs(lanes) do
    local name, namespace = ff.behind_first(lane)
    local packed = namespace .. ff.pack({ name })
    local problem = told(base .. ':lane:' .. packed, 'hash') or told(base .. ':of_lane:' .. packed, 'zset')
      or told(base .. ':delays:' .. packed, 'zset')
    for _, state in ipairs(namespace ~= last and ff.LISTED or {}) do
      problem = problem or told(base .. ':' .. ff.state_index(namespace, state), 'zset')
    end
    if problem then
      return problem
    end
    last = namespace
  end
  return nil
end

-- Return what tells of the first key of a partition that holds another type of value than it must, or nil. The keys of one
-- execution, flow, budget or quota are not looked at.
function ff.mistyped(base)
  keys_left = MOST_KEYS
  for wanted, names in pairs(ff.SINGLE_KEYS) do
    for _, name in ipairs(names) do
      local problem = told(base .. name, wanted)
      if problem then
        return problem
      end
    end
  end
  for _, class in ipairs(call('ZRANGE', base .. ':classes', 0, MOST_CLASSES - 1)) do
    local problem = told(base .. ':ready:' .. class, 'zset')
    if problem then
      return problem
    end
  end
  local readable, problem = pcall(told_of_lanes, base, call('ZRANGE', base .. ':lanes', 0, MOST_LANES - 1))
  return readable and problem or nil
end

-- Scores ------------------------------------------------------------------------------------------------------------

-- The indexes that are read in the order of their members beside that of the classes. A server keeps that order only where
-- all scores are the same, which is 0.
local IN_ORDER = {
  ':gated', ':lane_sets', ':ids', ':damaged', ':lanes', ':workers', ':tasks', ':schedules', ':suspended', ':budgets', ':quotas',
  ':flows', ':building', ':following',
}

-- How many scores one call repairs at each end of an index.
local MOST_RESCORED = 50

-- Set scores of an index back to 0.
local function rescore(key)
  for _, range in ipairs({ { '-inf', '(0' }, { '(0', '+inf' } }) do
    local members = call('ZRANGE', key, range[1], range[2], 'BYSCORE', 'LIMIT', 0, MOST_RESCORED)
    local entries = {}
    for _, member in ipairs(members) do
      entries[#entries + 1], entries[#entries + 2] = 0, member
    end
    ff.chunked('ZADD', key, entries)
  end
end

-- Repair the scores of the index of classes, without which no work is found, and those of another index in turn.
function ff.repair_scores(ctx)
  local turn = math.floor(ctx.now / 1000) % #IN_ORDER
  ff.readable(rescore, ctx.base .. ':classes')
  ff.readable(rescore, ctx.base .. IN_ORDER[turn + 1])
end
