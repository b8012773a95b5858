-- The end of an execution: what is written, who is told.

-- Ends an execution: whatever ends it goes through here, is announced, and is kept for its retention. `list` has the
-- further fields to write: name, value, name, value.
function ff.finish(ctx, record, outcome, list)
  local size, watchers = #list, record.watchers
  list[size + 1], list[size + 2] = 'state', ff.ended_state(outcome, record)
  list[size + 3], list[size + 4] = 'ended', ctx.now_text
  if record.more then
    size = #list
    list[size + 1], list[size + 2] = 'watchers', ''
    list[size + 3], list[size + 4] = 'reserved_for', ''
    list[size + 5], list[size + 6] = 'reserved_until', ''
  end
  ff.change(ctx, record, list)
  ctx.ended = ctx.ended + 1
  ff.announce(ctx, record, outcome, watchers)
end

-- Writes the end of an execution into the feed and tells those who wait for it.
function ff.announce(ctx, record, outcome, watchers)
  if not ctx.announced then
    ff.open_feed(ctx)
  end
  local entry = { 'execution', record.uuid, 'outcome', outcome, 'class', record.class }
  if record.tags and record.tags ~= '' then
    entry[7], entry[8] = 'tags', record.tags
  end
  if ctx.feed_now ~= ctx.now then
    -- The id does not tell when it ended.
    ff.append(entry, { 'ended', ctx.now_text })
  end
  call('XADD', ctx.feed, ctx.feed_id, unpack(entry)) -- bounded: five fields
  if watchers and watchers ~= '' then
    for _, topic in ipairs(ff.unpack(watchers)) do
      call('PUBLISH', ctx.channel .. topic, 'done ' .. ff.id(ctx, record))
    end
  end
end

-- Before the first end that a call writes into the feed.
function ff.open_feed(ctx)
  ctx.announced = true
  ctx.feed = ctx.base .. ':feed'
  ctx.feed_id = ff.text(ctx.feed_now) .. '-*'
  call('HSET', ctx.base .. ':meta', 'feed_last', ctx.feed_now)
  call('ZADD', ctx.base .. ':retention', 'NX', ctx.now + ff.feed_pause(ctx), 'f')
  -- Earlier in this call the feed may have been found empty, and its entry given up.
  if ctx.due.retention and not ctx.due.retention.f then
    ctx.due.retention.f = nil
  end
end

-- Tells the process that held a lease that it lost it. The fence says which one: the process may hold the next one too.
function ff.tell_holder(ctx, record)
  local topic = call('HGET', record.key, 'topic')
  if topic and topic ~= '' then
    call('PUBLISH', ctx.channel .. topic, 'lost ' .. ff.id(ctx, record) .. ' ' .. record.fence)
  end
end
