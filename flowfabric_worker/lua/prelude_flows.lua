-- Flows: their records, the counts of their members, and the state that follows from these.
--
-- A flow and all its members are in one partition. Its keys, each with the flow's id at the end:
--
--   :flow:    hash  its record; see FIELDS below
--   :edges:   hash  per edge id the edge, see prelude_edges.lua
--   :groups:  hash  per downstream uuid the group of the edges that lead to it
--   :links:   zset  what is walked in order; all scores are 0, and the first letter says what a member is:
--                   m<uuid>              a member of the flow
--                   o<uuid>:<edge>       an edge that leaves a member
--                   i<uuid>:<edge>       an edge that leads to a member
--                   d<uuid>:<place>:<edge>  such an edge that passes a result, in the order of staging
--                   g<uuid>              a member that has a group
--                   k<uuid>              a member whose group wants more edges than it has
--                   b<uuid>              a member that ended badly: failed, expired, or cancelled by other than the flow
--                   r<uuid>              a member without edges that lead to it, of a graph whose roots are not all ready
--                   a<uuid>              a member that is not cancelled with the flow: a detached child, or one that a caller
--                                        cancels itself and has acknowledged
--
-- The zset :flows has the flows of the partition, by namespace and id; the zset :building those of which a part is stored, in
-- the same way. For the hash :jobs see prelude_jobs.lua.

-- The fields of a flow's record that a call loads. Each is '' if absent: namespace (packed), kind, state, number of members in
-- each public state joined by ',', revision of the graph, numbers of members and edges, '1' once it is sealed, the number of
-- items of its graph that are stored while it is being built, when it ended, the longest retention of a member in ms, until
-- when a member's idempotency key is kept, policy, reason and moment of its cancellation, and '1' if there are
-- members that are not cancelled with it.
local FIELDS = {
  'ns', 'kind', 'state', 'counts', 'revision', 'nodes', 'edges', 'sealed', 'building', 'ended', 'keep', 'keep_until',
  'cancel_policy', 'cancel_reason', 'cancelled_at', 'acked', 'begun',
}

-- Return one of the keys of a flow.
function ff.flow_key(ctx, kind, id)
  return ctx.base .. ':' .. kind .. ':' .. id
end

-- What is stored of how many members are in each public state, split once per text, since flows of one graph have the same.
local MOST_COUNTS = 1024
local known_counts, known_count = {}, 0

local function split_counts(text)
  local split = {}
  for number in string.gmatch(text, '[^,]+') do
    split[#split + 1] = tonumber(number) or 0
  end
  if known_count >= MOST_COUNTS then
    known_counts, known_count = {}, 0
  end
  known_counts[text], known_count = split, known_count + 1
  return split
end

-- Read how many members of a flow are in each public state, of those states that have any.
local function read_counts(flow)
  local split = known_counts[flow.counts] or split_counts(flow.counts)
  for i = 1, #split do
    if split[i] ~= 0 then
      flow.counts_of[ff.PUBLIC_STATES[i] or ''] = split[i]
    end
  end
end

-- Return a flow that a call begins to use, with the values of FIELDS. The table is made with all its fields, because one that
-- grows is made several times.
local function new_flow(ctx, id, v)
  local flow = {
    id = id, key = ff.flow_key(ctx, 'flow', id), links = ff.flow_key(ctx, 'links', id), written = {}, counts_of = {},
    edge_of = {}, new_edges = {}, group_of = {}, new_groups = {}, is_counted = false,
    ns = v[1] or '', kind = v[2] or '', state = v[3] or '', counts = v[4] or '', revision = v[5] or '',
    nodes = v[6] or '', edges = v[7] or '', sealed = v[8] or '', building = v[9] or '', ended = v[10] or '',
    keep = v[11] or '', keep_until = v[12] or '', cancel_policy = v[13] or '', cancel_reason = v[14] or '',
    cancelled_at = v[15] or '', acked = v[16] or '', begun = v[17] or '',
  }
  read_counts(flow)
  ctx.flows[id] = flow
  return flow
end

-- Return the record of a flow, or nil if there is none. It is loaded once per call.
function ff.flow(ctx, id)
  local flow = ctx.flows[id]
  if flow == nil then
    local values = call('HMGET', ff.flow_key(ctx, 'flow', id), unpack(FIELDS)) -- bounded: a fixed list of names
    flow = values[1] and new_flow(ctx, id, values) or false
    ctx.flows[id] = flow
    -- It is read here, and written when the call ends.
    ff.spend(ctx, 2, 0)
  end
  return flow or nil
end

-- Return a flow of a namespace that is built. Return nil and the failure if there is none.
function ff.flow_in(ctx, namespace, id)
  local flow = ff.flow(ctx, id)
  if not flow or flow.ns ~= namespace or flow.building ~= '' then
    return nil, ff.failure('flow_not_found', id)
  end
  return flow
end

-- Set a field of a flow's record, '' for none. It is written at the end of the call.
function ff.set_flow(ctx, flow, name, value)
  flow[name], flow.written[name] = value, value
  ctx.changed_flows[flow.id] = flow
end

-- Note that the graph of a flow has changed.
function ff.revise_flow(ctx, flow)
  ff.set_flow(ctx, flow, 'revision', ff.text(tonumber(flow.revision) + 1))
  ff.set_flow(ctx, flow, 'mutated', ctx.now_text)
end

-- Return a new flow without members. `kind` is a word of the caller's, `tags` is packed.
function ff.new_flow(ctx, id, namespace, kind, tags)
  local flow = new_flow(ctx, id, {})
  for name, value in pairs({
    ns = namespace, kind = kind, tags = tags, created = ctx.now_text, mutated = ctx.now_text, revision = '0',
    nodes = '0', edges = '0', state = 'open',
  }) do
    ff.set_flow(ctx, flow, name, value)
  end
  return flow
end

-- List a flow among those that are built, or among those that are not.
function ff.list_flow(ctx, flow)
  local is_built = flow.building == ''
  call('ZREM', ctx.base .. (is_built and ':building' or ':flows'), flow.ns .. flow.id)
  call('ZADD', ctx.base .. (is_built and ':flows' or ':building'), 0, flow.ns .. flow.id)
  ctx.builds = nil
end

-- Links -------------------------------------------------------------------------------------------------------------

-- Return up to `limit` links of a flow that begin with `prefix`, without it, after one of them or ''.
function ff.links(ctx, flow, prefix, after, limit)
  local from = after ~= '' and '(' .. prefix .. after or '[' .. prefix
  local found = call('ZRANGE', flow.links, from, '(' .. prefix .. '\255', 'BYLEX', 'LIMIT', 0, limit)
  for i = 1, #found do
    found[i] = string.sub(found[i], #prefix + 1)
  end
  ff.spend(ctx, 1, 0)
  return found
end

local function descending(one, other)
  return one > other
end

-- Add links to a flow. A small sorted set is walked from its beginning for each new member, so the last ones come first.
function ff.add_links(flow, links)
  table.sort(links, descending)
  local entries = {}
  for i = 1, #links do
    entries[2 * i - 1], entries[2 * i] = 0, links[i]
  end
  ff.chunked('ZADD', flow.links, entries)
end

-- Return whether a flow has a link.
function ff.has_link(flow, member)
  return call('ZSCORE', flow.links, member) ~= false
end

-- Members -----------------------------------------------------------------------------------------------------------

-- Return whether an execution is a member of a flow that is being built: it is hidden until the flow is complete.
function ff.is_hidden(ctx, uuid)
  if ctx.builds == nil then
    ctx.builds = call('EXISTS', ctx.base .. ':building') == 1
  end
  if not ctx.builds then
    return false
  end
  local readable, id = pcall(call, 'HGET', ff.record_key(ctx, uuid), 'flow')
  local flow = readable and id and ff.flow(ctx, id)
  return flow and flow.building ~= ''
end

-- Note that a member went from one public state to another; nil stands for a new or a removed member.
function ff.count_member(ctx, id, old, new)
  local flow = ff.flow(ctx, id)
  if flow then
    local counts = flow.counts_of
    if old then
      counts[old] = (counts[old] or 0) - 1
    end
    if new then
      counts[new] = (counts[new] or 0) + 1
    end
    ctx.changed_flows[id], flow.is_counted = flow, true
  end
end

-- Add an execution to a flow: link it, and let the flow be kept as long as this member.
function ff.join_flow(ctx, flow, record)
  ff.set_flow(ctx, flow, 'nodes', ff.text(tonumber(flow.nodes) + 1))
  local keep, dedup_until = ff.policy(record).retention or ff.DEFAULT_RETENTION_MS, ff.number(record.dedup_until)
  if keep > (ff.number(flow.keep) or -1) then
    ff.set_flow(ctx, flow, 'keep', ff.text(keep))
  end
  if dedup_until and dedup_until > (ff.number(flow.keep_until) or 0) then
    ff.set_flow(ctx, flow, 'keep_until', ff.text(dedup_until))
  end
end

-- State -------------------------------------------------------------------------------------------------------------

-- Return whether a flow was cancelled and takes along what waits.
function ff.is_cancelling(flow)
  return flow.cancel_policy ~= '' and flow.cancel_policy ~= 'flow_only'
end

-- Mark a flow as cancelled. `policy` says which members are taken along.
function ff.mark_cancelled(ctx, flow, policy, reason)
  for name, value in pairs({
    cancel_policy = policy, cancel_reason = reason, cancelled_at = ctx.now_text, mutated = ctx.now_text, state = 'cancelled',
  }) do
    ff.set_flow(ctx, flow, name, value)
  end
  flow.is_counted = true
end

-- End a flow: all members have ended. It is removed with its members when its retention is over.
function ff.end_flow(ctx, flow, state)
  ff.set_flow(ctx, flow, 'state', state)
  ff.set_flow(ctx, flow, 'ended', ctx.now_text)
  local kept = ctx.now + (ff.number(flow.keep) or ff.DEFAULT_RETENTION_MS)
  ff.due_at(ctx, 'retention', 'y' .. flow.id, math.max(kept, tonumber(flow.keep_until) or 0))
end

-- Return the state of a flow that has not ended, from the numbers of its members in each state.
local function state_of(flow, is_open)
  local counts = flow.counts_of
  if flow.cancel_policy ~= '' then
    return 'cancelled'
  elseif (counts.active or 0) > 0 then
    return 'running'
  elseif (counts.waiting or 0) > 0 then
    return flow.begun == '' and 'open' or 'running'
  end
  return is_open and 'blocked' or 'open'
end

-- Derive the state of a flow whose members changed. A flow without members that may still run is over once it is sealed or
-- cancelled; members that ended badly are looked at by a job of their own.
local function settle(ctx, flow)
  flow.is_counted = false
  local numbers, open, ended = {}, 0, 0
  for i, state in ipairs(ff.PUBLIC_STATES) do
    local count = flow.counts_of[state] or 0
    numbers[i] = ff.text(count)
    if ff.ENDED[state] then
      ended = ended + count
    else
      open = open + count
    end
  end
  ff.set_flow(ctx, flow, 'counts', table.concat(numbers, ','))
  if flow.begun == '' and (ended > 0 or (flow.counts_of.active or 0) > 0) then
    ff.set_flow(ctx, flow, 'begun', '1')
  end
  if flow.building ~= '' then
    return
  elseif open > 0 or flow.sealed == '' and flow.cancel_policy == '' then
    if flow.ended ~= '' then
      ff.set_flow(ctx, flow, 'ended', '')
      ff.due_at(ctx, 'retention', 'y' .. flow.id, false)
    end
    local state = state_of(flow, open > 0)
    if state ~= flow.state then
      ff.set_flow(ctx, flow, 'state', state)
    end
  elseif flow.ended == '' then
    if flow.cancel_policy ~= '' then
      ff.end_flow(ctx, flow, 'cancelled')
    elseif #ff.links(ctx, flow, 'b', '', 1) == 0 then
      ff.end_flow(ctx, flow, 'completed')
    else
      ff.enqueue(ctx, 'decide', flow.id)
    end
  end
end

-- Derive the states of the flows whose members this call changed.
function ff.settle_flows(ctx)
  for _, flow in pairs(ctx.changed_flows) do
    if flow.is_counted then
      settle(ctx, flow)
    end
  end
end

-- Write what this call changed of flows.
function ff.flush_flows(ctx)
  for id, flow in ff.each_noted(ctx, 'changed_flows') do
    if not flow.is_gone then
      local list = {}
      for name, value in pairs(flow.written) do
        list[#list + 1], list[#list + 2] = name, value
      end
      if #list > 0 then
        call('HSET', flow.key, unpack(list)) -- bounded: the fields of a flow
      end
      ff.chunked('HSET', ff.flow_key(ctx, 'edges', id), ff.packed_edges(flow))
      ff.chunked('HSET', ff.flow_key(ctx, 'groups', id), ff.packed_groups(flow))
    end
    flow.written, flow.new_edges, flow.new_groups = {}, {}, {}
  end
end
