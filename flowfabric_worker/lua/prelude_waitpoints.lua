-- Waitpoints: how they are stored, and whether each is pending, active or closed.

-- The parts of a stored waitpoint, in their order. A missing moment or number is ''; `first` is the number of the first
-- signal that was buffered.
local PARTS = { 'name', 'kid', 'created', 'expires', 'activated', 'suspension', 'life', 'first' }

-- Return the stored form of a waitpoint. Parts that a newer release added are kept.
local function pack_waitpoint(waitpoint)
  local parts = {}
  for i, name in ipairs(PARTS) do
    parts[i] = waitpoint[name]
  end
  ff.append(parts, waitpoint.further)
  return ff.pack(parts)
end

-- Return a waitpoint of an execution, or nil if the execution has none of that id.
function ff.waitpoint(ctx, uuid, id)
  local text = call('HGET', ff.waits_key(ctx, 'w', uuid), 'w' .. id)
  if not text then
    return nil
  end
  local parts, waitpoint = ff.unpack(text), { id = id, further = {} }
  for i, name in ipairs(PARTS) do
    waitpoint[name] = parts[i] .. ''
  end
  for i = #PARTS + 1, #parts do
    waitpoint.further[i - #PARTS] = parts[i]
  end
  return waitpoint
end

-- Return 'pending' or 'active'; or 'closed', the reason, and whether the waitpoint is closed for good. A waitpoint that closed
-- with its execution, or expired before its suspension, is opened again when it is asked for.
function ff.standing(ctx, uuid, waitpoint)
  local stored = call('HMGET', ff.waits_key(ctx, 'w', uuid), 's' .. waitpoint.suspension, 'e' .. waitpoint.life)
  if waitpoint.suspension ~= '' then
    if not stored[1] then
      return 'active'
    end
    local parts = ff.unpack(stored[1])
    return 'closed', parts[1], parts[2] == '1'
  end
  local ended = stored[2] and ff.unpack(stored[2])
  if tonumber(waitpoint.expires) <= (ended and tonumber(ended[2]) or ctx.now) then
    return 'closed', 'expired', false
  elseif ended then
    return 'closed', ended[1], false
  end
  return 'pending'
end

-- Return how many waitpoints of an execution are open, after removing expired ones from the index.
function ff.count_open(ctx, uuid)
  local key = ff.waits_key(ctx, 'o', uuid)
  ff.chunked('ZREM', key, call('ZRANGE', key, '-inf', ctx.now, 'BYSCORE', 'LIMIT', 0, 100))
  return call('ZCOUNT', key, '(' .. ctx.now_text, '+inf')
end

-- Return the waitpoint that a call asks for by its name, and its state: 'new', 'reopened', or as ff.standing returns it. A
-- waitpoint that closed without an answer is opened again under its id. A waitpoint that a replay forgot is a new one.
function ff.asked_for(ctx, record, name, new_id, kid)
  local key = ff.waits_key(ctx, 'w', record.uuid)
  local stored = call('HMGET', key, 'n' .. name, 'life', 'forgotten')
  local life = stored[2] or '0'
  local waitpoint = stored[1] and ff.waitpoint(ctx, record.uuid, stored[1])
  if not waitpoint or tonumber(waitpoint.life) < tonumber(stored[3] or '0') then
    return {
      id = new_id, name = name, kid = kid, created = ctx.now_text, expires = '', activated = '', suspension = '',
      life = life, first = '', further = {},
    }, 'new'
  end
  local standing, why, for_good = ff.standing(ctx, record.uuid, waitpoint)
  if standing == 'closed' and not for_good then
    waitpoint.life, waitpoint.suspension, waitpoint.activated, standing = life, '', '', 'reopened'
  end
  local secret = ff.secret_of(ctx, waitpoint.kid)
  if not secret or ff.is_over(ctx, secret) then
    -- Its token is not valid any more, so a new one is signed.
    waitpoint.kid = kid
  end
  return waitpoint, standing, why
end

-- Return whether a waitpoint was made to show another document than a caller has. `shown` is '=' + document, or ''.
function ff.shows_another(ctx, uuid, waitpoint, shown)
  local stored = shown ~= '' and call('HGET', ff.waits_key(ctx, 'w', uuid), 'v' .. waitpoint.id)
  return stored and stored ~= shown
end

-- Keep the document that a waitpoint shows; the first one stands. Return whether this one is the first.
function ff.show(ctx, uuid, waitpoint, shown)
  return shown ~= '' and call('HSETNX', ff.waits_key(ctx, 'w', uuid), 'v' .. waitpoint.id, shown) == 1
end

-- Write a waitpoint.
function ff.write_waitpoint(ctx, uuid, waitpoint)
  local key = ff.waits_key(ctx, 'w', uuid)
  call('HSET', key, 'n' .. waitpoint.name, waitpoint.id, 'w' .. waitpoint.id, pack_waitpoint(waitpoint))
end

-- Write a waitpoint that is open until a moment, or '+inf' if its suspension closes it.
function ff.open_waitpoint(ctx, uuid, waitpoint, score)
  ff.write_waitpoint(ctx, uuid, waitpoint)
  call('ZADD', ff.waits_key(ctx, 'o', uuid), score, waitpoint.id)
end
