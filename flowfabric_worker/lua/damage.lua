-- Executions whose records are damaged.

-- set_aside: list as damaged a claimed execution that its worker cannot decode.
-- Arguments: uuid, claim id, name of the damaged field.
-- Replies: 'set_aside', or 'not_held' if the execution has another lease by now.
-- Errors: execution_not_found.
ff.register_single('set_aside', { 'allow-oom' }, function(ctx, args)
  local uuid, claim_id, field = args[1], args[2], args[3]
  local record, failure = ff.load(ctx, uuid)
  if not record then
    return failure[2] == 'corruption' and { 'set_aside' } or failure
  elseif not record.words.leased or ff.fence_parts(record.fence) ~= claim_id then
    return { 'not_held' }
  end
  ff.set_aside(ctx, uuid, field, record.class)
  return { 'set_aside' }
end)

-- list_damaged: read a page of the executions that were set aside, by id.
-- Arguments: after (a uuid) or '', limit.
-- Replies: '1' if there may be more, else '0'; then per execution: uuid, pack{damaged field, packed namespace or ''}.
ff.register('list_damaged', { 'no-writes' }, function(ctx, args)
  local after, limit = args[1], tonumber(args[2])
  local from = after ~= '' and '(' .. after or '-'
  local uuids = call('ZRANGE', ctx.base .. ':damaged', from, '+', 'BYLEX', 'LIMIT', 0, limit)
  return ff.read_rows(ctx, uuids, limit, function(uuid)
    return { uuid, call('HGET', ctx.base .. ':damage', uuid) }
  end)
end)
