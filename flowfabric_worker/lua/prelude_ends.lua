-- The end of a lease and the end of an execution. Every operation that ends one goes through here, so that there is one
-- place for what all ends have in common.

-- End a lease. `list` has the fields to write, with the new state; `told` is true if the holder did not ask for the end.
function ff.end_lease(ctx, record, list, told)
  if ff.class(record.class).is_gated then
    ff.leave_gates(ctx, record, list)
  end
  ff.change(ctx, record, list)
  if told then
    ff.tell_holder(ctx, record)
  end
  if record.flow then
    ff.follow_cancellation(ctx, record)
  end
end

-- End an attempt whose execution continues. Return the fields to write; `reason` closes the stream of the attempt.
function ff.end_attempt(ctx, record, reason)
  local index, kind, came, started = ff.attempt_parts(record.attempt)
  ff.wake_tails(ctx, record)
  return { 'attempt', ff.attempt_text(index, kind, came, started, ctx.now_text), 'closed', reason }
end

-- Note the end of an execution that no worker holds, for the reply of the claim that ends it; its holder learns of any other.
local function note_end(ctx, record, outcome, list)
  if record.words.leased and tonumber(record.expires) > ctx.now then
    return
  end
  local told = { error = '', error_detail = '' }
  for i = 1, #list, 2 do
    if told[list[i]] then
      told[list[i]] = list[i + 1]
    end
  end
  ctx.ends[#ctx.ends + 1] = {
    record.uuid, record.class, outcome, ff.attempt_parts(record.attempt or '') or '0', record.retry_count or '0',
    record.tags or '', told.error, told.error_detail,
  }
end

-- The fields that an ended execution does not have.
local FORGOTTEN = { 'watchers', 'reserved_for', 'reserved_until' }

-- Add what an ended execution has no more to the fields to write.
local function forget(record, list)
  for i = 1, #FORGOTTEN do
    local value, size = record[FORGOTTEN[i]], #list
    if value and value ~= '' then
      list[size + 1], list[size + 2] = FORGOTTEN[i], ''
    end
  end
end

-- End an execution and its lease, if it has one; announce the end and keep the record for its retention. `list` has further
-- fields to write as name, value, name, value. `told` is as in ff.end_lease.
function ff.finish(ctx, record, outcome, list, told)
  if ctx.ends then
    note_end(ctx, record, outcome, list)
  end
  local size, watchers = #list, record.watchers
  list[size + 1], list[size + 2] = 'state', ff.ended_state(outcome, record)
  list[size + 3], list[size + 4] = 'ended', ctx.now_text
  if record.more then
    forget(record, list)
    ff.close_waits(ctx, record, ff.OUTCOMES[outcome], list)
    if record.budgets then
      ff.end_shares(ctx, record.uuid, record.budgets)
    end
  end
  if record.words.leased then
    ff.end_lease(ctx, record, list, told)
  else
    ff.leave_gates(ctx, record, list)
    ff.change(ctx, record, list)
  end
  ff.wake_tails(ctx, record)
  ctx.ended = ctx.ended + 1
  ff.announce(ctx, record, outcome, watchers)
  if record.flow then
    ff.note_member_end(ctx, record)
  end
  if record.children then
    ff.end_children(ctx, record, outcome)
  end
end

-- Write the end of an execution into the feed and tell the topics that wait for it.
function ff.announce(ctx, record, outcome, watchers)
  if not ctx.announced then
    ff.open_feed(ctx)
  end
  local tagged = record.tags and record.tags ~= ''
  if not tagged and ctx.feed_now == ctx.now then
    call('XADD', ctx.feed, ctx.feed_id, 'execution', record.uuid, 'outcome', outcome, 'class', record.class)
  else
    local entry = { 'execution', record.uuid, 'outcome', outcome, 'class', record.class }
    if tagged then
      ff.append(entry, { 'tags', record.tags })
    end
    if ctx.feed_now ~= ctx.now then
      -- The id is later than the end, so the moment is stored too.
      ff.append(entry, { 'ended', ctx.now_text })
    end
    call('XADD', ctx.feed, ctx.feed_id, unpack(entry)) -- bounded: five fields
  end
  if watchers and watchers ~= '' then
    local topics = ff.unpack(watchers)
    for _, topic in ipairs(topics) do
      call('PUBLISH', ctx.channel .. topic, 'done ' .. ff.id(ctx, record))
    end
    ff.spend(ctx, #topics, 0)
  end
end

-- Prepare the feed before the first end that a call writes.
function ff.open_feed(ctx)
  ctx.announced = true
  ctx.feed = ctx.base .. ':feed'
  ctx.feed_id = ff.text(ctx.feed_now) .. '-*'
  call('HSET', ctx.base .. ':meta', 'feed_last', ctx.feed_now)
  call('ZADD', ctx.base .. ':retention', 'NX', ctx.now + ff.feed_pause(ctx), 'f')
  -- Earlier in this call the feed may have been empty and its entry given up, so that note is dropped.
  if ctx.due.retention and not ctx.due.retention.f then
    ctx.due.retention.f = nil
  end
end

-- Tell the process that held a lease that it is lost. The fence says which lease, since the process may hold the next too.
function ff.tell_holder(ctx, record)
  local topic = call('HGET', record.key, 'topic')
  if topic and topic ~= '' then
    call('PUBLISH', ctx.channel .. topic, 'lost ' .. ff.id(ctx, record) .. ' ' .. record.fence)
  end
end
