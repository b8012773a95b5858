-- The last claims of each worker instance, kept to answer repeated claims.

-- Return what a holder says, pack{worker id, instance, topic, what a quota of another partition admitted}: the worker id, the
-- topic or '', what was admitted or '', and how records store the holder.
ff.holder_in = ff.remembering(function(text)
  local parts = ff.unpack(text)
  local worker = parts[1] or ''
  return {
    worker = worker, topic = parts[3] or '', admitted = parts[4] or '', packed = ff.pack({ worker, parts[2] or '' }),
  }
end)

-- Read a memory of a worker instance, for a worker id.
local function read_memory(ctx, field, worker)
  local parts = ff.unpack(call('HGET', ctx.base .. ':claims', field) or '') or {}
  return { field = field, parts = parts, kept = tonumber(parts[1]) or 0, memory = parts[2], worker = worker }
end

-- Return the remembered claims of a worker instance, pack{namespace, instance}. An instance belongs to one worker id; for
-- another worker id return nil and the failure.
function ff.claims_of(ctx, instance, worker)
  local claims = read_memory(ctx, instance, worker)
  local owner = claims.parts[3]
  if owner and owner ~= worker and claims.kept > ctx.now then
    return nil, ff.failure('instance_of_other_worker', (ff.behind_first(instance)), owner)
  end
  return claims
end

-- Return the remembered grants of a worker instance.
function ff.grants_of(ctx, instance, worker)
  return read_memory(ctx, 'g' .. instance, worker)
end

-- Keep what is remembered of a worker instance, and the instance for its worker id, for `ttl` ms at least. Store the fields
-- that follow `ttl`.
function ff.keep_instance(ctx, claims, ttl, ...)
  claims.kept = math.max(claims.kept, ctx.now + ttl)
  local parts = claims.parts
  parts[1], parts[2], parts[3] = ff.text(claims.kept), claims.memory or '', claims.worker
  call('HSET', ctx.base .. ':claims', claims.field, ff.pack(parts), ...)
  ff.due_at(ctx, 'retention', 'k' .. claims.field, claims.kept)
end

-- Remember the reply of one more claim for `ttl` ms.
function ff.keep_claim(ctx, claims, claim_id, answer, ttl)
  claims.memory = ff.remember(claims.memory, claim_id, answer)
  ff.keep_instance(ctx, claims, ttl)
end

-- A claim got many ids, so they are stored in a field of their own, a slot, and the memory holds the slot's number.
local function slot_field(claims, slot)
  return claims.field .. '\0' .. slot
end

-- Return the slot behind that of the last claim, whose number, one digit, is the end of the memory.
local function next_slot(claims)
  local last = tonumber(string.sub(claims.memory or '', -1)) or 0
  return ff.text((last + 1) % ff.MAX_CALLS_REMEMBERED)
end

-- Return the uuids that a repeated claim got, or nil if the claim is new.
function ff.got_before(ctx, claims, claim_id)
  local slot = ff.recall(claims.memory, claim_id)
  if not slot then
    return nil
  end
  return ff.unpack(call('HGET', ctx.base .. ':claims', slot_field(claims, slot[1])) or '') or {}
end

-- Remember the items that a claim got for as long as its lease holds, in ms.
function ff.keep_claimed(ctx, claims, claim_id, items, ttl)
  local uuids = {}
  for i = 1, #items do
    uuids[i] = items[i][1]
  end
  -- Every uuid has 36 characters, so this is what ff.pack returns.
  local packed = '36:' .. table.concat(uuids, '36:')
  local slot = next_slot(claims)
  local added = ff.pack({ claim_id, ff.pack({ slot }) })
  local memory = claims.memory or ''
  if #memory % #added ~= 0 then
    -- It is damaged.
    memory = ''
  end
  -- Claims have ids of one length, so the oldest is dropped without a look at what the memory holds.
  claims.memory = string.sub(memory, -(ff.MAX_CALLS_REMEMBERED - 1) * #added) .. added
  ff.keep_instance(ctx, claims, ttl, slot_field(claims, slot), packed)
end

-- Remove the remembered claims of an instance.
function ff.forget_claims(ctx, field)
  local fields = { field }
  for slot = 1, ff.MAX_CALLS_REMEMBERED do
    fields[slot + 1] = slot_field({ field = field }, slot - 1)
  end
  call('HDEL', ctx.base .. ':claims', unpack(fields)) -- bounded: the slots of one instance
end
