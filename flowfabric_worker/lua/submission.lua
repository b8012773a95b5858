-- submission: executions come into being.

-- create_executions: many executions, each by itself.
--
-- Each item has ff.CREATION_WIDTH arguments: uuid, class, priority, delay, deadline (moments, see ff.moment), idempotency key
-- (pack{namespace, key} or ''), dedup window in ms, digest of the request, and what is kept as it is, '' for nothing:
-- payload, codec, policy, tags, creator.
-- Answers per item: 'created' uuid state, or 'duplicate' existing-uuid state same-request; or too_many_classes.

ff.CREATION_WIDTH = 13

-- The execution that a key stands for; none when the key's window is over, even if nobody removed the key yet.
local function holder_of(ctx, key)
  local uuid = call('GET', ctx.base .. ':key:' .. key)
  local until_ms = uuid and ff.number(call('HGET', ff.record_key(ctx, uuid), 'dedup_until'))
  return until_ms and until_ms > ctx.now and uuid or nil
end

local function duplicate(ctx, existing, digest)
  local stored = call('HMGET', ff.record_key(ctx, existing), 'state', 'digest')
  return { 'duplicate', existing, stored[1], stored[2] == digest and 1 or 0 }
end

-- The fields that are kept as they are, in the order of the arguments.
local KEPT = { 'digest', 'payload', 'codec', 'policy', 'tags', 'creator' }

-- Writes a new record. `args[at]` is its uuid.
local function write(ctx, args, at, record, key)
  local flat = {
    'state', record.state, 'class', record.class, 'priority', record.priority, 'place', record.place,
    'created', ctx.now,
  }
  local size = 10
  local function add(name, value)
    flat[size + 1], flat[size + 2] = name, value
    size = size + 2
  end
  local more = false
  for i = 1, #KEPT do
    local value = args[at + 6 + i]
    if value ~= '' then
      add(KEPT[i], value)
      more = more or ff.NEEDS_MORE[KEPT[i]]
    end
  end
  if record.delay_until then
    add('delay_until', record.delay_until)
  end
  if record.deadline then
    add('deadline', record.deadline)
  end
  if key ~= '' then
    record.dedup_until = ctx.now + tonumber(args[at + 6])
    add('idempotency_key', key)
    add('dedup_until', record.dedup_until)
    call('SET', ctx.base .. ':key:' .. key, record.uuid)
  end
  if more or record.delay_until or record.deadline or key ~= '' then
    add('more', 1)
  end
  call('HSET', record.key, unpack(flat)) -- bounded: the fields of one record
  ff.follow(ctx, record)
end

local function create(ctx, args, at)
  local uuid, class, key, digest = args[at], args[at + 1], args[at + 5], args[at + 7]
  if key ~= '' then
    local existing = holder_of(ctx, key)
    if existing then
      return duplicate(ctx, existing, digest)
    end
  end
  local address = ff.record_key(ctx, uuid)
  if call('EXISTS', address) == 1 then
    return duplicate(ctx, uuid, digest)
  end
  local known = ff.class(class)
  if not ff.register_class(ctx, class, ff.MAX_CLASSES_PER_LANE) then
    return ff.failure('too_many_classes', known.lane_name, ff.MAX_CLASSES_PER_LANE)
  end

  local now = ctx.now
  local moment = ff.moment(args[at + 3], now)
  local delayed = moment and moment > now
  local state = (delayed and ff.DELAYED or ff.READY) .. 'pending_first_attempt'
  write(ctx, args, at, {
    uuid = uuid,
    key = address,
    class = class,
    priority = args[at + 2],
    place = delayed and moment or now,
    state = state,
    words = ff.words(state),
    delay_until = delayed and moment or nil,
    deadline = ff.moment(args[at + 4], now),
  }, key)

  local created = ctx.created
  created[#created + 1] = 0
  created[#created + 1] = known.namespace .. uuid
  return { 'created', uuid, state }
end

-- Creates what the arguments from `first` on tell of; answers each by itself.
function ff.create_executions(ctx, args, first)
  ctx.created = {}
  local answers = ff.each(ctx, args, first, ff.CREATION_WIDTH, function(at)
    return create(ctx, args, at)
  end)
  ff.chunked('ZADD', ctx.base .. ':ids', ctx.created)
  return answers
end

ff.register('create_executions', {}, function(ctx, args)
  return ff.create_executions(ctx, args, 1)
end)
