-- A suspension that begins: the waitpoints that it binds, the buffered signals that it counts, and what it writes.
--
-- One call counts a page of the signals that were buffered at the waitpoints. What earlier calls counted for the same
-- request is the draft of the suspension, under the key that the suspension will have.

-- How many buffered signals one call counts.
local COUNTED_AT_ONCE = 100

-- Return the failure of a suspension that cannot take a waitpoint over, or nil if it can.
local function refusal(waitpoint, standing, why, wants_pending)
  if standing == 'pending' or not wants_pending and (standing == 'new' or standing == 'reopened') then
    return nil
  elseif why == 'expired' then
    return ff.failure('pending_waitpoint_expired', waitpoint.id)
  end
  return ff.failure('waitpoint_not_pending', waitpoint.id)
end

-- Return the waitpoints of a suspension from argument `first` on, or nil and the failure. Each is: name, id of a pending
-- waitpoint or '', id of a new one, '1' if an unknown id can only be that of another execution, '=' + document or ''.
function ff.bind(ctx, record, args, first)
  local waitpoints, opened = {}, 0
  for at = first, #args, 5 do
    local waitpoint, standing, why = ff.asked_for(ctx, record, args[at], args[at + 2], args[11])
    if args[at + 1] ~= '' and waitpoint.id ~= args[at + 1] then
      if args[at + 3] == '1' and not ff.waitpoint(ctx, record.uuid, args[at + 1]) then
        return nil, ff.failure('invalid_waitpoint_for_execution', args[at + 1])
      end
      return nil, ff.failure('waitpoint_not_found', args[at + 1])
    end
    local refused = refusal(waitpoint, standing, why, args[at + 1] ~= '')
    if refused then
      return nil, refused
    elseif ff.shows_another(ctx, record.uuid, waitpoint, args[at + 4]) then
      return nil, ff.failure('document_mismatch', args[at])
    end
    waitpoint.shown = args[at + 4]
    opened = opened + (standing == 'pending' and 0 or 1)
    waitpoints[#waitpoints + 1] = waitpoint
  end
  if #waitpoints > 0 and ff.count_open(ctx, record.uuid) + opened > ff.MAX_WAITPOINTS then
    return nil, ff.failure('too_many_waitpoints', record.uuid, ff.MAX_WAITPOINTS)
  end
  return waitpoints
end

-- Count a page of the signals that were buffered at the waitpoints of a new suspension, after the last one that its draft
-- has counted. Return whether there are no more.
local function count_buffered(ctx, uuid, draft, by_id)
  local signals = ff.waits_key(ctx, 'g', uuid)
  local last = tonumber(call('HGET', signals, 'last') or '0')
  local names, stop = {}, math.min(draft.position + COUNTED_AT_ONCE, last)
  for i = draft.position + 1, stop do
    names[#names + 1] = 'h' .. ff.text(i)
  end
  if #names > 0 then
    for i, text in ipairs(call('HMGET', signals, unpack(names))) do -- bounded: one page
      if i > 1 and ctx.work <= 0 then
        stop = draft.position + i - 1
        break
      end
      local signal = ff.read_head(text)
      if by_id[signal.waitpoint] then
        ff.count_signal(ctx, draft.key, draft.leaves, draft.counts, signal)
      end
    end
  end
  draft.position = stop
  return stop == last
end

-- Return the draft of the next suspension: what an earlier call counted for the same request, or a new one.
function ff.draft_of(ctx, record, args, waitpoints)
  local number = (ff.suspension_of(record) or 0) + 1
  local draft = {
    number = number, key = ff.suspension_key(ctx, record.uuid, number), leaves = ff.leaves(args[10]), from = math.huge,
  }
  for _, waitpoint in ipairs(waitpoints) do
    draft.from = math.min(draft.from, tonumber(waitpoint.first) or math.huge)
  end
  local stored = call('HMGET', draft.key, 'request', 'counts', 'position')
  if stored[1] == args[13] and stored[3] then
    draft.counts, draft.position = ff.read_counts(stored[2], draft.leaves), tonumber(stored[3])
    return draft
  end
  call('UNLINK', draft.key)
  draft.counts, draft.position = ff.read_counts('', draft.leaves), draft.from - 1
  return draft
end

-- Write a suspension that begins now, with its waitpoints. Return the fields to write to the record.
function ff.begin_suspension(ctx, record, args, draft, waitpoints)
  local until_ms = args[7] ~= '' and ff.text(ctx.now + tonumber(args[7])) or ''
  local ids = {}
  for i, waitpoint in ipairs(waitpoints) do
    ids[i] = waitpoint.id
    waitpoint.suspension, waitpoint.activated, waitpoint.expires = ff.text(draft.number), ctx.now_text, until_ms
    ff.open_waitpoint(ctx, record.uuid, waitpoint, '+inf')
    ff.show(ctx, record.uuid, waitpoint, waitpoint.shown)
  end
  local last = tonumber(call('HGET', ff.waits_key(ctx, 'g', record.uuid), 'last') or '0')
  call('HDEL', draft.key, 'request', 'position')
  call(
    'HSET', draft.key, 'id', args[4], 'at', ctx.now_text, 'until', until_ms, 'behavior', args[5], 'reason', args[6],
    'delay', args[8], 'continuation', args[9], 'condition', args[10], 'counts', table.concat(draft.counts, ','),
    'waitpoints', ff.pack(ids), 'from', math.min(draft.from, last + 1)
  )
  local list = {}
  ff.begin_waits(record, list)
  ff.append(list, {
    'mutated', ctx.now_text, 'suspension', draft.number, 'suspended_at', ctx.now_text, 'suspended_until', until_ms,
  })
  return list
end

-- Count the signals that were buffered at the waitpoints of a new suspension, as many as one call may. Return whether all are
-- counted. What was counted is kept in the draft if there are more, or if nothing else will be written.
function ff.count_page(ctx, record, args, draft, waitpoints, keeps)
  if draft.from == math.huge then
    return true
  end
  local by_id = {}
  for _, waitpoint in ipairs(waitpoints) do
    by_id[waitpoint.id] = true
  end
  local is_all = count_buffered(ctx, record.uuid, draft, by_id)
  if not is_all or keeps and not ff.is_met(draft.leaves, draft.counts) then
    call('HSET', draft.key, 'request', args[13], 'counts', table.concat(draft.counts, ','), 'position', draft.position)
  end
  return is_all
end
