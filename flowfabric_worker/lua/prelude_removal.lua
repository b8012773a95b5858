-- How ended executions and flows are removed with everything that the partition holds of them.

-- Remove what a partition holds of an ended execution. Records and listing entries are removed at the end of the call,
-- many at a time.
local function remove_all_of(ctx, uuid, class, public, idempotency_key, keys, budgets)
  ff.count(ctx, class, uuid, public, nil)
  if idempotency_key and idempotency_key ~= '' then
    local key = ctx.base .. ':key:' .. idempotency_key
    if call('GET', key) == uuid then
      call('DEL', key)
    end
  end
  ff.remove_keys(ctx, keys)
  ff.end_shares(ctx, uuid, budgets, true)
  ctx.is_gone[uuid] = true
  ctx.gone[#ctx.gone + 1] = ff.record_key(ctx, uuid)
end

-- Remove an ended execution with all its keys.
function ff.remove(ctx, record)
  local public, _, _, index = ff.derive(record)
  if index then
    ff.due_at(ctx, index, 'x' .. record.uuid, false)
  end
  local keys = call('HGET', record.key, 'keys')
  remove_all_of(ctx, record.uuid, record.class, public, record.idempotency_key, keys, record.budgets)
  record.words = nil
end

-- How many members of a flow one entry removes.
local MEMBERS_REMOVED = 16

-- The fields that a removal reads.
local REMOVED = { 'state', 'class', 'policy', 'ended', 'dedup_until', 'idempotency_key', 'keys', 'budgets' }

-- Remove an overdue execution, reading only the fields that the removal needs. Return false without a change if the
-- execution is not overdue, damaged, or loaded by this call.
function ff.remove_overdue(ctx, uuid)
  if ctx.is_gone[uuid] then
    return true
  elseif ctx.records[uuid] then
    return false
  end
  local key = ff.record_key(ctx, uuid)
  local values = call('HMGET', key, unpack(REMOVED)) -- bounded: a fixed list of names
  local state, class, policy, ended_at, dedup_until, idempotency_key, keys, budgets =
    unpack(values, 1, 8) -- bounded: as above
  local words, known, ended = state and ff.words(state), class and ff.class(class), tonumber(ended_at or '')
  if not words or words.phase ~= 'terminal' or not known or not ended or not ff.parse_policy(policy or '') then
    return false
  elseif ff.kept_until({ policy = policy, ended = ended, dedup_until = dedup_until }) > ctx.now then
    return false
  end
  remove_all_of(ctx, uuid, class, words.public, idempotency_key, keys, budgets)
  return true
end

-- Remove some members of a flow whose retention is over, or which was not built in time, and the flow with the last of them.
function ff.remove_flow(ctx, id)
  local flow = ff.flow(ctx, id)
  if not flow or flow.building == '' and flow.ended == '' then
    return
  end
  local uuids = ff.links(ctx, flow, 'm', '', MEMBERS_REMOVED)
  local links = {}
  for i, uuid in ipairs(uuids) do
    ff.isolated(ctx, uuid, function()
      local record = ff.load(ctx, uuid)
      if record then
        ff.remove(ctx, record)
      end
    end)
    links[i] = 'm' .. uuid
  end
  ff.chunked('ZREM', flow.links, links)
  ff.spend(ctx, 5 * #uuids, 0)
  if #uuids == MEMBERS_REMOVED then
    ff.due_at(ctx, 'retention', 'y' .. id, ctx.now)
    return
  end
  for _, kind in ipairs({ 'flow', 'links', 'edges', 'groups' }) do
    call('UNLINK', ff.flow_key(ctx, kind, id))
  end
  call('ZREM', ctx.base .. ':flows', flow.ns .. id)
  call('ZREM', ctx.base .. ':building', flow.ns .. id)
  flow.is_gone = true
end
