-- The end of a lease and the end of an execution: what is written, who is told. Whatever ends one goes through here, so what
-- every end has to do is done here and nowhere else.

-- Ends a lease: `list` has the fields to write, with the new state. `told` says that the holder did not ask for it.
function ff.end_lease(ctx, record, list, told)
  ff.change(ctx, record, list)
  if told then
    ff.tell_holder(ctx, record)
  end
end

-- Ends an execution, and its lease if it has one; it is announced, and kept for its retention. `list` has the further
-- fields to write: name, value, name, value. `told` is as above.
function ff.finish(ctx, record, outcome, list, told)
  local size, watchers = #list, record.watchers
  list[size + 1], list[size + 2] = 'state', ff.ended_state(outcome, record)
  list[size + 3], list[size + 4] = 'ended', ctx.now_text
  if record.more then
    ff.append(list, { 'watchers', '', 'reserved_for', '', 'reserved_until', '' })
    ff.close_waits(ctx, record, ff.OUTCOMES[outcome], list)
  end
  if record.words.leased then
    ff.end_lease(ctx, record, list, told)
  else
    ff.change(ctx, record, list)
  end
  ctx.ended = ctx.ended + 1
  ff.announce(ctx, record, outcome, watchers)
end

-- Writes the end of an execution into the feed and tells those who wait for it.
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
      -- The id does not tell when it ended.
      ff.append(entry, { 'ended', ctx.now_text })
    end
    call('XADD', ctx.feed, ctx.feed_id, unpack(entry)) -- bounded: five fields
  end
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
