-- The secrets that sign waitpoint tokens.
--
-- They are stored in one hash of the partition: current is the kid that signs, kids all of them, s<kid> holds pack{secret,
-- fingerprint, until}. Tokens are signed and checked in Python; the functions only say whether the secret that was used
-- still holds.

-- Return { secret, fingerprint, until } of a kid, or nil if there is none or it is damaged.
function ff.secret_of(ctx, kid)
  local stored = call('HGET', ctx.base .. ':secrets', 's' .. kid)
  local parts = ff.unpack(stored or '') or {}
  local is_whole = parts[3] and (parts[3] == '' or tonumber(parts[3])) and #parts[1] % 2 == 0
    and string.find(parts[1], '^%x+$')
  return is_whole and parts or nil
end

-- Return whether the grace of a secret is over. It is over at its last millisecond.
function ff.is_over(ctx, secret)
  return secret[3] ~= '' and tonumber(secret[3]) <= ctx.now
end

-- Return whether the secret of a kid and fingerprint is the one that signs.
function ff.is_signing(ctx, kid, fingerprint)
  local secret = ff.secret_of(ctx, kid)
  return secret and secret[2] == fingerprint and call('HGET', ctx.base .. ':secrets', 'current') == kid
end

-- Return the kids of a partition whose secrets are valid, and those whose secrets have expired or are damaged.
function ff.sort_kids(ctx)
  local kept, over, seen = {}, {}, {}
  local stored = call('HMGET', ctx.base .. ':secrets', 'kids', 'current')
  local kids = ff.unpack(stored[1] or '') or {}
  -- If the list is damaged, the secret that signs is still known.
  kids[#kids + 1] = stored[2] or nil
  for _, kid in ipairs(kids) do
    local secret = not seen[kid] and ff.secret_of(ctx, kid)
    local list = (not secret or ff.is_over(ctx, secret)) and over or kept
    if not seen[kid] then
      list[#list + 1] = kid
    end
    seen[kid] = true
  end
  return kept, over
end

-- Sign with a secret from now on; the one before is valid until the end of its grace. Return the kid before, or ''.
function ff.promote(ctx, kept, kid, secret, fingerprint, grace)
  local key = ctx.base .. ':secrets'
  local previous = call('HGET', key, 'current')
  local old = previous and ff.secret_of(ctx, previous)
  if old then
    old[3] = ff.text(ctx.now + grace)
    call('HSET', key, 's' .. previous, ff.pack(old))
  end
  local kids, is_known = {}, false
  for i, each in ipairs(kept) do
    kids[i] = each
    is_known = is_known or each == kid
  end
  if not is_known then
    kids[#kids + 1] = kid
  end
  call('HSET', key, 'current', kid, 's' .. kid, ff.pack({ secret, fingerprint, '' }), 'kids', ff.pack(kids))
  return previous or ''
end

-- Return kid, secret and fingerprint of the secret that signs in a partition. If there is none, or it is damaged, the given
-- one signs from now on.
function ff.first_secret(ctx, kid, secret, fingerprint)
  local current = call('HGET', ctx.base .. ':secrets', 'current')
  local stored = current and ff.secret_of(ctx, current)
  if stored then
    return current, stored[1], stored[2]
  end
  local known = ff.secret_of(ctx, kid)
  if known and not ff.is_over(ctx, known) then
    secret, fingerprint = known[1], known[2]
  end
  ff.promote(ctx, ff.sort_kids(ctx), kid, secret, fingerprint, 0)
  return kid, secret, fingerprint
end
