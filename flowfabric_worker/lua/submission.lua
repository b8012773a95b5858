-- submission: executions come into being.

-- create_executions: many executions, each by itself.
--
-- Each item has ff.CREATION_WIDTH arguments: uuid, class, priority, delay, deadline (moments, see ff.moment), idempotency key
-- (pack{namespace, task, key} or ''), dedup window in ms, and what is kept as it is, '' for nothing: payload, codec, policy,
-- tags, headers, creator, most signals.
-- Answers per item: 'created' uuid state, or 'duplicate' existing-uuid state same-request; or too_many_classes.

ff.CREATION_WIDTH = 14

-- The execution that a key stands for: at least until the execution has ended, and until the key's window is over.
-- A record that cannot be read keeps its key.
local function holder_of(ctx, key)
  local uuid = call('GET', ctx.base .. ':key:' .. key)
  local stored = uuid and call('HMGET', ff.record_key(ctx, uuid), 'state', 'dedup_until')
  if not stored or not (stored[1] or stored[2]) then
    return nil
  end
  local words = stored[1] and ff.words(stored[1])
  local until_ms = tonumber(stored[2] or '')
  local over = words and words.phase == 'terminal' and until_ms and until_ms <= ctx.now
  return not over and uuid or nil
end

-- Answers for an execution that exists, and whether the call asks for the same: task, payload and codec.
local function duplicate(ctx, existing, class, payload, codec)
  local stored = call('HMGET', ff.record_key(ctx, existing), 'state', 'class', 'payload', 'codec', 'dedup_until')
  local asked, found = ff.class(class), stored[2] and ff.class(stored[2])
  if not stored[1] or not ff.words(stored[1]) then
    return ff.set_aside(ctx, existing, 'state')
  elseif not found then
    return ff.set_aside(ctx, existing, 'class')
  elseif stored[5] and stored[5] ~= '' and not tonumber(stored[5]) then
    return ff.set_aside(ctx, existing, 'dedup_until')
  end
  local same = found.namespace == asked.namespace and found.task == asked.task
    and (stored[3] or '') == payload and (stored[4] or '') == codec
  return { 'duplicate', existing, stored[1], same and 1 or 0 }
end

-- The fields that are kept as they are, in the order of the arguments.
local KEPT = { 'payload', 'codec', 'policy', 'tags', 'headers', 'creator', 'max_signals' }

-- Adds those of an item's arguments that are kept as they are and say something.
local function add_kept(list, args, at)
  local size = #list
  for i = 1, #KEPT do
    local value = args[at + 6 + i]
    if value ~= '' then
      list[size + 1], list[size + 2] = KEPT[i], value
      size = size + 2
    end
  end
end

-- Adds what most executions have not, and that there is such.
local function add_more(ctx, list, args, at, record)
  local key = args[at + 5]
  if record.delay_until then
    ff.append(list, { 'delay_until', record.delay_until })
  end
  if record.deadline then
    ff.append(list, { 'deadline', record.deadline })
  end
  if key ~= '' then
    record.dedup_until = ctx.now + tonumber(args[at + 6])
    ff.append(list, { 'idempotency_key', key, 'dedup_until', record.dedup_until })
    call('SET', ctx.base .. ':key:' .. key, record.uuid)
  end
  ff.append(list, { 'more', 1 })
  record.more = 1
end

-- Writes a new record. `args[at]` is its uuid.
local function write(ctx, args, at, address)
  local now = ctx.now
  local moment = args[at + 3] ~= '' and ff.moment(args[at + 3], now)
  local delayed = moment and moment > now
  local state = (delayed and ff.DELAYED or ff.READY) .. ff.FIRST
  local record = {
    uuid = args[at], key = address, words = ff.words(state), class = args[at + 1], priority = args[at + 2],
    place = delayed and moment or now, delay_until = delayed and moment,
    deadline = args[at + 4] ~= '' and ff.moment(args[at + 4], now),
  }
  local list = {
    'state', state, 'class', record.class, 'priority', record.priority, 'place', record.place, 'created', ctx.now_text,
  }
  add_kept(list, args, at)
  -- The key, and the tags.
  if args[at + 5] ~= '' or args[at + 10] ~= '' or record.delay_until or record.deadline then
    add_more(ctx, list, args, at, record)
  end
  call('HSET', address, unpack(list)) -- bounded: the fields of one record
  ff.follow(ctx, record, ff.derive(record))
  return { 'created', record.uuid, state }
end

-- Creates one execution of the arguments from `at` on.
function ff.create(ctx, args, at)
  local uuid, class, key = args[at], args[at + 1], args[at + 5]
  local address = ctx.base .. ':x:' .. uuid
  local existing = key ~= '' and holder_of(ctx, key)
  if not existing and call('EXISTS', address) == 1 then
    existing = uuid
  end
  if existing then
    return duplicate(ctx, existing, class, args[at + 7], args[at + 8])
  end
  local known = ff.class(class)
  if not ctx.registered[class] and not ff.register_class(ctx, class, ff.MAX_CLASSES_PER_LANE) then
    return ff.failure('too_many_classes', known.lane_name, ff.MAX_CLASSES_PER_LANE)
  end
  return write(ctx, args, at, address)
end

ff.register('create_executions', {}, function(ctx, args)
  return ff.each(ctx, args, 1, ff.CREATION_WIDTH, 2, ff.create)
end)
