-- How executions are created.

-- How many arguments one creation has: uuid, class, priority, delay, deadline (moments, see ff.moment), idempotency key as
-- pack{namespace, task, key} or '', dedup window in ms; then the fields that are stored as they are, each '' for none:
-- payload, codec, policy, tags, headers, creator, most signals.

ff.CREATION_WIDTH = 14

-- Return the execution that an idempotency key stands for: until that execution has ended and the key's window is over. An
-- execution whose record is unreadable keeps its key.
local function holder_of(ctx, key)
  local uuid = call('GET', ctx.base .. ':key:' .. key)
  local values = uuid and call('HMGET', ff.record_key(ctx, uuid), 'state', 'dedup_until') or {}
  local state, dedup_until = values[1], values[2]
  if not state and not dedup_until then
    return nil
  end
  local words, until_ms = state and ff.words(state), tonumber(dedup_until or '')
  local over = words and words.phase == 'terminal' and until_ms and until_ms <= ctx.now
  return not over and uuid or nil
end

-- Reply with an execution that exists, and whether the call asks for the same task, payload and codec.
local function duplicate(ctx, existing, class, payload, codec)
  local values = call('HMGET', ff.record_key(ctx, existing), 'state', 'class', 'payload', 'codec', 'dedup_until')
  local state, stored_class, stored_payload, stored_codec, dedup_until = unpack(values, 1, 5) -- bounded: five fields
  local asked, found = ff.class(class), stored_class and ff.class(stored_class)
  if not state or not ff.words(state) then
    return ff.set_aside(ctx, existing, 'state')
  elseif not found then
    return ff.set_aside(ctx, existing, 'class')
  elseif dedup_until and dedup_until ~= '' and not tonumber(dedup_until) then
    return ff.set_aside(ctx, existing, 'dedup_until')
  end
  local same = found.namespace == asked.namespace and found.task == asked.task
    and (stored_payload or '') == payload and (stored_codec or '') == codec
  return { 'duplicate', existing, state, same and 1 or 0 }
end

-- The fields that are stored as they are, in the order of the arguments, and the offset of the first.
local KEPT = { 'payload', 'codec', 'policy', 'tags', 'headers', 'creator', 'max_signals' }
local FIRST_KEPT = 7

-- Add the arguments of an item that are stored as they are, without the empty ones.
local function add_kept(list, args, at)
  local size = #list
  for i = 1, #KEPT do
    local value = args[at + FIRST_KEPT + i - 1]
    if value ~= '' then
      list[size + 1], list[size + 2] = KEPT[i], value
      size = size + 2
    end
  end
end

-- Add the fields that plain work has not, and note that there are such fields.
local function add_more(ctx, list, record, key, window_ms)
  if record.delay_until then
    ff.append(list, { 'delay_until', record.delay_until })
  end
  if record.deadline then
    ff.append(list, { 'deadline', record.deadline })
  end
  if key ~= '' then
    record.dedup_until = ctx.now + window_ms
    ff.append(list, { 'idempotency_key', key, 'dedup_until', record.dedup_until })
    call('SET', ctx.base .. ':key:' .. key, record.uuid)
  end
  ff.append(list, { 'more', 1 })
  record.more = 1
end

-- Write the record of a new execution whose arguments begin at `at`.
local function write(ctx, args, at, address)
  local uuid, class, priority, delay, deadline = args[at], args[at + 1], args[at + 2], args[at + 3], args[at + 4]
  local key, tags = args[at + 5], args[at + 10]
  local now = ctx.now
  local moment = delay ~= '' and ff.moment(delay, now)
  local delayed = moment and moment > now
  local state = (delayed and ff.DELAYED or ff.READY) .. ff.FIRST
  local record = {
    uuid = uuid, key = address, words = ff.words(state), class = class, priority = priority,
    place = delayed and moment or now, delay_until = delayed and moment,
    deadline = deadline ~= '' and ff.moment(deadline, now),
  }
  local list = {
    'state', state, 'class', record.class, 'priority', record.priority, 'place', record.place, 'created', ctx.now_text,
  }
  add_kept(list, args, at)
  if key ~= '' or tags ~= '' or record.delay_until or record.deadline then
    add_more(ctx, list, record, key, tonumber(args[at + 6]))
  end
  call('HSET', address, unpack(list)) -- bounded: the fields of one record
  ff.follow(ctx, record, ff.derive(record))
  return { 'created', record.uuid, state }
end

-- Create the execution whose arguments begin at `at`.
function ff.create(ctx, args, at)
  local uuid, class, key, payload, codec = args[at], args[at + 1], args[at + 5], args[at + 7], args[at + 8]
  local address = ctx.base .. ':x:' .. uuid
  local existing = key ~= '' and holder_of(ctx, key)
  if not existing and call('EXISTS', address) == 1 then
    existing = uuid
  end
  if existing then
    return duplicate(ctx, existing, class, payload, codec)
  end
  local known = ff.class(class)
  if not ctx.registered[class] and not ff.register_class(ctx, class, ff.MAX_CLASSES_PER_LANE) then
    return ff.failure('too_many_classes', known.lane_name, ff.MAX_CLASSES_PER_LANE)
  end
  return write(ctx, args, at, address)
end

-- create_executions: create executions, each by itself.
-- Arguments per item: those of one creation, see ff.CREATION_WIDTH.
-- Replies per item: 'created', uuid, state; or 'duplicate', the existing uuid, its state, 1 if it is the same request.
-- Errors per item: too_many_classes, corruption of the existing execution.
ff.register('create_executions', {}, function(ctx, args)
  return ff.each(ctx, args, 1, ff.CREATION_WIDTH, 2, ff.create)
end)
