-- feed: every end of an execution, in order, and waiting for one.

-- Topics that wait for one execution; a process has one topic, however many of its threads wait.
local MAX_WATCHERS = 64

-- watch_executions: wait for the ends of some executions. Arguments: topic, pack{namespace}, the uuids.
-- Answers per uuid: 'ended' when it has, 'watched' when the topic will be told, 'missing'.
ff.register('watch_executions', { 'allow-oom' }, function(ctx, args)
  local topic = args[1]
  local answer = {}
  for at = 3, #args do
    local record = ff.found(ctx, args[at], ff.load)
    if not record or ff.class(record.class).namespace ~= args[2] then
      answer[#answer + 1] = { 'missing' }
    elseif record.words.phase == 'terminal' then
      answer[#answer + 1] = { 'ended' }
    else
      local topics = { topic }
      for _, other in ipairs(ff.unpack(record.watchers or '')) do
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

-- Whether one entry's id is older than another's.
local function is_older(id, other)
  local ms, number = string.match(id, '^(%d+)-(%d+)$')
  local other_ms, other_number = string.match(other, '^(%d+)-(%d+)$')
  if ms ~= other_ms then
    return tonumber(ms) < tonumber(other_ms)
  end
  return tonumber(number) < tonumber(other_number)
end

-- How long the feed may wait to be trimmed, in ms.
function ff.feed_pause(ctx)
  return math.min(ff.HOUR, math.max(1000, math.floor(ctx.feed_age / 4)))
end

-- Trims the feed to its age, in bounded pieces. The floor is the newest entry that went: a cursor below it missed some.
function ff.trim_feed(ctx)
  local feed, floor = ctx.base .. ':feed', ff.text(ctx.now - ctx.feed_age)
  local newest = call('XREVRANGE', feed, '(' .. floor .. '-0', '-', 'COUNT', 1)[1]
  local trimmed = 0
  if newest then
    trimmed = call('XTRIM', feed, 'MINID', '~', floor, 'LIMIT', 10000)
    if trimmed == 0 then
      -- Only whole pieces are trimmed cheaply; what is left of the last one goes exactly.
      trimmed = call('XTRIM', feed, 'MINID', floor)
    end
  end
  local oldest = call('XRANGE', feed, '-', '+', 'COUNT', 1)[1]
  if newest then
    -- As long as more has to go, one does not know up to where it went.
    local gone = oldest and is_older(oldest[1], newest[1]) and oldest[1] or newest[1]
    call('HSET', ctx.base .. ':meta', 'feed_floor', gone)
  end
  if not oldest then
    -- A stream that begins anew numbers anew: the ids must still be behind every cursor.
    call('DEL', feed)
    ctx.feed_now = ctx.feed_now + 1
    call('HSET', ctx.base .. ':meta', 'feed_last', ctx.feed_now)
    ff.due_at(ctx, 'retention', 'f', false)
  else
    ff.due_at(ctx, 'retention', 'f', trimmed > 0 and ctx.now or ctx.now + ff.feed_pause(ctx))
  end
end

-- read_feed: a page of the feed. Arguments: after (an entry's id) or '', limit, waiter, how long to wait in ms, '1'
-- if the server counts who hears a topic.
-- Answers: 'ok', then per end: id, field, value, ...; or cursor_expired.
ff.register('read_feed', { 'allow-oom' }, function(ctx, args)
  local after, waiter, wait_ms = args[1], args[3], tonumber(args[4])
  local floor = call('HGET', ctx.base .. ':meta', 'feed_floor')
  if after ~= '' and floor and is_older(after, floor) then
    return ff.failure('cursor_expired', after)
  end
  ff.unwait(ctx, waiter)
  local from = after ~= '' and '(' .. after or '-'
  local entries = call('XRANGE', ctx.base .. ':feed', from, '+', 'COUNT', tonumber(args[2]))
  if #entries == 0 and wait_ms > 0 then
    ff.wait_for_feed(ctx, waiter, wait_ms, args[5])
  end
  ff.flush(ctx)
  local answer = { 'ok' }
  for i, entry in ipairs(entries) do
    answer[i + 1] = { entry[1], unpack(entry[2], 1, 10) } -- bounded: five fields
  end
  return answer
end)

-- feed_places: two places in the feed, as the ids of entries to begin behind. They are also places where there is no
-- entry: what came behind them and was trimmed since is missed, and not lost silently.
-- Answers: the place behind the newest end, and the one before the oldest that is kept.
ff.register('feed_places', { 'no-writes' }, function(ctx)
  local first = call('HGET', ctx.base .. ':meta', 'feed_floor') or '0-0'
  local newest = call('XREVRANGE', ctx.base .. ':feed', '+', '-', 'COUNT', 1)[1]
  -- The ids to come do not lie before this moment.
  local last = newest and newest[1] or ff.text(ctx.feed_now - 1) .. '-0'
  return { is_older(last, first) and first or last, first }
end)
