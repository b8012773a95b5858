-- Edges and groups. A group is all edges that lead to one member, with the policy that says when they let it run.
--
-- An edge is unresolved exactly while its upstream execution has not ended. A group counts its resolved edges; a counter
-- changes only when the result of an edge does, so what is repeated counts nothing. A result other than success belongs to
-- the life of the group in which it came: a group that is opened again begins a life, and counts such edges no more.

-- The counter of each result.
local COUNTERS = { s = 'ok', f = 'bad', k = 'skip' }

-- How many parts a stored edge and a stored group have.
local EDGE_PARTS, GROUP_PARTS = 9, 11

-- Return the parts of a text behind the first `count`, which a newer release added, or nil if there are none.
local function behind(parts, count)
  return #parts > count and { unpack(parts, count + 1) } or nil -- bounded: the parts of one text
end

-- Read a stored edge: both ends, the argument that receives the result or '', kind, when it was staged, its place in the order
-- of staging, '1' if it was applied, its result ('s' success, 'f' failure, 'k' skipped, or ''), and the group's life at the
-- time of the result. A damaged text raises an error.
local function read_edge(text)
  local parts = ff.unpack(text)
  if #parts < EDGE_PARTS then
    error('an edge is cut short')
  end
  return {
    up = parts[1], down = parts[2], ref = parts[3], kind = parts[4], created = parts[5], place = parts[6],
    applied = parts[7], result = parts[8], life = parts[9], further = behind(parts, EDGE_PARTS),
  }
end

local function write_edge(edge)
  local parts = {
    edge.up, edge.down, edge.ref, edge.kind, edge.created, edge.place, edge.applied, edge.result, edge.life,
  }
  ff.append(parts, edge.further or {})
  return ff.pack(parts)
end

-- Read a stored group: policy, how many successes it wants, what becomes of the other upstream executions, numbers of edges, of
-- successes, of failures and of skips, state, life, '1' once one of its edges was applied, and the upstream execution whose
-- end decided it. A damaged text raises an error.
local function read_group(text)
  local parts = ff.unpack(text)
  if #parts < GROUP_PARTS then
    error('a group is cut short')
  end
  return {
    policy = parts[1], k = tonumber(parts[2]) + 0, others = parts[3], n = tonumber(parts[4]) + 0,
    ok = tonumber(parts[5]) + 0, bad = tonumber(parts[6]) + 0, skip = tonumber(parts[7]) + 0, state = parts[8],
    life = tonumber(parts[9]) + 0, force = parts[10], decided = parts[11], further = behind(parts, GROUP_PARTS),
  }
end

local function write_group(group)
  local text = ff.text
  local parts = {
    group.policy, text(group.k), group.others, text(group.n), text(group.ok), text(group.bad), text(group.skip),
    group.state, text(group.life), group.force, group.decided,
  }
  ff.append(parts, group.further or {})
  return ff.pack(parts)
end

local function packed(things, write)
  local list, size = {}, 0
  for id, thing in pairs(things) do
    list[size + 1], list[size + 2] = id, write(thing)
    size = size + 2
  end
  return list
end

-- Return the edges of a flow that this call changed: id, text, id, text, ...
function ff.packed_edges(flow)
  return packed(flow.new_edges, write_edge)
end

-- Return the groups of a flow that this call changed, in the same way.
function ff.packed_groups(flow)
  return packed(flow.new_groups, write_group)
end

-- Load what a page names and this call has not loaded.
local function load_missing(ctx, flow, kind, ids, loaded)
  local missing = {}
  for _, id in ipairs(ids) do
    if loaded[id] == nil then
      missing[#missing + 1] = id
      loaded[id] = false
    end
  end
  if #missing > 0 then
    local texts = call('HMGET', ff.flow_key(ctx, kind, flow.id), unpack(missing)) -- bounded: the caller's page
    ff.spend(ctx, 1 + #missing / 32, 0)
    for i, id in ipairs(missing) do
      loaded[id] = texts[i]
    end
  end
end

-- Return one thing that was loaded, read from its text when it is first used. What is damaged is taken for absent.
local function read_loaded(loaded, id, read)
  if type(loaded[id]) == 'string' then
    local good, thing = pcall(read, loaded[id])
    loaded[id] = good and thing
  end
  return loaded[id] or nil
end

-- Load the edges of a page, and the groups to which they lead.
function ff.load_edges(ctx, flow, ids)
  load_missing(ctx, flow, 'edges', ids, flow.edge_of)
end

-- Load the groups of a page.
function ff.load_groups(ctx, flow, uuids)
  load_missing(ctx, flow, 'groups', uuids, flow.group_of)
end

-- Return an edge of a flow, or nil if there is none. Each is loaded once per call.
function ff.edge(ctx, flow, id)
  if flow.edge_of[id] == nil then
    ff.load_edges(ctx, flow, { id })
  end
  return read_loaded(flow.edge_of, id, read_edge)
end

-- Return both ends of an edge that was loaded, the upstream execution first. An edge begins with them, so a search that needs
-- nothing else does not read the whole edge.
function ff.ends_of_edge(ctx, flow, id)
  local loaded = flow.edge_of[id]
  if type(loaded) == 'string' then
    local up, down = string.match(loaded, '^36:(' .. string.rep('.', 36) .. ')36:(' .. string.rep('.', 36) .. ')')
    if up then
      return up, down
    end
  end
  local edge = ff.edge(ctx, flow, id)
  return edge.up, edge.down
end

-- Return the group of a member, or nil if no edge leads to it and it has no policy.
function ff.group(ctx, flow, uuid)
  if flow.group_of[uuid] == nil then
    ff.load_groups(ctx, flow, { uuid })
  end
  return read_loaded(flow.group_of, uuid, read_group)
end

-- Note that an edge or a group has changed. It is written at the end of the call.
function ff.change_edge(ctx, flow, id, edge)
  flow.edge_of[id], flow.new_edges[id] = edge, edge
  ctx.changed_flows[flow.id] = flow
end

function ff.change_group(ctx, flow, uuid, group)
  flow.group_of[uuid], flow.new_groups[uuid] = group, group
  ctx.changed_flows[flow.id] = flow
end

-- Return a group without edges.
function ff.new_group(policy, k, others)
  return {
    policy = policy, k = k, others = others, n = 0, ok = 0, bad = 0, skip = 0, state = 'pending', life = 0, force = '',
    decided = '',
  }
end

-- Return a group that was packed by the caller: policy, k, others, number of edges.
function ff.group_from(text)
  local parts = ff.unpack(text)
  local group = ff.new_group(parts[1], tonumber(parts[2]), parts[3])
  group.n, group.force = tonumber(parts[4]), '1'
  return group
end

-- Add an edge to a flow and return it. `links` receives what must be linked.
function ff.new_edge(ctx, flow, id, up, down, ref, kind, links)
  local place = flow.edges
  local edge = {
    up = up, down = down, ref = ref, kind = kind, created = ctx.now_text, place = place, applied = '', result = '',
    life = '0',
  }
  ff.set_flow(ctx, flow, 'edges', ff.text(tonumber(place) + 1))
  ff.change_edge(ctx, flow, id, edge)
  ff.append(links, { 'o' .. up .. ':' .. id, 'i' .. down .. ':' .. id })
  if ref ~= '' then
    links[#links + 1] = 'd' .. down .. ':' .. string.format('%012.0f', tonumber(place)) .. ':' .. id
  end
  return edge
end

-- Return the result of an edge that counts: '' while it is unresolved.
function ff.result_of(edge, group)
  return (edge.result == 's' or tonumber(edge.life) == group.life or ff.is_of_children(group)) and edge.result or ''
end

-- Change the counter of a result by a number; '' has none.
function ff.count_result(group, result, change)
  local counter = COUNTERS[result]
  if counter then
    group[counter] = group[counter] + change
  end
end

-- Return the state of an edge as readers see it.
function ff.edge_state(edge, group)
  local result = group and ff.result_of(edge, group) or ''
  if result ~= '' then
    return result == 's' and 'satisfied' or 'impossible'
  end
  return edge.applied ~= '' and 'applied' or 'staged'
end

-- Return how many edges a group still waits for.
function ff.unresolved(group)
  return group.n - group.ok - group.bad - group.skip
end

-- Deciding ----------------------------------------------------------------------------------------------------------

-- Return 'satisfied' or 'impossible' as soon as the results of a group prove it, else nil.
local function verdict_of(group, is_sealed)
  local lost = group.bad + group.skip
  if group.policy == 'all_of' then
    return lost > 0 and 'impossible' or group.ok == group.n and 'satisfied'
  elseif group.policy == 'all_ended' then
    return ff.unresolved(group) == 0 and 'satisfied'
  elseif ff.is_of_children(group) then
    return ff.is_wait_over(group) and 'satisfied'
  elseif group.ok >= group.k then
    return 'satisfied'
  end
  -- While a flow is being built, a group that wants more edges than it has may get them.
  return (group.k <= group.n or is_sealed) and lost > group.n - group.k and 'impossible'
end

-- Let a member that waited for its edges run: at once, or when its delay is over.
function ff.let_run(ctx, record)
  local kind, later = string.sub(record.words.state, 6), (ff.number(record.delay_until) or 0) > ctx.now
  local state = not later and ff.READY or kind == ff.RETRY and ff.BACKOFF or ff.DELAYED
  ff.spend(ctx, 4, 0)
  ff.move(ctx, record, state .. kind, {})
end

-- End a member of a flow because of what the flow decided. `why` names the reason of a cancellation.
function ff.cancel_member(ctx, record, why)
  ff.spend(ctx, 8, 0)
  ff.finish(ctx, record, 'cancelled', { 'cancel_reason', why, 'cancelled_by', 'flow' }, true)
end

-- Let a member that waits run, skip it, or cancel it with its flow, as its group was decided.
local function carry_out(ctx, flow, record, group)
  if record.words.eligibility ~= 'blocked_by_dependencies' then
    return
  elseif ff.is_cancelling(flow) and not ff.is_of_children(group) then
    ff.cancel_member(ctx, record, flow.cancel_reason)
  elseif group.state == 'satisfied' then
    ff.let_run(ctx, record)
  else
    ff.spend(ctx, 8, 0)
    local why = '{fp:' .. ctx.partition .. '}:' .. group.decided
    ff.finish(ctx, record, 'skipped', { 'error', 'dependency_impossible ' .. why })
  end
end

-- Decide a group that is in force and pending, if its results prove it. `up` is the upstream execution that was resolved.
function ff.decide_group(ctx, flow, uuid, group, up)
  local verdict = group.state == 'pending' and group.force ~= '' and verdict_of(group, flow.sealed ~= '')
  if not verdict then
    return
  end
  group.state, group.decided = verdict, up
  ff.change_group(ctx, flow, uuid, group)
  local record = ff.load(ctx, uuid)
  if record then
    carry_out(ctx, flow, record, group)
  end
  local cancels = group.others == 'cancel_remaining' and (group.policy ~= 'all_of' or verdict == 'impossible')
  if cancels and ff.unresolved(group) > 0 then
    ff.enqueue(ctx, 'others', flow.id .. ':' .. uuid)
  end
end

-- Let a skipped member wait for its edges again, and what was skipped behind it.
local function wait_again(ctx, flow, uuid)
  local record = ff.load(ctx, uuid)
  if record and record.words.outcome == 'skipped' then
    ff.spend(ctx, 6, 0)
    call('HDEL', record.key, 'error', 'ended')
    record.ended = false
    ff.move(ctx, record, ff.WAITING_FOR_EDGES .. ff.REPLAY, { place = ctx.now })
    ff.enqueue(ctx, 'opened', flow.id .. ':' .. uuid)
  end
end

-- Begin another life of a group, in which only successes count.
function ff.open_group(ctx, flow, uuid, group)
  group.life, group.bad, group.skip, group.state, group.decided = group.life + 1, 0, 0, 'pending', ''
  ff.change_group(ctx, flow, uuid, group)
end

-- Give an edge the result of its upstream execution, '' for none, and draw the consequences for its group. A success stands.
function ff.resolve(ctx, flow, id, edge, result)
  local group = ff.group(ctx, flow, edge.down)
  local before = ff.result_of(edge, group)
  if before == result or before == 's' then
    return
  end
  edge.result = result
  if not ff.is_of_children(group) then
    edge.life = ff.text(group.life)
  end
  ff.change_edge(ctx, flow, id, edge)
  if tonumber(edge.life) ~= group.life then
    return
  end
  ff.count_result(group, before, -1)
  ff.count_result(group, result, 1)
  ff.change_group(ctx, flow, edge.down, group)
  if group.state == 'impossible' and before ~= '' and (result == '' or result == 's') then
    group.state, group.decided = 'pending', ''
    wait_again(ctx, flow, edge.down)
  end
  if result ~= '' then
    ff.decide_group(ctx, flow, edge.down, group, edge.up)
  end
end
