-- Children: executions that a running execution spawns. They are members of a flow that the parent's record names in its field
-- `children`, each with an edge that leads to the parent.
--
-- The group of these edges stands for the parent's last wait, whose number is the group's life. An edge counts if it belongs to
-- that wait, and its result is that of the child, whichever wait it belongs to.

-- How many children one wait counts, and how many one call.
local MOST_AWAITED, AWAITED_AT_ONCE = 1000, 200

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

-- Return those of some edges whose children are not detached.
local function attached(flow, all)
  if flow.acked == '' or #all == 0 then
    return all
  end
  local links, edges = {}, {}
  for i, each in ipairs(all) do
    links[i] = 'a' .. each.edge.up
  end
  local scores = call('ZMSCORE', flow.links, unpack(links)) -- bounded: AWAITED_AT_ONCE
  for i, each in ipairs(all) do
    if not scores[i] then
      edges[#edges + 1] = each
    end
  end
  return edges
end

-- Return a page of the edges of the children that a wait counts, behind a place or '': those of some names, or of all children
-- that are not detached. Return also the place behind which the next page begins, or nil if there is none.
local function awaited(ctx, flow, uuid, names, after)
  if names then
    local first, last = (tonumber(after) or 0) + 1, (tonumber(after) or 0) + AWAITED_AT_ONCE
    local page = { unpack(names, first, math.min(last, #names)) } -- bounded: AWAITED_AT_ONCE
    return edges_of(ctx, flow, page), last < #names and ff.text(last) or nil
  end
  local ids = ff.links(ctx, flow, 'i' .. uuid .. ':', after, AWAITED_AT_ONCE)
  return attached(flow, edges_of(ctx, flow, ids)), #ids == AWAITED_AT_ONCE and ids[#ids] or nil
end

-- Let a wait count a page of edges, and their results.
local function count_edges(ctx, flow, group, edges)
  local count = math.min(#edges, MOST_AWAITED - group.n)
  for i = 1, count do
    local each = edges[i]
    each.edge.life = ff.text(group.life)
    ff.count_result(group, each.edge.result, 1)
    ff.change_edge(ctx, flow, each.name, each.edge)
  end
  group.n = group.n + count
end

-- Begin a wait of a record for its children, or count the next page of them. `wait` has: need, how many of them must succeed, or
-- end if it settles, nil for all; settles; names, nil for all children; call_id. Return 'more' if there are more pages; else
-- 'over' if the wait is over at once, or 'begun'.
--
-- Until all pages are counted the group is not in force, and `decided` holds the call and the place behind which it continues.
function ff.await_children(ctx, record, wait)
  local flow = ff.children_of(ctx, record)
  local group, mark = flow and ff.group(ctx, flow, record.uuid), wait.call_id .. ':'
  local continues = group and group.force == '' and string.sub(group.decided, 1, #mark) == mark
  local edges, following = {}, nil
  if group then
    local after = continues and string.sub(group.decided, #mark + 1) or ''
    edges, following = awaited(ctx, flow, record.uuid, wait.names, after)
  end
  if not continues then
    if #edges == 0 and not following then
      return 'over'
    end
    group.policy, group.life = wait.settles and 'children_ended' or 'children', group.life + 1
    group.n, group.ok, group.bad, group.skip = 0, 0, 0, 0
  end
  count_edges(ctx, flow, group, edges)
  ff.change_group(ctx, flow, record.uuid, group)
  if following and group.n < MOST_AWAITED then
    group.force, group.state, group.decided = '', 'pending', mark .. following
    return 'more'
  end
  group.force, group.decided, group.k = '1', '', math.min(wait.need or group.n, group.n)
  group.state = ff.is_wait_over(group) and 'satisfied' or 'pending'
  return group.state == 'satisfied' and 'over' or 'begun'
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
