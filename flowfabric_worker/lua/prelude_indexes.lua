-- How the indexes and counters are brought up to date at the end of a call.

-- Update the ready indexes, and note whom to wake for what became ready.
function ff.flush_ready(ctx)
  for class, entries in ff.each_noted(ctx, 'ready') do
    local added, removed, count = {}, {}, 0
    for uuid, score in pairs(entries) do
      if score and score > ff.POSTPONED_FROM then
        added[#added + 1] = ff.text(score)
        added[#added + 1] = uuid
      elseif score then
        added[#added + 1] = score
        added[#added + 1] = uuid
        count = count + 1
      else
        removed[#removed + 1] = uuid
      end
    end
    if count > 0 then
      ff.register_class(ctx, class)
      ff.note_wake(ctx, class, count)
    end
    ff.chunked('ZADD', ctx.base .. ':ready:' .. class, added)
    ff.chunked('ZREM', ctx.base .. ':ready:' .. class, removed)
  end
end

-- Add to a counter and return its new value. A damaged counter starts again from zero, so that it stops no work.
function ff.add(key, field, change)
  local good, value = pcall(call, 'HINCRBY', key, field, change)
  if not good then
    value = math.max(change, 0)
    call('HSET', key, field, value)
  end
  return value
end

-- Update the depth counters of lanes and the counters of classes.
local function flush_counts(ctx)
  for lane, counts in ff.each_noted(ctx, 'counts') do
    for state, change in pairs(counts) do
      if change ~= 0 then
        ff.add(ctx.base .. ':lane:' .. lane, state, change)
      end
    end
  end
  for class, change in ff.each_noted(ctx, 'held') do
    if change ~= 0 then
      ff.add(ctx.base .. ':held', class, change)
    end
  end
end

-- Delete the records that this call removed, and their entries for listings.
local function flush_gone(ctx)
  local gone = ff.take_noted(ctx, 'gone')
  for first = 1, gone and #gone or 0, 1000 do
    -- A journal makes a record large, so the server frees it in the background.
    call('UNLINK', unpack(gone, first, math.min(first + 999, #gone))) -- bounded: 1000 at a time
  end
end

-- Bring everything up to date that this call noted, and wake the waiters that it concerns.
function ff.flush(ctx)
  ff.run_jobs(ctx)
  ff.keep_pace(ctx)
  ff.flush_flows(ctx)
  flush_gone(ctx)
  ff.flush_listings(ctx)
  ff.flush_gates(ctx)
  ff.flush_ready(ctx)
  flush_counts(ctx)
  ff.flush_wakes(ctx, ff.flush_due(ctx))
end
