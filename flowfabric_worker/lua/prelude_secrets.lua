-- The secrets that sign waitpoint tokens.
--
-- They are stored in one hash of the partition: current is the kid that signs, kids all of them, s<kid> holds pack{secret,
-- fingerprint, until}. Tokens are signed and checked in Python; the functions only say whether the secret that was used
-- still holds.

-- Return pack{secret, fingerprint, until} of a kid as a list, or nil.
function ff.secret_of(ctx, kid)
  local stored = call('HGET', ctx.base .. ':secrets', 's' .. kid)
  return stored and ff.unpack(stored) or nil
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

-- Store the first secret of a partition unless it has one. Return kid, secret and fingerprint of the secret that signs.
function ff.first_secret(ctx, kid, secret, fingerprint)
  local key = ctx.base .. ':secrets'
  if call('HSETNX', key, 'current', kid) == 1 then
    call('HSET', key, 'kids', ff.pack({ kid }), 's' .. kid, ff.pack({ secret, fingerprint, '' }))
  end
  local current = call('HGET', key, 'current')
  local stored = ff.secret_of(ctx, current)
  return current, stored[1], stored[2]
end

-- Return the kids of a partition whose secrets are valid, and those whose secrets have expired.
function ff.sort_kids(ctx)
  local kept, over = {}, {}
  for _, kid in ipairs(ff.unpack(call('HGET', ctx.base .. ':secrets', 'kids') or '')) do
    local secret = ff.secret_of(ctx, kid)
    local list = (not secret or ff.is_over(ctx, secret)) and over or kept
    list[#list + 1] = kid
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
