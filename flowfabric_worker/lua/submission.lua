-- How executions are created.

-- How many arguments one creation has: uuid, kind, delay, deadline (moments, see ff.moment), idempotency key as
-- pack{namespace, task, key} or '', then payload, tags and headers, '' for none.
ff.CREATION_WIDTH = 8

-- Add a field that is not empty to the fields to write.
local function add_field(list, name, value)
  if value ~= '' then
    local size = #list
    list[size + 1], list[size + 2] = name, value
  end
end

-- A kind is what many creations have in common: pack{class, priority, dedup window in ms, codec, policy, creator, most
-- signals}, the last four '' for none. Its fields are stored as they are. Its meaning never changes, so it is cached.
local KIND_FIELDS = { 'class', 'priority', false, 'codec', 'policy', 'creator', 'max_signals' }
local MOST_KINDS = 256
local known_kinds, known_kind_count = {}, 0

local function kind_of(text)
  local kind = known_kinds[text]
  if not kind then
    local parts = ff.unpack(text)
    kind = {
      class = parts[1], priority = parts[2], window_ms = tonumber(parts[3]), codec = parts[4], policy = parts[5],
      fields = {},
    }
    for i = 1, #KIND_FIELDS do
      if KIND_FIELDS[i] then
        add_field(kind.fields, KIND_FIELDS[i], parts[i])
      end
    end
    if known_kind_count >= MOST_KINDS then
      known_kinds, known_kind_count = {}, 0
    end
    known_kinds[text], known_kind_count = kind, known_kind_count + 1
  end
  return kind
end

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

-- Let another execution have the idempotency key of one that begins.
function ff.free_key(ctx, record)
  local key = ctx.base .. ':key:' .. record.idempotency_key
  if call('GET', key) == record.uuid then
    call('DEL', key)
  end
end

-- Reply with an execution that exists, and whether the call asks for the same task, payload and codec.
local function duplicate(ctx, existing, class, payload, codec)
  local values = call('HMGET', ff.record_key(ctx, existing), 'state', 'class', 'payload', 'codec', 'dedup_until')
  local state, stored_class, stored_payload, stored_codec, dedup_until = unpack(values, 1, 5) -- bounded: five fields
  local asked, found = ff.class(class), stored_class and ff.class(stored_class)
  ff.spend(ctx, 0, #(stored_payload or ''))
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

-- Add the fields that plain work has not, and note that there are such fields.
local function add_more(ctx, list, record, key, window_ms)
  if record.delay_until then
    ff.append(list, { 'delay_until', record.delay_until })
  end
  if record.deadline then
    ff.append(list, { 'deadline', record.deadline })
  end
  if record.flow then
    ff.append(list, { 'flow', record.flow })
  end
  if key ~= '' then
    record.dedup_until = ctx.now + window_ms
    ff.append(list, { 'idempotency_key', key, 'dedup_until', record.dedup_until })
    call('SET', ctx.base .. ':key:' .. key, record.uuid)
  end
  ff.append(list, { 'more', 1 })
  record.more = 1
end

-- Write the record of a new execution whose arguments begin at `at`. A member of a flow waits until its flow lets it run.
local function write(ctx, kind, args, at, address, flow)
  local uuid, delay, deadline, key = args[at], args[at + 2], args[at + 3], args[at + 4]
  local payload, tags, headers = args[at + 5], args[at + 6], args[at + 7]
  local now = ctx.now
  local moment = delay ~= '' and ff.moment(delay, now)
  local delayed = moment and moment > now
  local state = (flow and ff.WAITING_FOR_EDGES or delayed and ff.DELAYED or ff.READY) .. ff.FIRST
  local record = {
    uuid = uuid, key = address, words = ff.words(state), class = kind.class, priority = kind.priority,
    place = delayed and moment or now, delay_until = delayed and moment,
    deadline = deadline ~= '' and ff.moment(deadline, now), policy = kind.policy, flow = flow and flow.id,
  }
  local list = {
    'state', state, 'place', record.place, 'created', ctx.now_text, unpack(kind.fields), -- bounded: the fields of a kind
  }
  add_field(list, 'payload', payload)
  add_field(list, 'tags', tags)
  add_field(list, 'headers', headers)
  if key ~= '' or tags ~= '' or record.delay_until or record.deadline or flow then
    add_more(ctx, list, record, key, kind.window_ms)
  end
  call('HSET', address, unpack(list)) -- bounded: the fields of one record
  ff.follow(ctx, record, ff.derive(record))
  if flow then
    ff.join_flow(ctx, flow, record)
  end
  ctx.has_created = true
  return { 'created', record.uuid, state }
end

-- Return the failure of a member that cannot be created with its flow, or nil.
function ff.refuse_member(ctx, args, at)
  local class = kind_of(args[at + 1]).class
  if call('EXISTS', ff.record_key(ctx, args[at])) == 1 then
    return ff.failure('conflict')
  elseif not ff.has_place_for_class(ctx, class) then
    return ff.failure('too_many_classes', ff.class(class).lane_name, ff.MAX_CLASSES_PER_LANE)
  end
  return ff.unknown_gate(ctx, class)
end

-- Create a member of a flow. Its arguments begin at `at`, and its key is unique in the flow.
function ff.create_member(ctx, args, at, flow)
  local kind = kind_of(args[at + 1])
  ff.register_class(ctx, kind.class)
  return write(ctx, kind, args, at, ff.record_key(ctx, args[at]), flow)
end

-- Create the execution whose arguments begin at `at`.
function ff.create(ctx, args, at)
  local uuid, kind, key = args[at], kind_of(args[at + 1]), args[at + 4]
  local class = kind.class
  local address = ctx.base .. ':x:' .. uuid
  local existing = key ~= '' and holder_of(ctx, key)
  if not existing and call('EXISTS', address) == 1 then
    existing = uuid
  end
  if existing then
    return duplicate(ctx, existing, class, args[at + 5], kind.codec)
  end
  local known = ff.class(class)
  local unknown = known.gates and not ctx.registered[class] and ff.unknown_gate(ctx, class)
  if unknown then
    return unknown
  elseif not ctx.registered[class] and not ff.register_class(ctx, class, ff.MAX_CLASSES_PER_LANE) then
    return ff.failure('too_many_classes', known.lane_name, ff.MAX_CLASSES_PER_LANE)
  end
  return write(ctx, kind, args, at, address)
end

-- Note that work is submitted while other work ends, at most twice in the time for which a note counts.
local function note_sharing(ctx)
  local half = ff.SHARED_FOR / 2
  if ctx.now - ctx.last_end <= half and ctx.now - ff.shared_at(ctx) > half then
    call('HSET', ctx.base .. ':meta', 'shared', ctx.now_text)
  end
end

-- create_executions: create executions, each by itself.
-- Arguments per item: those of one creation, see ff.CREATION_WIDTH.
-- Replies per item: 'created', uuid, state; or 'duplicate', the existing uuid, its state, 1 if it is the same request.
-- Errors per item: quota_policy_not_found, too_many_classes, corruption of the existing execution.
ff.register('create_executions', {}, function(ctx, args)
  local answers = ff.each(ctx, args, 1, ff.CREATION_WIDTH, 2, ff.create)
  if ctx.has_created then
    note_sharing(ctx)
  end
  return answers
end)
