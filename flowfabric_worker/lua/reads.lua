-- reads: what is stored, as it is. What it means is said in Python, which decodes strictly.

-- The values of some fields of a record; false where something else lies in its place.
local function values_of(key, fields)
  local readable, values = pcall(call, 'HMGET', key, unpack(fields)) -- bounded: the caller's fixed list of names
  return readable and values
end

-- read_executions: some fields of some executions. Arguments: pack{namespace}, number of fields, the fields, the uuids.
-- Answers per uuid: the values in that order, nothing for an execution that does not exist, false where something else
-- lies in its place.
ff.register('read_executions', { 'no-writes' }, function(ctx, args)
  local namespace, count = args[1], tonumber(args[2])
  local fields = { unpack(args, 3, count + 2) } -- bounded: the caller's fixed list of names
  local answer = {}
  for at = count + 3, #args do
    local key = ff.record_key(ctx, args[at])
    local exists = ff.is_in_namespace(ctx, namespace, args[at]) and call('EXISTS', key) == 1
    answer[#answer + 1] = not exists and {} or values_of(key, fields)
  end
  return answer
end)

-- list_executions: a page of a namespace's executions by id. Arguments: pack{namespace}, after (a uuid) or '', limit,
-- then the fields to read of each. Answers: per execution: uuid, values.
ff.register('list_executions', { 'no-writes' }, function(ctx, args)
  local namespace, after = args[1], args[2]
  local from = after ~= '' and '(' .. namespace .. after or '[' .. namespace
  -- Ids begin with a hexadecimal digit, which sorts before 'g'.
  local members = call('ZRANGE', ctx.base .. ':ids', from, '(' .. namespace .. 'g', 'BYLEX', 'LIMIT', 0, tonumber(args[3]))
  local fields = { unpack(args, 4) } -- bounded: the caller's fixed list of names
  local answer = {}
  for i, member in ipairs(members) do
    local uuid = string.sub(member, #namespace + 1)
    answer[i] = { uuid, values_of(ff.record_key(ctx, uuid), fields) }
  end
  return answer
end)

-- list_lanes: a page of a namespace's lanes by name. Arguments: pack{namespace}, after (a name) or '', limit, then the
-- names of the counters to read. Answers: per lane: name, values.
ff.register('list_lanes', { 'no-writes' }, function(ctx, args)
  local namespace = args[1]
  local from = args[2] ~= '' and '(' .. namespace .. args[2] or '[' .. namespace
  local lanes = call('ZRANGE', ctx.base .. ':lanes', from, '(' .. namespace .. '\255', 'BYLEX', 'LIMIT', 0, tonumber(args[3]))
  local names = { unpack(args, 4) } -- bounded: the caller's fixed list of names
  local answer = {}
  for i, lane in ipairs(lanes) do
    local name = ff.behind_first(lane)
    local key = ctx.base .. ':lane:' .. namespace .. ff.pack({ name })
    answer[i] = { name, call('HMGET', key, unpack(names)) } -- bounded: as above
  end
  return answer
end)

-- explain_execution: where a ready execution stands. Arguments: uuid, lane, class. Answers: now, paused since or
-- nothing, place in its class from 0 or nothing, what its class holds.
ff.register('explain_execution', { 'no-writes' }, function(ctx, args)
  local ready = ctx.base .. ':ready:' .. args[3]
  return {
    ctx.now,
    call('HGET', ctx.base .. ':lane:' .. args[2], 'paused'),
    call('ZRANK', ready, args[1]),
    call('ZCARD', ready),
  }
end)

-- server_time: now, in ms.
ff.register('server_time', { 'no-writes' }, function(ctx)
  return { ctx.now }
end)
