-- What a lease holder must show, and to which namespace an execution belongs.

-- Namespaces --------------------------------------------------------------------------------------------------------

-- Return whether an execution belongs to a namespace and is not hidden, even if its record is damaged.
function ff.is_in_namespace(ctx, namespace, uuid)
  return call('ZSCORE', ctx.base .. ':ids', namespace .. uuid) ~= false and not ff.is_hidden(ctx, uuid)
end

-- Load the record of an execution of a namespace. Return it, or nil and the failure.
function ff.load_in(ctx, namespace, uuid, fields)
  local record, failure = ff.load(ctx, uuid, fields)
  if record and (ff.class(record.class).namespace ~= namespace or record.flow and ff.is_hidden(ctx, uuid)) then
    return nil, ff.failure('execution_not_found', uuid)
  end
  return record, failure
end

-- Load the record of an execution of a namespace, and handle what is due of it. Return it, or nil and the failure.
function ff.load_now(ctx, namespace, uuid, fields)
  local record, failure = ff.load_in(ctx, namespace, uuid, fields)
  if record and not ff.catch_up(ctx, record) then
    return nil, ff.failure('execution_not_found', uuid)
  end
  return record, failure
end

-- Fences ------------------------------------------------------------------------------------------------------------

-- The fields that a holder's call reads: the core, and the operations that ended the last leases.
local FENCED = ff.joined({ ff.CORE, { 'last' } })

-- Return the parts of a fence '<lease id>:<epoch>:<attempt id>'. An attempt has the id of its first lease, and the fence of
-- that lease leaves the attempt id empty.
function ff.fence_parts(fence)
  if not fence then
    return nil, 0, nil
  end
  local lease, epoch, attempt = string.match(fence, '^([^:]*):(%d+):(.*)$')
  return lease, tonumber(epoch), attempt ~= '' and attempt or lease
end

-- Return the failure that an execution is not active, with its outcome, epoch, phase and attempt id.
function ff.not_active(record)
  local _, epoch, attempt = ff.fence_parts(record.fence)
  local words = record.words
  return ff.failure('execution_not_active', record.uuid, words.outcome, ff.text(epoch), words.phase, attempt or '')
end

-- Return what a holder's call was answered before, or nil if it is new. A completed execution tells it by its outcome.
local function answer_before(record, fence, ending, call_id)
  if ending == 'complete' and record.words.outcome == 'success' and record.fence == fence then
    return { 'completed' }
  elseif ending then
    return record.last and ff.recall_end(record.last, ending, fence)
  end
  return call_id and ff.recall(record.reported, call_id)
end

-- Return whether a stored moment has passed; it is false if there is none.
local function is_over(ctx, moment)
  return moment and moment ~= '' and tonumber(moment) <= ctx.now
end

-- Make the checks of every call of a lease holder, in this order: exists, repeated, active, revoked, expired, identity. What
-- is due of the execution is handled first, so upkeep does not change the reply. Return the record, or nil and the reply.
-- `ending` names an operation that ends the lease; for any other operation `call_id` names the call and `fields` include
-- `reported`.
function ff.fenced(ctx, uuid, fence, ending, fields, call_id)
  local record, failure = ff.load(ctx, uuid, fields or FENCED)
  if not record then
    return nil, failure
  end
  local before = answer_before(record, fence, ending, call_id)
  if before then
    return nil, before
  end
  local is_due = record.words.phase == 'active' and (is_over(ctx, record.timeout_at) or is_over(ctx, record.deadline))
  if is_due and not ff.catch_up(ctx, record) then
    return nil, ff.failure('execution_not_found', uuid)
  elseif record.words.phase ~= 'active' then
    return nil, ff.not_active(record)
  elseif record.words.ownership == 'lease_revoked' then
    return nil, ff.failure('lease_revoked', uuid)
  elseif record.words.ownership ~= 'leased' or ff.moment_in(record.expires) <= ctx.now then
    return nil, ff.failure('lease_expired', uuid)
  elseif record.fence ~= fence then
    return nil, ff.failure('stale_lease', uuid)
  end
  return record
end
