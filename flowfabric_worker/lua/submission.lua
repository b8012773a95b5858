-- submission: executions come into being.

-- create_executions: many executions, each by itself.
--
-- Each item has 9 arguments: uuid, class, priority, delay, deadline (moments, see ff.moment), idempotency key
-- (pack{namespace, key} or ''), dedup window in ms, digest of the request, and pack{field, value, ...}: fields of the
-- record that no function interprets.
-- Answers per item: 'created' uuid state, or 'duplicate' existing-uuid state same-request; or too_many_classes.

local function duplicate(ctx, existing, digest)
  local stored = call('HMGET', ff.record_key(ctx, existing), 'state', 'digest')
  return { 'duplicate', existing, stored[1], stored[2] == digest and 1 or 0 }
end

local function create(ctx, uuid, class, priority, delay, deadline, key, window, digest, fields)
  if key ~= '' then
    local existing = call('GET', ctx.base .. ':key:' .. key)
    if existing then
      return duplicate(ctx, existing, digest)
    end
  end
  local record_key = ff.record_key(ctx, uuid)
  if call('EXISTS', record_key) == 1 then
    return duplicate(ctx, uuid, digest)
  end
  local lane = ff.lane_of(class)
  if not ff.class_fits(ctx, class, lane) then
    return ff.failure('too_many_classes', ff.unpack(lane)[2], ff.MAX_CLASSES_PER_LANE)
  end
  ff.register_class(ctx, class, lane)

  local now = ctx.now
  local until_ms = ff.moment(delay, now)
  local delayed = until_ms and until_ms > now
  local record = {
    uuid = uuid,
    key = record_key,
    class = class,
    priority = tonumber(priority),
    place = delayed and until_ms or now,
    state = (delayed and ff.DELAYED or ff.READY) .. 'pending_first_attempt',
    delay_until = delayed and until_ms or nil,
    deadline = ff.moment(deadline, now),
  }
  local flat = ff.unpack(fields)
  local function add(name, value)
    flat[#flat + 1] = name
    flat[#flat + 1] = value
  end
  add('state', record.state)
  add('class', class)
  add('priority', record.priority)
  add('place', record.place)
  add('created', now)
  add('digest', digest)
  if record.delay_until then
    add('delay_until', record.delay_until)
  end
  if record.deadline then
    add('deadline', record.deadline)
  end
  if key ~= '' then
    record.dedup_until = now + tonumber(window)
    add('idempotency_key', key)
    add('dedup_until', record.dedup_until)
    call('SET', ctx.base .. ':key:' .. key, uuid)
  end
  call('HSET', record_key, unpack(flat)) -- bounded: the fields of one record
  record.words = ff.words(record.state)
  ff.follow(ctx, record, {}, ff.derive(record))

  local name, namespace = ff.behind_first(lane)
  ctx.created[#ctx.created + 1] = 0
  ctx.created[#ctx.created + 1] = namespace .. uuid
  ctx.lanes[namespace .. string.match(name, '^%d+:(.*)$')] = true
  return { 'created', uuid, record.state }
end

ff.register('create_executions', {}, function(ctx, args)
  ctx.created, ctx.lanes = {}, {}
  local answers = ff.each(ctx, args, 1, 9, function(at)
    return create(
      ctx, args[at], args[at + 1], args[at + 2], args[at + 3], args[at + 4], args[at + 5], args[at + 6], args[at + 7],
      args[at + 8]
    )
  end)
  ff.chunked('ZADD', ctx.base .. ':ids', ctx.created)
  for lane in pairs(ctx.lanes) do
    call('ZADD', ctx.base .. ':lanes', 0, lane)
  end
  return answers
end)
