-- How the graph of a flow is built, edge by edge or as a whole.

-- How many edges the search for a cycle follows at most.
ff.MAX_EDGES_SEARCHED = 500

-- Return the failure of an operation that changes the graph of a flow, or nil.
function ff.refuse_building(flow)
  if flow.cancel_policy ~= '' or flow.state == 'completed' or flow.state == 'failed' then
    return ff.failure('flow_already_terminal', flow.id, flow.state)
  elseif flow.sealed ~= '' then
    return ff.failure('flow_sealed', flow.id)
  end
  return nil
end

-- Return whether an execution is a member of a flow, with its record; damage is raised.
function ff.member(ctx, flow, uuid)
  local record = ff.load(ctx, uuid)
  return record and record.flow == flow.id and record
end

-- Return the failure of an edge that would close a cycle, or nil. The descendants of its downstream execution and the
-- ancestors of its upstream execution are followed in turn, until those of one side are all known.
local function closes_cycle(ctx, flow, id, up, down)
  local sides = {
    { kind = 'o', queue = { down }, seen = { [down] = true }, goal = up },
    { kind = 'i', queue = { up }, seen = { [up] = true }, goal = down },
  }
  local left, at = ff.MAX_EDGES_SEARCHED, 1
  while left > 0 do
    for _, side in ipairs(sides) do
      local uuid = side.queue[at]
      if not uuid then
        return nil
      end
      local ids = ff.links(ctx, flow, side.kind .. uuid .. ':', '', left + 1)
      ff.load_edges(ctx, flow, ids)
      for _, each in ipairs(ids) do
        local from, to = ff.ends_of_edge(ctx, flow, each)
        local other = side.kind == 'o' and to or from
        if other == side.goal then
          return ff.failure('cycle_detected', id)
        elseif not side.seen[other] then
          side.seen[other] = true
          side.queue[#side.queue + 1] = other
        end
      end
      left = left - #ids
    end
    at = at + 1
  end
  return ff.failure('cycle_search_limit', id)
end

-- Return the failure of an edge that cannot be staged, or nil. `record` is its downstream execution, `group` its group or nil.
function ff.refuse_edge(ctx, flow, args, record, group)
  local id, up, down, expected = args[4], args[5], args[6], args[9]
  local failure = ff.refuse_building(flow)
  if failure then
    return failure
  elseif expected ~= '' and expected ~= flow.revision then
    return ff.failure('stale_graph_revision', flow.id, flow.revision)
  elseif not ff.member(ctx, flow, up) then
    return ff.failure('execution_not_in_flow', up, flow.id)
  elseif not record then
    return ff.failure('execution_not_in_flow', down, flow.id)
  end
  failure = closes_cycle(ctx, flow, id, up, down)
  if failure then
    return failure
  elseif ff.edge(ctx, flow, id) then
    return ff.failure('dependency_already_exists', id)
  elseif record.words.phase ~= 'runnable' or group and group.state ~= 'pending' then
    return ff.failure('edge_group_fired', down)
  end
  return nil
end

-- Put a group into force by one of its edges, and let its member wait for it.
function ff.apply_edge(ctx, flow, id, edge, group, record)
  edge.applied = '1'
  ff.change_edge(ctx, flow, id, edge)
  if group.force == '' then
    group.force = '1'
    ff.change_group(ctx, flow, edge.down, group)
    if record.words.eligibility ~= 'blocked_by_dependencies' then
      ff.move(ctx, record, ff.WAITING_FOR_EDGES .. string.sub(record.words.state, 6), {})
    end
  end
  ff.decide_group(ctx, flow, edge.down, group, edge.up)
end

-- Stage a new edge, and give it the result of its upstream execution if that has ended.
function ff.stage_edge(ctx, flow, args, group)
  local id, up, down, ref, kind = args[4], args[5], args[6], args[7], args[8]
  local links = {}
  if not group then
    group = ff.new_group('all_of', 0, 'let_run')
  end
  if group.n == 0 then
    links[1] = 'g' .. down
  end
  group.n = group.n + 1
  ff.change_group(ctx, flow, down, group)
  local edge = ff.new_edge(ctx, flow, id, up, down, ref, kind, links)
  ff.add_links(flow, links)
  if group.n == group.k then
    call('ZREM', flow.links, 'k' .. down)
  end
  ff.revise_flow(ctx, flow)
  ff.resolve(ctx, flow, id, edge, ff.result_for(ff.load(ctx, up)))
  return edge, group
end

-- Whole graphs ------------------------------------------------------------------------------------------------------

-- Return the item of a graph at an argument, and where the next one begins. A node is: 'n', a creation, its group as
-- ff.group_from reads it or ''. An edge is: 'e', id, upstream uuid, downstream uuid, argument that receives the result or ''.
local function next_item(args, at)
  if args[at] == 'n' then
    local group_at = at + 1 + ff.CREATION_WIDTH
    return { creation = at + 1, uuid = args[at + 1], group = args[group_at] }, group_at + 1
  end
  return { id = args[at + 1], up = args[at + 2], down = args[at + 3], ref = args[at + 4] }, at + 5
end

-- Return the items of a call that its work budget allows, at least one; or nil and the failure of a node that cannot be made.
function ff.items_of(ctx, args, first)
  local items, at = {}, first
  while at <= #args and (ctx.work > 0 or at == first) do
    local item, following = next_item(args, at)
    local bytes = 0
    for i = at, following - 1 do
      bytes = bytes + #args[i]
    end
    ff.spend(ctx, item.creation and 5 or 2, bytes)
    local failure = item.creation and ff.refuse_member(ctx, args, item.creation)
    if failure then
      return nil, failure
    end
    items[#items + 1], at = item, following
  end
  return items
end

-- Store the items of a graph.
function ff.store_items(ctx, flow, args, items)
  local links = {}
  for _, item in ipairs(items) do
    if item.creation then
      ff.create_member(ctx, args, item.creation, flow)
      ff.append(links, { 'm' .. item.uuid, (item.group == '' and 'r' or 'g') .. item.uuid })
      if item.group ~= '' then
        ff.change_group(ctx, flow, item.uuid, ff.group_from(item.group))
      end
    else
      local edge = ff.new_edge(ctx, flow, item.id, item.up, item.down, item.ref, 'success_only', links)
      edge.applied = '1'
    end
  end
  ff.add_links(flow, links)
end

-- Let a flow begin whose graph is complete.
function ff.open_graph(ctx, flow, total)
  ff.set_flow(ctx, flow, 'building', '')
  ff.set_flow(ctx, flow, 'sealed', '1')
  ff.set_flow(ctx, flow, 'revision', total)
  ff.due_at(ctx, 'retention', 'y' .. flow.id, false)
  ff.list_flow(ctx, flow)
  flow.is_counted = true
  ff.enqueue(ctx, 'roots', flow.id)
end
