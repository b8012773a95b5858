-- Shares: what a budget knows of single executions. The hash ':shares:<budget>' has by execution the pack of
--
--   recorded    pack{dimension, amount, ...} that record_spend counted, which release_budget takes back
--   reserved    pack{key, until, pack{dimension, amount, ...}, ...} of its open reservations
--
-- The record of an execution names the budgets that have a share of it in its field `budgets`, so that its end and its
-- removal find them.

ff.SHARING = ff.joined({ ff.CORE, { 'budgets' } })

-- Return the parts of a share, which are empty if there is none.
local function read_share(ctx, address, uuid)
  local parts = ff.unpack(call('HGET', ctx.base .. ':shares:' .. address, uuid) or '') or {}
  return { parts[1] or '', parts[2] or '', unpack(parts, 3) } -- bounded: what a newer release added
end

-- Write a share, or remove it if it is empty.
local function write_share(ctx, address, uuid, parts)
  if parts[1] == '' and parts[2] == '' then
    call('HDEL', ctx.base .. ':shares:' .. address, uuid)
  else
    call('HSET', ctx.base .. ':shares:' .. address, uuid, ff.pack(parts))
  end
end

-- Return the packed form of amounts.
local function pack_amounts(amounts)
  local parts = {}
  for i, amount in ipairs(amounts) do
    parts[2 * i - 1], parts[2 * i] = amount[1], ff.text(amount[2])
  end
  return ff.pack(parts)
end

-- Note in the record of an execution, if it is in this partition, that a budget has a share of it.
function ff.note_budget(ctx, record, address)
  if not record then
    return
  end
  local budgets = ff.unpack(record.budgets or '')
  for _, known in ipairs(budgets) do
    if known == address then
      return
    end
  end
  budgets[#budgets + 1] = address
  ff.move(ctx, record, nil, { budgets = ff.pack(budgets) })
end

-- Add amounts to what an execution recorded.
function ff.record_share(ctx, address, uuid, amounts)
  local share, by_name = read_share(ctx, address, uuid), {}
  local recorded = ff.amounts_of(share[1])
  for _, amount in ipairs(recorded) do
    by_name[amount[1]] = amount
  end
  for _, amount in ipairs(amounts) do
    local known = by_name[amount[1]]
    if known then
      known[2] = math.min(known[2] + amount[2], ff.MAX_COUNT)
    else
      recorded[#recorded + 1] = amount
    end
  end
  share[1] = pack_amounts(recorded)
  write_share(ctx, address, uuid, share)
end

-- Take what an execution recorded out of its share, and return it.
function ff.take_recorded(ctx, address, uuid)
  local share = read_share(ctx, address, uuid)
  local amounts = ff.amounts_of(share[1])
  if #amounts > 0 then
    share[1] = ''
    write_share(ctx, address, uuid, share)
  end
  return amounts
end

-- Remove the shares of an execution that is removed. `budgets` is the field of its record.
function ff.remove_shares(ctx, uuid, budgets)
  for _, address in ipairs(ff.unpack(budgets or '') or {}) do
    call('HDEL', ctx.base .. ':shares:' .. address, uuid)
  end
end
