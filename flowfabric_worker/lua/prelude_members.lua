-- What the members of a flow cause to each other: their ends, replays and cancellations, as jobs.

-- The result of an edge for each outcome of its upstream execution.
local RESULTS = { success = 's', failed = 'f', cancelled = 'f', expired = 'f', skipped = 'k' }

-- How many links one command reads where a walk looks for something.
local PAGE = 100

-- Return the flow and the record of the member that a job is about; nil if either is gone.
local function member_of(ctx, what)
  local flow = ff.flow(ctx, string.sub(what, 1, 36))
  return flow, flow and ff.load(ctx, string.sub(what, 38))
end

-- Return the result that an execution gives to the edges that leave it, '' if it has not ended.
function ff.result_for(record)
  return record.words.phase == 'terminal' and RESULTS[record.words.outcome] or ''
end

-- Load the edges of some ids and the groups to which they lead, and return the downstream executions. To read an edge and its
-- group, and to write both, takes about 25 us.
local function load_page(ctx, flow, ids)
  local downs = {}
  ff.load_edges(ctx, flow, ids)
  for _, id in ipairs(ids) do
    local edge = ff.edge(ctx, flow, id)
    downs[#downs + 1] = edge and edge.down
  end
  ff.load_groups(ctx, flow, downs)
  ff.spend(ctx, 2.5 * #ids, 0)
  return downs
end

-- Run a function for each of some things in order, until the call has done enough, and return how far that came, or nil if it is
-- done with a page that is not full. `run` gets the thing, and how far a walk about it came or ''; it returns how far the walk
-- came if there is more. The cursor is the last thing that is done, and behind a NUL how far the walk about the next one came.
local function walk(ctx, cursor, limit, read, run)
  local done, walked = string.match(cursor, '^([^%z]*)%z?(.*)$')
  local things = read(done, limit)
  for i, thing in ipairs(things) do
    local stopped = (i > 1 and ff.has_handled_enough(ctx) and '') or run(thing, walked)
    if stopped then
      return stopped == '' and done or done .. '\0' .. stopped
    end
    done, walked = thing, ''
  end
  return #things == limit and done or nil
end

-- Run a function for each edge of a page of links, in isolation, with the edge, its id, and how far a walk about it came. Return
-- as `walk` does.
local function each_edge(ctx, flow, prefix, cursor, limit, run)
  local function read(after, most)
    local ids = ff.links(ctx, flow, prefix, after, most)
    load_page(ctx, flow, ids)
    return ids
  end
  return walk(ctx, cursor, limit, read, function(id, walked)
    local edge = ff.edge(ctx, flow, id)
    local stopped = edge and ff.isolated(ctx, edge.down, function()
      return run(edge, id, walked)
    end)
    ff.handled(ctx, 1, 0)
    return type(stopped) == 'string' and stopped or nil
  end)
end

-- ended: resolve the edges that leave a member which has ended. One that was removed because it was damaged has failed.
ff.define_job('ended', function(ctx, what, cursor, limit)
  local flow, record = member_of(ctx, what)
  local uuid, result = string.sub(what, 38), record and ff.result_for(record) or ''
  if flow and not record and not ff.has_link(flow, 'm' .. uuid) then
    result = 'f'
  end
  if result == '' then
    return nil
  end
  return each_edge(ctx, flow, 'o' .. uuid .. ':', cursor, limit, function(edge, id)
    ff.resolve(ctx, flow, id, edge, result)
  end)
end)

-- opened: let what was skipped behind a member that runs or waits again wait for it.
ff.define_job('opened', function(ctx, what, cursor, limit)
  local flow, record = member_of(ctx, what)
  if not record or record.words.phase == 'terminal' then
    return nil
  end
  return each_edge(ctx, flow, 'o' .. record.uuid .. ':', cursor, limit, function(edge, id)
    ff.resolve(ctx, flow, id, edge, '')
  end)
end)

-- Return whether one of the groups to which a member leads, by links behind one or '', passes a test. Return nil and the last
-- link if the call has no work left to look at all. Return also whether the member leads to any.
local function leads_to(ctx, flow, uuid, after, test)
  repeat
    local ids = ff.links(ctx, flow, 'o' .. uuid .. ':', after, PAGE)
    ff.handled(ctx, #ids, 0)
    for _, down in ipairs(load_page(ctx, flow, ids)) do
      if test(ff.group(ctx, flow, down), down) then
        return true
      end
    end
    after = ids[#ids] or after
    if #ids < PAGE then
      return false, nil, after ~= ''
    end
  until ctx.work <= 0
  return nil, after
end

-- Return whether a member feeds a group that is pending, other than that of `but`; as leads_to.
local function is_needed(ctx, flow, uuid, after, but)
  return leads_to(ctx, flow, uuid, after, function(group, down)
    return down ~= but and group.state == 'pending'
  end)
end

-- Return why the other upstream executions of a group are cancelled.
local function reason_of(ctx, group)
  if group.policy == 'all_of' then
    return 'sibling_failed {fp:' .. ctx.partition .. '}:' .. group.decided
  end
  return 'sibling_quorum_' .. group.state
end

-- others: cancel the other upstream executions of a group that was decided, unless another group still needs them.
ff.define_job('others', function(ctx, what, cursor, limit)
  local flow, uuid = ff.flow(ctx, string.sub(what, 1, 36)), string.sub(what, 38)
  local group = flow and ff.group(ctx, flow, uuid)
  if not group or group.state == 'pending' then
    return nil
  end
  return each_edge(ctx, flow, 'i' .. uuid .. ':', cursor, limit, function(edge, _, walked)
    local record = ff.result_of(edge, group) == '' and ff.load(ctx, edge.up)
    if record and record.words.phase ~= 'terminal' then
      local needed, stopped = is_needed(ctx, flow, edge.up, walked, uuid)
      if needed == false then
        ff.cancel_member(ctx, record, reason_of(ctx, group))
      end
      return stopped
    end
  end)
end)

-- roots: let the members of a whole graph run to which no edge leads.
ff.define_job('roots', function(ctx, id, _, limit)
  local flow = ff.flow(ctx, id)
  local uuids = flow and ff.links(ctx, flow, 'r', '', limit) or {}
  for _, uuid in ipairs(uuids) do
    ff.isolated(ctx, uuid, function()
      local record = ff.load(ctx, uuid)
      if record and record.words.eligibility == 'blocked_by_dependencies' then
        ff.let_run(ctx, record)
      end
    end)
    call('ZREM', flow.links, 'r' .. uuid)
  end
  ff.handled(ctx, #uuids, #uuids)
  return #uuids == limit and '-' or nil
end)

-- Return whether a cancelled flow takes a member along.
local function takes_along(ctx, flow, record)
  if record.words.phase == 'terminal' or flow.acked ~= '' and ff.has_link(flow, 'a' .. record.uuid) then
    return false
  end
  local is_held = record.words.leased and tonumber(record.expires) > ctx.now
  return flow.cancel_policy == 'cancel_all' or not is_held
end

-- cancel: cancel the members of a cancelled flow, as its policy says.
ff.define_job('cancel', function(ctx, id, cursor, limit)
  local flow = ff.flow(ctx, id)
  if not flow or not ff.is_cancelling(flow) then
    return nil
  end
  return walk(ctx, cursor, limit, function(after, most)
    return ff.links(ctx, flow, 'm', after, most)
  end, function(uuid)
    ff.isolated(ctx, uuid, function()
      local record = ff.load(ctx, uuid)
      if record and takes_along(ctx, flow, record) then
        ff.cancel_member(ctx, record, flow.cancel_reason)
      end
    end)
    ff.handled(ctx, 1, 2)
  end)
end)

-- Return whether every edge that leaves a member leads to a group that was satisfied without it. Return nil and the last link if
-- the call has no work left to look at all, behind one or ''.
local function is_covered(ctx, flow, uuid, after)
  local is_open, stopped, leads = leads_to(ctx, flow, uuid, after, function(group)
    return group.state ~= 'satisfied' or group.policy ~= 'any_of' and group.policy ~= 'quorum'
  end)
  if stopped then
    return nil, stopped
  end
  return not is_open and leads
end

-- decide: find out whether a flow has failed whose members have all ended, some of them badly.
ff.define_job('decide', function(ctx, id, cursor, limit)
  local flow = ff.flow(ctx, id)
  if not flow or flow.ended ~= '' or flow.sealed == '' then
    return nil
  end
  for state, count in pairs(flow.counts_of) do
    if count > 0 and not ff.ENDED[state] then
      return nil
    end
  end
  local has_failed = false
  local reached = walk(ctx, cursor, limit, function(after, most)
    return ff.links(ctx, flow, 'b', after, most)
  end, function(uuid, walked)
    local covered, stopped = is_covered(ctx, flow, uuid, walked)
    has_failed = has_failed or covered == false
    ff.handled(ctx, 1, 0)
    return has_failed and '' or stopped
  end)
  if has_failed then
    ff.end_flow(ctx, flow, 'failed')
    return nil
  elseif not reached then
    ff.end_flow(ctx, flow, 'completed')
  end
  return reached
end)

-- Ends and replays --------------------------------------------------------------------------------------------------

-- Remove a member from its flow, with its public state, or nil if that is unreadable: it is then taken from one of the states
-- of work that has not ended.
function ff.leave_flow(ctx, flow, uuid, public)
  call('ZREM', flow.links, 'm' .. uuid, 'b' .. uuid, 'r' .. uuid)
  for _, state in ipairs(public and {} or ff.PUBLIC_STATES) do
    if not public and not ff.ENDED[state] and (flow.counts_of[state] or 0) > 0 then
      public = state
    end
  end
  ff.count_member(ctx, flow.id, public, nil)
  ff.set_flow(ctx, flow, 'nodes', ff.text(tonumber(flow.nodes) - 1))
end

-- Return whether an execution ended in a way that lets its flow fail.
function ff.ends_badly(record)
  local outcome = record.words.outcome
  return outcome == 'failed' or outcome == 'expired' or outcome == 'cancelled' and record.cancelled_by ~= 'flow'
end

-- Note that a member has ended: what it leads to is resolved before the call ends.
function ff.note_member_end(ctx, record)
  local flow = ff.flow(ctx, record.flow)
  if not flow then
    return
  end
  if ff.ends_badly(record) then
    call('ZADD', flow.links, 0, 'b' .. record.uuid)
  end
  ff.enqueue(ctx, 'ended', flow.id .. ':' .. record.uuid)
end

-- Cancel a member that no worker holds if its flow was cancelled and takes it along. Return whether it was cancelled.
function ff.follow_cancellation(ctx, record)
  local flow = ff.flow(ctx, record.flow)
  if not flow or not ff.is_cancelling(flow) or not takes_along(ctx, flow, record) then
    return false
  end
  ff.cancel_member(ctx, record, flow.cancel_reason)
  return true
end

-- Note that a member of a flow is replayed, which opens the flow again. Return the state in which it begins: one that ended
-- before its edges let it run waits for them, and an impossible group begins another life.
function ff.replay_member(ctx, record)
  local flow = ff.flow(ctx, record.flow)
  local state = ff.READY
  if not flow then
    return state
  end
  for _, name in ipairs({ 'cancel_policy', 'cancel_reason', 'cancelled_at', 'acked' }) do
    ff.set_flow(ctx, flow, name, '')
  end
  local group = ff.group(ctx, flow, record.uuid)
  if group and group.force ~= '' and group.state ~= 'satisfied' then
    state = ff.WAITING_FOR_EDGES
    if group.state == 'impossible' then
      ff.open_group(ctx, flow, record.uuid, group)
    end
  end
  call('ZREM', flow.links, 'b' .. record.uuid, 'a' .. record.uuid)
  ff.enqueue(ctx, 'opened', flow.id .. ':' .. record.uuid)
  return state
end

-- Inputs ------------------------------------------------------------------------------------------------------------

-- Return a page of the results that edges pass to a member, in the order of the edges, within the call's work budget: how far
-- it came, or '' if there are no more; then per edge its id, the argument, the upstream uuid, and that one's state, codec,
-- result, error, class and detail of the error, and reason of its cancellation. A group that does not want all successes
-- passes only those.
function ff.inputs(ctx, record, after)
  local flow = ff.flow(ctx, record.flow)
  local rows, last = {}, ''
  if not flow then
    return { '', rows }
  end
  local found = ff.links(ctx, flow, 'd' .. record.uuid .. ':', after, PAGE)
  for i, link in ipairs(found) do
    local id = string.sub(link, 14)
    local edge = ff.edge(ctx, flow, id)
    local result = edge.result
    if result ~= 's' then
      local group = ff.group(ctx, flow, record.uuid)
      result = group.policy == 'all_ended' and ff.result_of(edge, group) or ''
    end
    if result ~= '' then
      local values = call(
        'HMGET', ff.record_key(ctx, edge.up), 'state', 'codec', 'result', 'error', 'error_class', 'error_detail',
        'cancel_reason'
      )
      local row = { id, edge.ref, edge.up, result, values }
      rows[#rows + 1] = row
      ff.spend(ctx, 2, #(values[3] or '') + #(values[6] or ''))
    end
    last = link
    if ctx.work <= 0 and i < #found then
      return { last, rows }
    end
  end
  return { #found == PAGE and last or '', rows }
end
