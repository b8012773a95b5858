-- The indexes of listings. Each is a sorted set in the order of ids.

-- The states that have an index. `rate_limited` follows from the gates and is not stored. Plain work is `waiting` and then `completed`; indexes of these two would cost each task
-- more than their listings are worth, see docs/decisions/0037-listings.md.
ff.LISTED = {
  'delayed', 'waiting_children', 'active', 'suspended', 'failed', 'cancelled', 'expired', 'skipped',
}

-- How many commands may be used to find an execution whose class is damaged, and how many the delays of a lane take.
local MOST_SEARCHED, COMMANDS_OF_DELAYS = 1000, 3

-- Return the index of the executions of a packed namespace in one state.
function ff.state_index(namespace, state)
  return 'of_state:' .. state .. ':' .. namespace
end

-- Return the indexes of a packed namespace by state.
function ff.state_indexes(namespace)
  local indexes = {}
  for _, state in ipairs(ff.LISTED) do
    indexes[state] = ff.state_index(namespace, state)
  end
  return indexes
end

-- Note that an execution joins or leaves an index of listings.
local function list_in(ctx, index, member, is_in)
  local entries = ctx.listed[index]
  if entries then
    entries[member] = is_in
  else
    ctx.listed[index] = { [member] = is_in }
  end
end

-- Note that an execution went from one public state to another; nil stands for a new or a removed one. `known` is its class.
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

-- Take an execution out of the indexes of lanes and states when it is set aside. Its class says which these are; if the
-- class is unknown, all are searched at the end of the call.
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

-- Take executions of unknown classes out of the indexes of all lanes and states, up to MOST_SEARCHED commands.
local function search_lost(ctx, lost)
  local left, last = MOST_SEARCHED, nil
  for _, listed in ipairs(call('ZRANGE', ctx.base .. ':lanes', 0, MOST_SEARCHED - 1)) do
    local name, namespace = ff.behind_first(listed)
    local lane = namespace .. ff.pack({ name })
    local indexes = { 'of_lane:' .. lane }
    -- The list is ordered by namespace, so each namespace's states are searched once.
    for _, state in ipairs(namespace ~= last and ff.LISTED or {}) do
      indexes[#indexes + 1] = ff.state_index(namespace, state)
    end
    for _, uuid in ipairs(lost) do
      ff.due_at(ctx, 'delays:' .. lane, 'x' .. uuid, false)
    end
    for _, index in ipairs(indexes) do
      ff.chunked('ZREM', ctx.base .. ':' .. index, lost)
    end
    left, last = left - #indexes - COMMANDS_OF_DELAYS, namespace
    if left <= 0 then
      break
    end
  end
end

-- Update the indexes of listings.
function ff.flush_listings(ctx)
  for index, entries in ff.each_noted(ctx, 'listed') do
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
  local lost = ff.take_noted(ctx, 'lost')
  if lost then
    search_lost(ctx, lost)
  end
end
