-- Children: executions that a running execution spawns. They are members of a flow that the parent's record names in its field
-- `children`, each with an edge that leads to the parent.
--
-- The group of these edges stands for the parent's last wait, whose number is the group's life. An edge counts if it belongs to
-- that wait, and its result is that of the child, whichever wait it belongs to.

-- How many children one wait counts.
local MOST_AWAITED = 1000

local WAITS = { children = true, children_ended = true }

-- Return whether a group is that of a parent and its children.
function ff.is_of_children(group)
  return WAITS[group.policy]
end

-- Return whether the wait of a parent is over: enough children succeeded, or can succeed no more; or enough have ended.
function ff.is_wait_over(group)
  local lost = group.bad + group.skip
  if group.policy == 'children_ended' then
    return group.ok + lost >= group.k
  end
  return group.ok >= group.k or lost > group.n - group.k
end

-- Return the flow of a record's children, or nil.
function ff.children_of(ctx, record)
  return record.children and record.children ~= '' and ff.flow(ctx, record.children) or nil
end

-- Add a child to the flow of its parent's children, which begins with the first child. `detached` children are not cancelled
-- with their parent, and no wait counts them unless it names them.
function ff.add_child(ctx, record, args, at, id, name, detached)
  local flow = ff.flow(ctx, id)
  if not flow then
    flow = ff.new_flow(ctx, id, ff.class(record.class).namespace, 'children', '')
    ff.list_flow(ctx, flow)
    ff.change_group(ctx, flow, record.uuid, ff.new_group('children', 0, 'let_run'))
  end
  local uuid, links = args[at], { 'm' .. args[at] }
  ff.create_member(ctx, args, at, flow)
  ff.let_run(ctx, ff.load(ctx, uuid))
  ff.new_edge(ctx, flow, name, uuid, record.uuid, '', 'success_only', links).life = '-'
  if detached then
    links[#links + 1] = 'a' .. uuid
    ff.set_flow(ctx, flow, 'acked', '1')
  end
  ff.add_links(flow, links)
  ff.revise_flow(ctx, flow)
end

-- Return the edges of some names that exist, in their order.
local function edges_of(ctx, flow, names)
  local edges = {}
  ff.load_edges(ctx, flow, names)
  for _, name in ipairs(names) do
    local edge = ff.edge(ctx, flow, name)
    if edge then
      edges[#edges + 1] = { name = name, edge = edge }
    end
  end
  return edges
end

-- Return the edges of the children that a wait counts: those of some names, or of all children that are not detached.
local function awaited(ctx, flow, uuid, names)
  local all = edges_of(ctx, flow, names or ff.links(ctx, flow, 'i' .. uuid .. ':', '', MOST_AWAITED))
  if names or flow.acked == '' or #all == 0 then
    return all
  end
  local links, edges = {}, {}
  for i, each in ipairs(all) do
    links[i] = 'a' .. each.edge.up
  end
  local scores = call('ZMSCORE', flow.links, unpack(links)) -- bounded: MOST_AWAITED
  for i, each in ipairs(all) do
    if not scores[i] then
      edges[#edges + 1] = each
    end
  end
  return edges
end

-- Begin a wait of a record for its children, and return whether it is over at once. `need` is how many of them must succeed,
-- or end if `settles`; nil for all.
function ff.await_children(ctx, record, need, settles, names)
  local flow = ff.children_of(ctx, record)
  local edges = flow and awaited(ctx, flow, record.uuid, names) or {}
  if #edges == 0 then
    return true
  end
  local group = ff.group(ctx, flow, record.uuid)
  group.policy, group.life = settles and 'children_ended' or 'children', group.life + 1
  group.n, group.k, group.ok, group.bad, group.skip = #edges, math.min(need or #edges, #edges), 0, 0, 0
  for _, each in ipairs(edges) do
    each.edge.life = ff.text(group.life)
    ff.count_result(group, each.edge.result, 1)
    ff.change_edge(ctx, flow, each.name, each.edge)
  end
  group.force, group.state = '1', ff.is_wait_over(group) and 'satisfied' or 'pending'
  ff.change_group(ctx, flow, record.uuid, group)
  return group.state == 'satisfied'
end

-- Note that a parent has ended: it spawns no more children, and those that are attached go with it if it was cancelled or
-- expired.
function ff.end_children(ctx, record, outcome)
  local flow = ff.children_of(ctx, record)
  if not flow then
    return
  end
  ff.set_flow(ctx, flow, 'sealed', '1')
  flow.is_counted = true
  if outcome == 'cancelled' or outcome == 'expired' then
    ff.mark_cancelled(ctx, flow, 'cancel_all', 'parent_' .. outcome)
    ff.enqueue(ctx, 'cancel', flow.id)
  end
end

-- Note that a parent is replayed, so that it may spawn children again.
function ff.reopen_children(ctx, record)
  local flow = ff.children_of(ctx, record)
  if flow then
    for _, name in ipairs({ 'sealed', 'cancel_policy', 'cancel_reason', 'cancelled_at' }) do
      ff.set_flow(ctx, flow, name, '')
    end
    flow.is_counted = true
  end
end
