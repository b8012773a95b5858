-- Operations that return stored values as they are; Python decodes them strictly.

-- Return the values of some fields of a record, or false if the key does not hold a hash.
local function values_of(key, fields)
  local readable, values = pcall(call, 'HMGET', key, unpack(fields)) -- bounded: the caller's fixed list of names
  return readable and values
end

-- Return the places of two fields, or nil if one of them is not read.
local function places_of(fields, one, other)
  local places = {}
  for i, field in ipairs(fields) do
    places[field] = i
  end
  return places[other] and places[one], places[other]
end

-- Show in the values of a record's fields that a closed gate holds it back.
local function show_gates(ctx, fields, values)
  local state, class = places_of(fields, 'state', 'class')
  if state and values and values[state] and values[class] then
    values[state] = ff.shown_state(ctx, values[state], values[class])
  end
  return values
end

-- Return how many bytes some values have together.
local function bytes_of(values)
  local bytes = 0
  for i = 1, values and #values or 0 do
    bytes = bytes + (values[i] and #values[i] or 0)
  end
  return bytes
end

-- read_executions: read some fields of some executions.
-- Arguments: pack{namespace}, number of fields, the fields, then the uuids.
-- Replies per uuid: the values in the order of the fields; nothing if there is no such execution; false if its key does not
-- hold a hash.
ff.register('read_executions', { 'no-writes' }, function(ctx, args)
  local namespace, count = args[1], tonumber(args[2])
  local fields = { unpack(args, 3, count + 2) } -- bounded: the caller's fixed list of names
  local answer = {}
  for at = count + 3, #args do
    local key = ff.record_key(ctx, args[at])
    local exists = ff.is_in_namespace(ctx, namespace, args[at]) and call('EXISTS', key) == 1
    answer[#answer + 1] = not exists and {} or show_gates(ctx, fields, values_of(key, fields))
  end
  return answer
end)

-- Return what read_execution replies.
local function read_execution(ctx, args)
  local uuid, namespace = args[1], args[2]
  local key = ff.record_key(ctx, uuid)
  if not ff.is_in_namespace(ctx, namespace, uuid) or call('EXISTS', key) == 0 then
    return {}
  end
  local fields = { unpack(args, 3) } -- bounded: the caller's fixed list of names
  local values = show_gates(ctx, fields, values_of(key, fields))
  return { values, values and ff.open_suspension(ctx, uuid) or {} }
end

-- read_execution: read some fields of an execution, and the suspension that it is in.
-- Arguments: uuid, pack{namespace}, the fields.
-- Replies: nothing if there is no such execution; else the values in the order of the fields, or false if its key does not
-- hold a hash; and the suspension as ff.open_suspension returns it.
-- Errors: corruption.
ff.register('read_execution', { 'no-writes' }, function(ctx, args)
  return ff.isolated_read(ctx, args[1], read_execution, args)
end)

-- Return the uuids after one in an index of listings, in order. Each member begins with `prefix`, '' if it is a bare uuid.
local function uuids_in(ctx, index, prefix, after, limit)
  local from = after ~= '' and '(' .. prefix .. after or '[' .. prefix
  -- Ids begin with a hexadecimal digit, which sorts before 'g'.
  local uuids = call('ZRANGE', ctx.base .. ':' .. index, from, '(' .. prefix .. 'g', 'BYLEX', 'LIMIT', 0, limit)
  for i = 1, prefix ~= '' and #uuids or 0 do
    uuids[i] = string.sub(uuids[i], #prefix + 1)
  end
  return uuids
end

-- Merge two sorted lists into one of at most `limit` elements, without repetition.
local function merged(one, other, limit)
  local out, i, j = {}, 1, 1
  while #out < limit and (one[i] or other[j]) do
    local a, b = one[i], other[j]
    out[#out + 1] = a and (not b or a < b) and a or b
    i = i + (a == out[#out] and 1 or 0)
    j = j + (b == out[#out] and 1 or 0)
  end
  return out
end

-- Return the index to walk for a filter, the smaller one of two, and the other one or nil.
local function indexes_for(ctx, namespace, lane, state)
  local of_lane, of_state = lane ~= '' and 'of_lane:' .. lane, state ~= '' and ff.state_index(namespace, state)
  if not of_lane or not of_state then
    return of_lane or of_state or nil
  elseif call('ZCARD', ctx.base .. ':' .. of_lane) <= call('ZCARD', ctx.base .. ':' .. of_state) then
    return of_lane, of_state
  end
  return of_state, of_lane
end

-- Return the uuids of a namespace to look at after one, in order, and which of them may be shown. Damaged executions are in
-- no index of a lane or a state, so they are looked at whatever the filter asks for.
local function candidates(ctx, namespace, after, limit, lane, state)
  local index, other = indexes_for(ctx, namespace, lane, state)
  if not index then
    return uuids_in(ctx, 'ids', namespace, after, limit)
  end
  local found, damaged = uuids_in(ctx, index, '', after, limit), uuids_in(ctx, 'damaged', '', after, limit)
  local may_be_shown = {}
  if other and #found > 0 then
    local scores = call('ZMSCORE', ctx.base .. ':' .. other, unpack(found)) -- bounded: one page
    for i, uuid in ipairs(found) do
      may_be_shown[uuid] = scores[i] ~= false
    end
  end
  for _, uuid in ipairs(damaged) do
    may_be_shown[uuid] = ff.is_in_namespace(ctx, namespace, uuid)
  end
  return merged(found, damaged, limit), may_be_shown
end

-- list_executions: read a page of a namespace's executions, by id. Executions beyond the call's work budget are left for
-- the next call.
-- Arguments: pack{namespace}, after (a uuid) or '', limit, pack{namespace, lane} or '', a state with an index or '', then
-- the fields to read of each.
-- Replies: '1' if there may be more, else '0'; how many were looked at; the last of these or ''; then per execution: uuid,
-- the values in the order of the fields.
ff.register('list_executions', { 'no-writes' }, function(ctx, args)
  local namespace, after, limit, lane, state = args[1], args[2], tonumber(args[3]), args[4], args[5]
  local fields = { unpack(args, 6) } -- bounded: the caller's fixed list of names
  local uuids, may_be_shown = candidates(ctx, namespace, after, limit, lane, state)
  local looked, rows = 0, {}
  while looked < #uuids and (ctx.work > 0 or looked == 0) do
    looked = looked + 1
    local uuid = uuids[looked]
    if not may_be_shown or may_be_shown[uuid] ~= false then
      local key = ff.record_key(ctx, uuid)
      local values = show_gates(ctx, fields, values_of(key, fields))
      if (not values or values[1] or call('EXISTS', key) == 1) and not ff.is_hidden(ctx, uuid) then
        rows[#rows + 1] = { uuid, values }
      end
      ff.spend(ctx, 1, bytes_of(values))
    end
  end
  local more = looked < #uuids or #uuids == limit
  return { more and '1' or '0', looked, uuids[looked] or '', unpack(rows) } -- bounded: one page
end)

-- list_lanes: read a page of a namespace's lanes, by name.
-- Arguments: pack{namespace}, after (a name) or '', limit, then the names of the counters to read.
-- Replies: '1' if there may be more lanes, else '0'; then per lane: name, the counters in the order of their names.
ff.register('list_lanes', { 'no-writes' }, function(ctx, args)
  local namespace, after, limit = args[1], args[2], tonumber(args[3])
  local from = after ~= '' and '(' .. namespace .. after or '[' .. namespace
  local lanes = call('ZRANGE', ctx.base .. ':lanes', from, '(' .. namespace .. '\255', 'BYLEX', 'LIMIT', 0, limit)
  local names = { unpack(args, 4) } -- bounded: the caller's fixed list of names
  return ff.read_rows(ctx, lanes, limit, function(lane)
    local name = ff.behind_first(lane)
    local key = ctx.base .. ':lane:' .. namespace .. ff.pack({ name })
    local values = call('HMGET', key, unpack(names)) -- bounded: as above
    local waiting, limited = places_of(names, 'waiting', 'rate_limited')
    local held_back = waiting and ff.held_back(ctx, namespace .. ff.pack({ name })) or 0
    if held_back > 0 and tonumber(values[waiting] or '0') and tonumber(values[limited] or '0') then
      values[waiting] = ff.text((values[waiting] or 0) - held_back)
      values[limited] = ff.text((values[limited] or 0) + held_back)
    end
    return { name, values }
  end)
end)

-- explain_execution: read where a ready execution stands.
-- Arguments: uuid, pack{namespace, lane}, class.
-- Replies: now; since when the lane is paused, or false; place in the class from 0, or false; number of ready executions of
-- the class; and the first gate of the class that is closed, or nothing: its name, then what its kind explains.
ff.register('explain_execution', { 'no-writes' }, function(ctx, args)
  local uuid, lane, class = args[1], args[2], args[3]
  local ready, gate = ctx.base .. ':ready:' .. class, ff.closed_gate(ctx, class)
  local closed = gate and not gate.is_damaged and gate.kind and ff.joined({ { gate.name }, gate.kind.explain(ctx, gate) })
  return {
    ctx.now,
    call('HGET', ctx.base .. ':lane:' .. lane, 'paused'),
    call('ZRANK', ready, uuid),
    call('ZCARD', ready),
    closed or {},
  }
end)

-- server_time: read the store's clock.
-- Replies: now, in ms.
ff.register('server_time', { 'no-writes' }, function(ctx)
  return { ctx.now }
end)
