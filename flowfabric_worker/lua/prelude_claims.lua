-- Part of what every stored function shares: what the last claims of each worker instance got, to answer them again.

-- The last claims of a worker instance, or its last grants: until when they are kept, what each was answered, and the
-- worker id. An instance belongs to one worker id: of another one the failure is answered.
function ff.claims_of(ctx, instance, field, worker)
  local parts = ff.unpack(call('HGET', ctx.base .. ':claims', field) or '') or {}
  local claims = { field = field, parts = parts, kept = tonumber(parts[1]) or 0, memory = parts[2], worker = worker }
  if parts[3] and parts[3] ~= worker and claims.kept > ctx.now then
    return nil, ff.failure('instance_of_other_worker', (ff.behind_first(instance)), parts[3])
  end
  return claims
end

-- Keeps the answer of one more claim for as long as what it gave holds, and what stands in a further field.
function ff.keep_claim(ctx, claims, claim_id, answer, ttl, ...)
  claims.kept = math.max(claims.kept, ctx.now + ttl)
  local parts = claims.parts
  parts[1], parts[2], parts[3] = ff.text(claims.kept), ff.remember(claims.memory, claim_id, answer), claims.worker
  call('HSET', ctx.base .. ':claims', claims.field, ff.pack(parts), ...)
  ff.due_at(ctx, 'retention', 'k' .. claims.field, claims.kept)
end

-- What a claim got is many ids, so they stand in a field of their own, a slot, and the memory holds its number.
local function slot_field(claims, slot)
  return claims.field .. '\0' .. slot
end

local function next_slot(claims)
  local parts = ff.unpack(claims.memory or '') or {}
  local last = #parts > 0 and ff.unpack(parts[#parts]) or {}
  return ff.text(((tonumber(last[1]) or 0) + 1) % ff.CALLS_REMEMBERED)
end

-- The uuids of what a claim got; nil of a new claim.
function ff.got_before(ctx, claims, claim_id)
  local slot = ff.recall(claims.memory, claim_id)
  if not slot then
    return nil
  end
  return ff.unpack(call('HGET', ctx.base .. ':claims', slot_field(claims, slot[1])) or '') or {}
end

-- Keeps what a claim got for as long as its lease holds.
function ff.keep_claimed(ctx, claims, claim_id, items, ttl)
  local uuids = {}
  for i, item in ipairs(items) do
    uuids[i] = item[1]
  end
  local slot = next_slot(claims)
  ff.keep_claim(ctx, claims, claim_id, { slot }, ttl, slot_field(claims, slot), ff.pack(uuids))
end

-- Forgets the last claims of an instance.
function ff.forget_claims(ctx, field)
  local fields = { field }
  for slot = 1, ff.CALLS_REMEMBERED do
    fields[slot + 1] = slot_field({ field = field }, slot - 1)
  end
  call('HDEL', ctx.base .. ':claims', unpack(fields)) -- bounded: the slots of one instance
end
