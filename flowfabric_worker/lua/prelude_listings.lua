-- What every stored function shares: the indexes of listings. Each is a sorted set in the order of ids.

-- The states that have an index. Plain work waits, and is kept after it has completed: an index of these two would cost
-- every task more than the listings of them are worth, see docs/decisions/0037-listings.md.
ff.LISTED = {
  'delayed', 'rate_limited', 'waiting_children', 'active', 'suspended', 'failed', 'cancelled', 'expired', 'skipped',
}

-- How many commands are sent to find an execution whose class is damaged, and how many of them the delays of a lane cost.
local MOST_SEARCHED, COMMANDS_OF_DELAYS = 1000, 3

-- The index of a namespace's executions in one state; the namespace is packed.
function ff.state_index(namespace, state)
  return 'of_state:' .. state .. ':' .. namespace
end

-- The indexes of a namespace's states, by the states that have one.
function ff.state_indexes(namespace)
  local indexes = {}
  for _, state in ipairs(ff.LISTED) do
    indexes[state] = ff.state_index(namespace, state)
  end
  return indexes
end

-- Notes that an execution joins an index of listings, or leaves it.
local function list_in(ctx, index, member, is_in)
  local entries = ctx.listed[index]
  if not entries then
    entries = {}
    ctx.listed[index] = entries
  end
  entries[member] = is_in
end

-- Notes that an execution went from one public state to another; nil of one that is new or gone. `known` is its class.
function ff.list(ctx, known, uuid, old, new)
  local left, joined = old and known.of_states[old], new and known.of_states[new]
  if left then
    list_in(ctx, left, uuid, false)
  end
  if joined then
    list_in(ctx, joined, uuid, true)
  end
  if not old or not new then
    list_in(ctx, 'ids', known.namespace .. uuid, new ~= nil)
    list_in(ctx, known.of_lane, uuid, new ~= nil)
  end
end

-- Takes an execution out of the indexes of lanes and states when it is set aside. What is known of its class says which
-- these are; without that, all are searched when the call ends.
function ff.unlist(ctx, uuid, known)
  if known then
    list_in(ctx, known.of_lane, uuid, false)
    for _, index in pairs(known.of_states) do
      list_in(ctx, index, uuid, false)
    end
  elseif not ff.is_set_aside(ctx, uuid) then
    ctx.lost[#ctx.lost + 1] = uuid
  end
end

-- Takes executions of unknown classes out of the indexes of every lane and state, as far as the bound allows.
local function search_lost(ctx)
  local left, last = MOST_SEARCHED, nil
  for _, listed in ipairs(call('ZRANGE', ctx.base .. ':lanes', 0, MOST_SEARCHED - 1)) do
    local name, namespace = ff.behind_first(listed)
    local lane = namespace .. ff.pack({ name })
    local indexes = { 'of_lane:' .. lane }
    -- The lanes of a namespace stand together.
    for _, state in ipairs(namespace ~= last and ff.LISTED or {}) do
      indexes[#indexes + 1] = ff.state_index(namespace, state)
    end
    for _, uuid in ipairs(ctx.lost) do
      ff.due_at(ctx, 'delays:' .. lane, 'x' .. uuid, false)
    end
    for _, index in ipairs(indexes) do
      ff.chunked('ZREM', ctx.base .. ':' .. index, ctx.lost)
    end
    left, last = left - #indexes - COMMANDS_OF_DELAYS, namespace
    if left <= 0 then
      break
    end
  end
  ctx.lost = {}
end

-- Brings the indexes of listings after.
function ff.flush_listings(ctx)
  for index, entries in pairs(ctx.listed) do
    local added, removed, size = {}, {}, 0
    for member, is_in in pairs(entries) do
      if is_in then
        added[size + 1], added[size + 2] = 0, member
        size = size + 2
      else
        removed[#removed + 1] = member
      end
    end
    ff.chunked('ZADD', ctx.base .. ':' .. index, added)
    ff.chunked('ZREM', ctx.base .. ':' .. index, removed)
  end
  ctx.listed = {}
  if #ctx.lost > 0 then
    search_lost(ctx)
  end
end
