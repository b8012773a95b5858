-- damage: executions whose records are damaged.

-- set_aside: a worker cannot read what it has claimed. Arguments: uuid, the claim's id, what is wrong. Answers:
-- 'set_aside', or 'not_held' when another lease has followed.
ff.register_single('set_aside', { 'allow-oom' }, function(ctx, args)
  local record, failure = ff.load(ctx, args[1])
  if not record then
    return failure[2] == 'corruption' and { 'set_aside' } or failure
  elseif not record.words.leased or ff.fence_parts(record.fence) ~= args[2] then
    return { 'not_held' }
  end
  ff.set_aside(ctx, args[1], args[3], record.class)
  return { 'set_aside' }
end)

-- list_damaged: a page of the executions that were set aside, by id. Arguments: after (a uuid) or '', limit.
-- Answers: per execution: uuid, pack{what is damaged, its packed namespace or ''}.
ff.register('list_damaged', { 'no-writes' }, function(ctx, args)
  local from = args[1] ~= '' and '(' .. args[1] or '-'
  local uuids = call('ZRANGE', ctx.base .. ':damaged', from, '+', 'BYLEX', 'LIMIT', 0, tonumber(args[2]))
  local answer = {}
  for i, uuid in ipairs(uuids) do
    answer[i] = { uuid, call('HGET', ctx.base .. ':damage', uuid) }
  end
  return answer
end)
