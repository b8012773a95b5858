-- The memory of answered calls, which makes a repeated call safe.
--
-- Any call may be repeated after its reply was lost. A record keeps the names and replies of its last calls as
-- pack{call id, pack(reply), call id, pack(reply), ...}; a repeated call gets its reply again and changes nothing. The
-- caller mints call ids; the end of a lease is named by its operation and its fence.

-- Return what a call was answered according to a memory, or nil if the call is new.
function ff.recall(memory, call_id)
  -- Nearly every call is new, so its id is looked for before the memory is split.
  if not memory or not string.find(memory, call_id, 1, true) then
    return nil
  end
  local parts = ff.unpack(memory) or {}
  for i = 1, #parts - 1, 2 do
    if parts[i] == call_id then
      return ff.unpack(parts[i + 1])
    end
  end
  return nil
end

-- Return a memory with one more call, without the oldest calls if it is full. A damaged memory starts empty.
function ff.remember(memory, call_id, answer)
  local added = ff.pack({ call_id, ff.pack(answer) })
  local parts = memory and ff.unpack(memory) or {}
  if #parts == 0 or #parts % 2 == 1 then
    return added
  end
  local dropped = {}
  for i = 1, #parts - 2 * (ff.MAX_CALLS_REMEMBERED - 1) do
    dropped[i] = parts[i]
  end
  return string.sub(memory, #ff.pack(dropped) + 1) .. added
end

-- Return whether a call removed something, which the partition remembers because a removed record cannot.
function ff.was_removed(ctx, call_id)
  return ff.recall(call('HGET', ctx.base .. ':meta', 'removed'), call_id) ~= nil
end

-- Remember that a call removed something.
function ff.remember_removal(ctx, call_id)
  local meta = ctx.base .. ':meta'
  call('HSET', meta, 'removed', ff.remember(call('HGET', meta, 'removed'), call_id, { 'removed' }))
end

-- Return the name under which the end of a lease is remembered.
local function end_of(ending, fence)
  return ending .. ' ' .. fence
end

-- Return what the end of a lease was answered, or nil if the lease did not end in this way.
function ff.recall_end(memory, ending, fence)
  return ff.recall(memory, end_of(ending, fence))
end

-- Return the memory of a record's ended leases with one more.
function ff.remember_end(record, ending, fence, answer)
  return ff.remember(record.last, end_of(ending, fence), answer)
end
