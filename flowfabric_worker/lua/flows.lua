-- How flows are built, cancelled and read. Every operation names a flow of a namespace, and is refused with flow_not_found if
-- there is none, or if its graph is not complete yet.

-- How many members or groups of a flow one call returns, and how many of those that ended badly.
local MOST_ROWS, MOST_FAILED = 1000, 10

-- Register an operation that reads a flow. `run` gets the flow and the arguments, which begin with the flow's id and
-- pack{namespace}.
local function register_read(name, run)
  ff.register(name, { 'no-writes' }, function(ctx, args)
    local flow, failure = ff.flow_in(ctx, args[2], args[1])
    return flow and run(ctx, flow, args) or failure
  end)
end

-- Return what a call on a flow was answered before, or nil.
local function answer_before(flow, call_id)
  return ff.recall(call('HGET', flow.key, 'answered'), call_id)
end

-- Remember the answer of a call that changed a flow.
local function remember(ctx, flow, call_id, answer)
  ff.set_flow(ctx, flow, 'answered', ff.remember(call('HGET', flow.key, 'answered'), call_id, answer))
end

-- Register an operation that changes a flow. Its third argument is a call id, under which its answer is remembered.
local function register(name, run)
  ff.register(name, {}, function(ctx, args)
    local flow, failure = ff.flow_in(ctx, args[2], args[1])
    local answer = flow and answer_before(flow, args[3])
    if not flow or answer then
      return answer or failure
    end
    answer = run(ctx, flow, args)
    if answer[1] ~= 'error' and answer[1] ~= 'known' then
      remember(ctx, flow, args[3], answer)
    end
    ff.flush(ctx)
    return answer
  end)
end

-- Building ----------------------------------------------------------------------------------------------------------

-- create_flow: create a flow without members.
-- Arguments: flow, pack{namespace}, call id, kind, tags as pack{key, value, ...}.
-- Replies: 'created', or 'known' if the same flow was created before.
-- Errors: conflict, the flow exists with another kind or in another namespace.
ff.register('create_flow', {}, function(ctx, args)
  local id, namespace, call_id, kind, tags = args[1], args[2], args[3], args[4], args[5]
  local flow = ff.flow(ctx, id)
  if flow then
    local is_same = flow.ns == namespace and flow.kind == kind and flow.building == ''
    return is_same and (answer_before(flow, call_id) or { 'known' }) or ff.failure('conflict')
  end
  flow = ff.new_flow(ctx, id, namespace, kind, tags)
  remember(ctx, flow, call_id, { 'created' })
  ff.list_flow(ctx, flow)
  ff.flush(ctx)
  return { 'created' }
end)

-- add_execution_to_flow: make an execution a member of a flow.
-- Arguments: flow, pack{namespace}, call id, uuid.
-- Replies: 'added', or 'known' if it was a member before; the number of members.
-- Errors: flow_not_found, flow_already_terminal, flow_sealed, execution_not_found, execution_already_in_flow, corruption.
register('add_execution_to_flow', function(ctx, flow, args)
  local namespace, uuid = args[2], args[4]
  local record, failure = ff.load_in(ctx, namespace, uuid)
  if record and record.flow == flow.id then
    return { 'known', flow.nodes }
  end
  failure = ff.refuse_building(flow) or failure
  if not failure and record.flow then
    failure = ff.failure('execution_already_in_flow', uuid, record.flow)
  end
  if failure then
    return failure
  end
  ff.change(ctx, record, { 'flow', flow.id, 'mutated', ctx.now_text })
  ff.count_member(ctx, flow.id, nil, record.words.public)
  ff.join_flow(ctx, flow, record)
  ff.revise_flow(ctx, flow)
  ff.add_links(flow, { 'm' .. uuid, ff.ends_badly(record) and 'b' .. uuid or nil })
  return { 'added', flow.nodes }
end)

-- stage_dependency_edge: record an edge, and put it into force if the caller links it.
-- Arguments: flow, pack{namespace}, call id, edge, upstream uuid, downstream uuid, argument that receives the result or '', kind,
-- revision that the caller expects or '', '1' to put it into force.
-- Replies: 'staged', or 'known' if the same edge was staged before; revision; state of the edge; number of edges for which
-- the downstream execution still waits; '1' if this call put the edge into force.
-- Errors: flow_not_found, flow_already_terminal, flow_sealed, stale_graph_revision, execution_not_in_flow, cycle_detected,
-- cycle_search_limit, dependency_already_exists, edge_group_fired, corruption.
register('stage_dependency_edge', function(ctx, flow, args)
  local id, up, down, ref, kind, links = args[4], args[5], args[6], args[7], args[8], args[10] == '1'
  local edge, group, record = ff.edge(ctx, flow, id), ff.group(ctx, flow, down), ff.member(ctx, flow, down)
  local is_known = edge and edge.up == up and edge.down == down and edge.ref == ref and edge.kind == kind
  if not is_known then
    local failure = ff.refuse_edge(ctx, flow, args, record, group)
    if failure then
      return failure
    end
    edge, group = ff.stage_edge(ctx, flow, args, group)
  end
  local applies = links and edge.applied == ''
  if applies then
    if not record or group.force == '' and record.words.phase ~= 'runnable' then
      return ff.failure('edge_group_fired', down)
    end
    ff.apply_edge(ctx, flow, id, edge, group, record)
  end
  local word = is_known and 'known' or 'staged'
  return {
    word, flow.revision, ff.edge_state(edge, group), ff.text(ff.unresolved(group)), applies and '1' or '',
  }
end)

-- apply_dependency_to_child: put a staged edge into force.
-- Arguments: flow, pack{namespace}, call id, edge.
-- Replies: 'applied', or 'known' if it was applied before; number of edges for which the downstream execution still waits.
-- Errors: flow_not_found, edge_not_found, execution_not_found, edge_group_fired, corruption.
register('apply_dependency_to_child', function(ctx, flow, args)
  local id = args[4]
  local edge = ff.edge(ctx, flow, id)
  if not edge then
    return ff.failure('edge_not_found', id)
  end
  local group, word = ff.group(ctx, flow, edge.down), 'known'
  if edge.applied == '' then
    local record, failure = ff.load(ctx, edge.down)
    if not record then
      return failure
    elseif group.force == '' and record.words.phase ~= 'runnable' then
      return ff.failure('edge_group_fired', edge.down)
    end
    ff.apply_edge(ctx, flow, id, edge, group, record)
    word = 'applied'
  end
  return { word, ff.text(ff.unresolved(group)) }
end)

-- set_edge_group_policy: set when the edges into a member let it run.
-- Arguments: flow, pack{namespace}, call id, uuid, policy, how many successes it wants, what becomes of the others.
-- Replies: 'set', or 'known' if the policy was the same before.
-- Errors: flow_not_found, flow_already_terminal, flow_sealed, execution_not_in_flow, edge_group_policy_fixed, corruption.
register('set_edge_group_policy', function(ctx, flow, args)
  local uuid, policy, k, others = args[4], args[5], tonumber(args[6]), args[7]
  local group = ff.group(ctx, flow, uuid)
  if group and group.policy == policy and group.k == k and group.others == others then
    return { 'known' }
  end
  local failure = ff.refuse_building(flow)
  if failure then
    return failure
  elseif not ff.member(ctx, flow, uuid) then
    return ff.failure('execution_not_in_flow', uuid, flow.id)
  elseif group then
    return ff.failure('edge_group_policy_fixed', uuid)
  end
  ff.change_group(ctx, flow, uuid, ff.new_group(policy, k, others))
  if k > 0 then
    call('ZADD', flow.links, 0, 'k' .. uuid)
  end
  ff.set_flow(ctx, flow, 'mutated', ctx.now_text)
  return { 'set' }
end)

-- seal_flow: end the building of a flow, which is over once all its members have ended.
-- Arguments: flow, pack{namespace}, call id.
-- Replies: 'ok', also if it was sealed before.
-- Errors: flow_not_found, flow_already_terminal, invalid_graph (a group wants more successes than it has edges).
register('seal_flow', function(ctx, flow)
  if flow.sealed ~= '' then
    return { 'ok' }
  end
  local failure = ff.refuse_building(flow)
  if failure then
    return failure
  elseif #ff.links(ctx, flow, 'k', '', 1) > 0 then
    return ff.failure('invalid_graph')
  end
  ff.set_flow(ctx, flow, 'sealed', '1')
  ff.set_flow(ctx, flow, 'mutated', ctx.now_text)
  flow.is_counted = true
  return { 'ok' }
end)

-- Whole graphs ------------------------------------------------------------------------------------------------------

-- Return the reply of a call about a flow that exists, or nil if its graph is to be continued.
local function known_graph(ctx, flow, namespace, digest)
  local stored = call('HMGET', flow.key, 'digest', 'submitted_by')
  if flow.ns ~= namespace or stored[1] ~= digest then
    return ff.failure('conflict')
  end
  return flow.building == '' and { 'known', stored[2] or '' } or nil
end

-- submit_flow: store a part of a graph; the flow begins when the last part is stored, and is hidden before.
-- Arguments: flow, pack{namespace}, kind, tags as pack{key, value, ...}, digest of the graph, call id, number of items, how many
-- of them are stored by the caller's knowledge, then items as ff.items_of reads them: all nodes, then all edges.
-- Replies: 'more', how many items are stored; 'built'; or 'known' and the call id that built it.
-- Errors: conflict (another flow has that id, or an execution that of a node), too_many_classes.
ff.register('submit_flow', {}, function(ctx, args)
  local id, namespace, kind, tags, digest, call_id, total, from = unpack(args, 1, 8) -- bounded: the head of the call
  local flow = ff.flow(ctx, id)
  local answer = flow and known_graph(ctx, flow, namespace, digest)
  if answer then
    return answer
  elseif flow and flow.building ~= from or not flow and from ~= '0' then
    return { 'more', flow and flow.building or '0' }
  end
  local items, failure = ff.items_of(ctx, args, 9)
  if not items then
    return failure
  elseif not flow then
    flow = ff.new_flow(ctx, id, namespace, kind, tags)
    ff.set_flow(ctx, flow, 'building', '0')
    ff.set_flow(ctx, flow, 'digest', digest)
    ff.list_flow(ctx, flow)
    ff.due_at(ctx, 'retention', 'y' .. id, ctx.now + ff.HOUR)
  end
  ff.store_items(ctx, flow, args, items)
  local stored = tonumber(from) + #items
  if stored == tonumber(total) then
    ff.open_graph(ctx, flow, total)
    ff.set_flow(ctx, flow, 'submitted_by', call_id)
    answer = { 'built' }
  else
    ff.set_flow(ctx, flow, 'building', ff.text(stored))
    answer = { 'more', ff.text(stored) }
  end
  ff.flush(ctx)
  return answer
end)

-- Cancelling --------------------------------------------------------------------------------------------------------

-- Cancel a flow. With a grace, its members are left to the caller for that time, in ms.
local function cancel(ctx, flow, policy, reason, grace)
  ff.mark_cancelled(ctx, flow, policy, reason)
  if ff.is_cancelling(flow) then
    ff.enqueue(ctx, 'cancel', flow.id)
    if grace ~= '' then
      ff.postpone_job(ctx, 'cancel:' .. flow.id, ctx.now + tonumber(grace))
    end
  end
end

-- cancel_flow: mark a flow as cancelled, and cancel members as its policy says, as many as the call may; keepers cancel the
-- rest.
-- Arguments: flow, pack{namespace}, call id, policy, reason, how long to leave the members to the caller in ms, or '' to
-- cancel them.
-- Replies: 'cancelled'; 'known' if it was cancelled before; or 'ended'. Then policy, reason, number of members, '1' if members
-- have still to be cancelled, and the first members.
-- Errors: flow_not_found.
ff.register('cancel_flow', { 'allow-oom' }, function(ctx, args)
  local call_id, policy, reason, grace = args[3], args[4], args[5], args[6]
  local flow, failure = ff.flow_in(ctx, args[2], args[1])
  if not flow then
    return failure
  end
  local before, job = answer_before(flow, call_id), 'cancel:' .. flow.id
  local word = before and before[1] or flow.cancel_policy ~= '' and 'known' or flow.ended ~= '' and 'ended' or 'cancelled'
  if not before and word == 'cancelled' then
    cancel(ctx, flow, policy, reason, grace)
    remember(ctx, flow, call_id, { word })
  elseif grace == '' and call('ZSCORE', ctx.base .. ':due', 'j' .. job) then
    ff.due_at(ctx, 'due', 'j' .. job, false)
    ff.resume_job(ctx, job)
  end
  ff.run_jobs(ctx)
  local left = ctx.due.due and ctx.due.due['j' .. job] or grace ~= '' and call('ZSCORE', ctx.base .. ':due', 'j' .. job)
  local answer = {
    word, before and policy or flow.cancel_policy, before and reason or flow.cancel_reason, flow.nodes, left and '1' or '',
    ff.links(ctx, flow, 'm', '', MOST_ROWS),
  }
  ff.flush(ctx)
  return answer
end)

-- ack_cancel_member: note that a caller has cancelled a member of a cancelled flow itself.
-- Arguments: flow, pack{namespace}, uuid.
-- Replies: 'ok', also for an unknown flow.
ff.register('ack_cancel_member', { 'allow-oom' }, function(ctx, args)
  local flow, uuid = ff.flow_in(ctx, args[2], args[1]), args[3]
  if flow and flow.cancel_policy ~= '' and ff.has_link(flow, 'm' .. uuid) then
    call('ZADD', flow.links, 0, 'a' .. uuid)
    ff.set_flow(ctx, flow, 'acked', '1')
    ff.flush(ctx)
  end
  return { 'ok' }
end)

-- purge_flow: remove a flow that is over with all its members before its retention ends, as many as the call may.
-- Arguments: flow, pack{namespace}, call id.
-- Replies: 'removed', or 'more' to be called again.
-- Errors: flow_not_found, flow_not_terminal.
ff.register('purge_flow', { 'allow-oom' }, function(ctx, args)
  local id, namespace, call_id = args[1], args[2], args[3]
  if ff.was_removed(ctx, call_id) then
    return { 'removed' }
  end
  local flow, failure = ff.flow_in(ctx, namespace, id)
  if not flow then
    return failure
  elseif flow.ended == '' then
    return ff.failure('flow_not_terminal', id, flow.state)
  end
  ff.due_at(ctx, 'retention', 'y' .. id, false)
  repeat
    ff.remove_flow(ctx, id)
  until flow.is_gone or ctx.work <= 0
  if flow.is_gone then
    ff.remember_removal(ctx, call_id)
  end
  ff.flush(ctx)
  return { flow.is_gone and 'removed' or 'more' }
end)

-- Children ----------------------------------------------------------------------------------------------------------

local SPAWNING = ff.joined({ ff.CORE, { 'reported' } })

-- spawn: create a child of an execution, ready to run; the first child of a name stands.
-- Arguments: uuid, fence, call id, id of the flow of its children, name, '1' for a child that is not cancelled with its parent,
-- then a creation.
-- Replies: 'created', or 'known'.
-- Errors: those of ff.fenced, conflict (another execution has the child's id), too_many_classes.
ff.register_single('spawn', {}, function(ctx, args)
  local uuid, fence, call_id, id, name, detached = unpack(args, 1, 6) -- bounded: the head of the call
  local record, answer = ff.fenced(ctx, uuid, fence, nil, SPAWNING, call_id)
  if not record then
    return answer
  end
  local flow = ff.flow(ctx, id)
  if flow and ff.edge(ctx, flow, name) then
    return { 'known' }
  end
  local failure = ff.refuse_member(ctx, args, 7)
  if failure then
    return failure
  end
  ff.add_child(ctx, record, args, 7, id, name, detached == '1')
  answer = { 'created' }
  ff.move(ctx, record, nil, { children = id, reported = ff.remember(record.reported, call_id, answer) })
  return answer
end)

-- Reading -----------------------------------------------------------------------------------------------------------

-- read_inputs: read a page of the results that edges pass to an execution.
-- Arguments: uuid, fence, how far the pages before came.
-- Replies: as ff.inputs returns.
-- Errors: those of ff.fenced.
ff.register_single('read_inputs', { 'allow-oom' }, function(ctx, args)
  local record, answer = ff.fenced(ctx, args[1], args[2])
  if not record then
    return answer
  end
  return record.flow and ff.inputs(ctx, record, args[3]) or { '', {} }
end)

-- describe_flow: read a flow.
-- Arguments: flow, pack{namespace}, the fields to read.
-- Replies: the values of the fields; the first members that ended badly; '1' if there are more groups; and per group: uuid,
-- stored group.
-- Errors: flow_not_found.
register_read('describe_flow', function(ctx, flow, args)
  local values = call('HMGET', flow.key, unpack(args, 3)) -- bounded: the caller's fixed list of names
  local uuids, rows = ff.links(ctx, flow, 'g', '', MOST_ROWS + 1), {}
  local has_more = #uuids > MOST_ROWS
  uuids[MOST_ROWS + 1] = nil
  if #uuids > 0 then
    local texts = call('HMGET', ff.flow_key(ctx, 'groups', flow.id), unpack(uuids)) -- bounded: one page
    for i, uuid in ipairs(uuids) do
      rows[2 * i - 1], rows[2 * i] = uuid, texts[i]
    end
  end
  return { values, ff.links(ctx, flow, 'b', '', MOST_FAILED), has_more and '1' or '', rows }
end)

-- Return what readers are told of an edge: its link, id, stored edge or false, life of its group or false.
local function edge_row(ctx, flow, link, id)
  local text = call('HGET', ff.flow_key(ctx, 'edges', flow.id), id)
  local edge = text and ff.edge(ctx, flow, id)
  local group = edge and ff.group(ctx, flow, edge.down)
  return { link, id, text, group and ff.text(group.life) or false }
end

-- describe_edge: read one edge.
-- Arguments: flow, pack{namespace}, edge.
-- Replies: '', id, stored edge or false, life of its group or false.
-- Errors: flow_not_found.
register_read('describe_edge', function(ctx, flow, args)
  return edge_row(ctx, flow, '', args[3])
end)

-- list_edges: read a page of the edges that leave an execution or lead to it, by id; or of all edges, by their upstream
-- executions.
-- Arguments: flow, pack{namespace}, 'o' or 'i', uuid or '' for all edges, after (a link) or '', limit.
-- Replies: '1' if there may be more, else '0'; then per edge: link, id, stored edge or false, life of its group or false.
-- Errors: flow_not_found.
register_read('list_edges', function(ctx, flow, args)
  local direction, uuid, after, limit = args[3], args[4], args[5], tonumber(args[6])
  local found = ff.links(ctx, flow, direction .. (uuid ~= '' and uuid .. ':' or ''), after, limit)
  return ff.read_rows(ctx, found, limit, function(link)
    return edge_row(ctx, flow, link, uuid ~= '' and link or string.sub(link, 38))
  end)
end)

-- list_flow_members: read a page of the members of a flow, by id.
-- Arguments: flow, pack{namespace}, after (a uuid) or '', limit, the fields to read.
-- Replies: '1' if there may be more, else '0'; then per member: uuid, the values of the fields or false if its key does not
-- hold a hash.
-- Errors: flow_not_found.
register_read('list_flow_members', function(ctx, flow, args)
  local after, limit = args[3], tonumber(args[4])
  local names = { unpack(args, 5) } -- bounded: the caller's fixed list of names
  return ff.read_rows(ctx, ff.links(ctx, flow, 'm', after, limit), limit, function(uuid)
    local readable, values = pcall(call, 'HMGET', ff.record_key(ctx, uuid), unpack(names)) -- bounded: as above
    return { uuid, readable and values }
  end)
end)

-- list_flows: read a page of the flows of a namespace, by id.
-- Arguments: pack{namespace}, after (a flow) or '', limit, the fields to read.
-- Replies: '1' if there may be more, else '0'; then per flow: id, the values of the fields, none if they
-- cannot be read.
ff.register('list_flows', { 'no-writes' }, function(ctx, args)
  local namespace, after, limit = args[1], args[2], tonumber(args[3])
  local names = { unpack(args, 4) } -- bounded: the caller's fixed list of names
  local from = after ~= '' and '(' .. namespace .. after or '[' .. namespace
  local found = call('ZRANGE', ctx.base .. ':flows', from, '(' .. namespace .. '\255', 'BYLEX', 'LIMIT', 0, limit)
  return ff.read_rows(ctx, found, limit, function(listed)
    local id = string.sub(listed, #namespace + 1)
    local readable, values = pcall(call, 'HMGET', ff.flow_key(ctx, 'flow', id), unpack(names)) -- bounded: as above
    return { id, readable and values or {} }
  end)
end)
