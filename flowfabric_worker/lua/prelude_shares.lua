-- Shares: what a budget knows of single executions. The hash ':shares:<budget>' has by execution the pack of
--
--   recorded    pack{dimension, amount, ...} that record_spend counted, which release_budget takes back
--   reserved    pack{key, until, pack{dimension, amount, ...}, ...} of its open reservations
--   needed      pack{dimension, amount, ...} that the execution waits for, or ''
--   partition   that of the execution if it is another one than the budget's, else ''
--
-- ':blocked:<budget>' has the executions that wait for the budget, in the order in which they are claimed.
--
-- The record of an execution names the budgets that have a share of it in its field `budgets`, so that its end and its
-- removal find them.

ff.SHARING = ff.joined({ ff.CORE, { 'budgets' } })

-- Return the parts of a share, which are empty if there is none.
function ff.read_share(ctx, address, uuid)
  local parts = ff.unpack(call('HGET', ctx.base .. ':shares:' .. address, uuid) or '') or {}
  for i = 1, 4 do
    parts[i] = parts[i] or ''
  end
  return parts
end

-- Write a share, or remove it if it is empty.
function ff.write_share(ctx, address, uuid, parts)
  if parts[1] == '' and parts[2] == '' and parts[3] == '' then
    call('HDEL', ctx.base .. ':shares:' .. address, uuid)
  else
    call('HSET', ctx.base .. ':shares:' .. address, uuid, ff.pack(parts))
  end
end

-- Return the packed form of amounts.
function ff.pack_amounts(amounts)
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
  local share, by_name = ff.read_share(ctx, address, uuid), {}
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
  share[1] = ff.pack_amounts(recorded)
  ff.write_share(ctx, address, uuid, share)
end

-- Take what an execution recorded out of its share, and return it.
function ff.take_recorded(ctx, address, uuid)
  local share = ff.read_share(ctx, address, uuid)
  local amounts = ff.amounts_of(share[1])
  if #amounts > 0 then
    share[1] = ''
    ff.write_share(ctx, address, uuid, share)
  end
  return amounts
end

-- Let go of what an execution keeps of its budgets: its reservations and its place among those that wait if it ends, and
-- everything if it `is_gone`. What is in another partition is written down as owed. `budgets` is the field of its record.
function ff.end_shares(ctx, uuid, budgets, is_gone)
  for _, address in ipairs(ff.unpack(budgets or '') or {}) do
    if call('HEXISTS', ctx.base .. ':budget', address) == 1 then
      ff.end_share(ctx, address, uuid, is_gone)
    else
      ff.owe(ctx, is_gone and 'gone' or 'end', address, uuid, '')
    end
  end
end
