-- The feed: every end of an execution in order, and waiting for one.

-- How many topics can wait for one execution. A process has one topic, however many of its threads wait.
local MAX_WATCHERS = 64

-- watch_executions: register a topic for messages about the ends of executions.
-- Arguments: topic, pack{namespace}, the uuids.
-- Replies per uuid: 'ended' if it has ended, 'watched' if the topic will get a message, 'missing' if it does not exist; 'left' if
-- the call's work budget was used up before.
ff.register('watch_executions', { 'allow-oom' }, function(ctx, args)
  local topic, namespace = args[1], args[2]
  local answer = {}
  for at = 3, #args do
    local is_left = ctx.work <= 0 and at > 3
    local record = not is_left and ff.found(ctx, args[at], ff.load)
    ff.spend(ctx, 3, 0)
    if is_left then
      answer[#answer + 1] = { 'left' }
    elseif not record or ff.class(record.class).namespace ~= namespace then
      answer[#answer + 1] = { 'missing' }
    elseif record.words.phase == 'terminal' then
      answer[#answer + 1] = { 'ended' }
    else
      local topics, others = { topic }, ff.unpack(record.watchers or '')
      -- To read and to write a topic takes half as long as a command.
      ff.spend(ctx, #others / 2, 0)
      for _, other in ipairs(others) do
        if other ~= topic and #topics < MAX_WATCHERS then
          topics[#topics + 1] = other
        end
      end
      call('HSET', record.key, 'watchers', ff.pack(topics), 'more', 1)
      answer[#answer + 1] = { 'watched' }
    end
  end
  ff.flush(ctx)
  return answer
end)

-- Return how long the feed may stay untrimmed, in ms.
function ff.feed_pause(ctx)
  return math.min(ff.HOUR, math.max(1000, math.floor(ff.feed_age(ctx) / 4)))
end

-- How many entries one call removes. Each may have tags of 64 KiB.
local TRIMMED_AT_ONCE = 1000

-- Trim the feed to its age, in bounded pieces. `feed_floor` is the newest removed entry: an older cursor has missed some.
function ff.trim_feed(ctx)
  local feed, oldest_kept = ctx.base .. ':feed', ff.text(ctx.now - ff.feed_age(ctx))
  local newest = call('XREVRANGE', feed, '(' .. oldest_kept .. '-0', '-', 'COUNT', 1)[1]
  local trimmed = 0
  if newest then
    trimmed = call('XTRIM', feed, 'MINID', '~', oldest_kept, 'LIMIT', TRIMMED_AT_ONCE)
    if trimmed == 0 then
      -- A cheap trim removes whole blocks only; the rest of the last block is removed exactly.
      trimmed = call('XTRIM', feed, 'MINID', oldest_kept)
    end
  end
  local oldest = call('XRANGE', feed, '-', '+', 'COUNT', 1)[1]
  if newest then
    -- Until the trim is complete, the oldest entry that is left bounds what was removed.
    local gone = oldest and ff.is_older(oldest[1], newest[1]) and oldest[1] or newest[1]
    call('HSET', ctx.base .. ':meta', 'feed_floor', gone)
  end
  if not oldest then
    -- A new stream starts its ids again, and they must stay behind every cursor.
    call('DEL', feed)
    ctx.feed_now = ctx.feed_now + 1
    call('HSET', ctx.base .. ':meta', 'feed_last', ctx.feed_now)
    ff.due_at(ctx, 'retention', 'f', false)
  else
    ff.due_at(ctx, 'retention', 'f', trimmed > 0 and ctx.now or ctx.now + ff.feed_pause(ctx))
  end
end

-- How many ends are read with one command, and at first, when it is not known how large they are.
local ENDS_AT_ONCE, ENDS_AT_FIRST = 100, 8

-- Return up to `limit` ends after one, within the call's work budget.
local function read_ends(ctx, after, limit)
  local ends, from, size = {}, after ~= '' and '(' .. after or '-', ENDS_AT_FIRST
  while #ends < limit and ctx.work > 0 do
    size = math.min(size, limit - #ends)
    local page, bytes = call('XRANGE', ctx.base .. ':feed', from, '+', 'COUNT', size), 0
    for _, entry in ipairs(page) do
      for _, text in ipairs(entry[2]) do
        bytes = bytes + #text
      end
      ends[#ends + 1] = { entry[1], unpack(entry[2], 1, 10) } -- bounded: five fields
    end
    ff.spend(ctx, 1 + #page / 3, bytes)
    if #page < size then
      break
    end
    from = '(' .. page[#page][1]
    -- The next ends are about as large as these, and may take what is left of the budget.
    size = math.min(ENDS_AT_ONCE, math.max(1, math.floor(ctx.work * ff.BYTES_PER_WORK * #page / math.max(1, bytes))))
  end
  return ends
end

-- read_feed: read a page of the feed, or wait for the next end.
-- Arguments: after (an entry's id) or '', limit, waiter, how long to wait in ms, '1' if the server counts the subscribers
-- of a topic.
-- Replies: 'ok', then per end: id, field, value, field, value.
-- Errors: cursor_expired.
ff.register('read_feed', { 'allow-oom' }, function(ctx, args)
  local after, limit, waiter, wait_ms, counted = args[1], tonumber(args[2]), args[3], tonumber(args[4]), args[5]
  local trimmed_to = call('HGET', ctx.base .. ':meta', 'feed_floor')
  if after ~= '' and trimmed_to and ff.is_older(after, trimmed_to) then
    return ff.failure('cursor_expired', after)
  end
  ff.unwait(ctx, waiter)
  local entries = read_ends(ctx, after, limit)
  if #entries == 0 and wait_ms > 0 then
    ff.wait_for_feed(ctx, waiter, wait_ms, counted)
  end
  ff.flush(ctx)
  return ff.joined({ { 'ok' }, entries })
end)

-- feed_places: return the two ids behind which a reader of the feed can begin. A place need not be an entry; a cursor at
-- such a place expires when entries after it are trimmed.
-- Replies: the place behind the newest end, and the place before the oldest end that is kept.
ff.register('feed_places', { 'no-writes' }, function(ctx)
  local first = call('HGET', ctx.base .. ':meta', 'feed_floor') or '0-0'
  local newest = call('XREVRANGE', ctx.base .. ':feed', '+', '-', 'COUNT', 1)[1]
  -- No later entry has an id before this moment.
  local last = newest and newest[1] or ff.text(ctx.feed_now - 1) .. '-0'
  return { ff.is_older(last, first) and first or last, first }
end)
