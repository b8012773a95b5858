-- Transitions that time causes, and how a store is set up, checked and erased.

-- End an execution whose deadline has passed, in any phase.
function ff.expire(ctx, record)
  ff.finish(ctx, record, 'expired', { 'error', 'execution_deadline', 'error_class', 'timeout', 'error_detail', '' }, true)
end

local function is_due(ctx, moment)
  local at = ff.number(moment)
  return at ~= nil and at <= ctx.now
end

-- Return a number in [0, 1) for the jitter of a retry that no caller drew a number for. It is made of the random digits
-- of the execution's id and its lease's id, so attempts that end at the same moment wait for different times.
local function draw_of(record)
  local lease = ff.fence_parts(record.fence)
  local drawn = (tonumber(string.sub(record.uuid, -8), 16) or 0) + (tonumber(string.sub(lease, -8), 16) or 0)
  return drawn % 2 ^ 32 / 2 ^ 32
end

-- Handle a timeout or a lapsed lease, whichever came first.
local function lapse(ctx, record)
  if is_due(ctx, record.timeout_at) and tonumber(record.timeout_at) <= tonumber(record.expires) then
    ff.fail_attempt(ctx, record, {
      class = 'timeout', message = 'attempt_timeout', draw = draw_of(record), told = true,
    })
  else
    -- The holder needs no message, because it knows when its lease expires.
    local list = { 'state', ff.LAPSED }
    ff.append(list, ff.end_attempt(ctx, record, 'lease_expired'))
    ff.end_lease(ctx, record, list)
  end
end

-- Handle the first thing that is due of an execution. Return whether there may be more to handle.
local function handle_one(ctx, record)
  local words = record.words
  if words.foreign then
    return false
  elseif words.phase == 'terminal' then
    if not record.flow and ff.kept_until(record) <= ctx.now then
      ff.remove(ctx, record)
    end
    return false
  elseif words.phase == 'suspended' and is_due(ctx, record.suspended_until)
    and tonumber(record.suspended_until) <= (ff.number(record.deadline) or math.huge) and ff.time_out(ctx, record) then
    return true
  elseif is_due(ctx, record.deadline) then
    ff.expire(ctx, record)
  elseif is_due(ctx, record.reserved_until) then
    ff.move(ctx, record, nil, { reserved_for = '', reserved_until = '' })
  elseif is_due(ctx, record.slot_until) then
    -- The slot that an execution got by hand lapses if no run has begun.
    local list = { 'slot_until', '' }
    ff.leave_gates(ctx, record, list, true)
    ff.change(ctx, record, list)
  elseif words.leased and (is_due(ctx, record.timeout_at) or is_due(ctx, record.expires)) then
    lapse(ctx, record)
  elseif words.eligibility == 'not_eligible_until_time' and is_due(ctx, record.delay_until) then
    ff.move(ctx, record, ff.READY .. string.sub(words.state, 6), {})
  else
    return false
  end
  return true
end

-- Handle everything of an execution that is due. Return whether its record still exists: its retention may be over, too.
function ff.catch_up(ctx, record)
  while handle_one(ctx, record) do
  end
  return record.words ~= nil
end

-- Handle the entry of an execution in a due index. The entry may be older than the record, so it is corrected first; what
-- only a newer release can handle is postponed.
local function handle_execution(ctx, uuid, index)
  if index == 'retention' and ff.remove_overdue(ctx, uuid) then
    return
  end
  local member = 'x' .. uuid
  local record = ff.load(ctx, uuid)
  if not record then
    return
  end
  local _, _, due, right = ff.derive(record)
  if right then
    ff.due_at(ctx, right, member, due)
  end
  if ff.catch_up(ctx, record) then
    _, _, due, right = ff.derive(record)
    if due and due <= ctx.now then
      ff.due_at(ctx, right, member, ctx.now + ff.POSTPONED)
    end
  end
end

-- Remove an empty class from the registry. Each class is checked every hour.
local function handle_class(ctx, class)
  local held = ff.number(call('HGET', ctx.base .. ':held', class)) or 0
  if held > 0 or call('EXISTS', ctx.base .. ':ready:' .. class) == 1 then
    ff.due_at(ctx, 'retention', 'c' .. class, ctx.now + ff.HOUR)
  else
    ff.forget_class(ctx, class)
  end
end

local HANDLERS = {
  x = handle_execution,
  c = handle_class,
  f = function(ctx)
    ff.trim_feed(ctx)
  end,
  w = function(ctx, worker)
    ff.forget_worker(ctx, worker)
  end,
  t = function(ctx, task)
    ff.forget_task(ctx, task)
  end,
  q = function(ctx, waiter)
    ff.unwait(ctx, waiter)
    ff.end_stand_by(ctx, waiter)
  end,
  g = function(ctx, gate, index)
    ff.handle_gate(ctx, gate, index)
  end,
  l = function(ctx, lane)
    ff.forget_lane(ctx, lane)
  end,
  k = function(ctx, field)
    ff.forget_claims(ctx, field)
  end,
  a = function(ctx, admission)
    ff.lapse_admission(ctx, admission)
  end,
  b = function(ctx, budget)
    ff.reset_due_budget(ctx, budget)
  end,
  h = function(ctx, reservations)
    ff.expire_reservations(ctx, reservations)
  end,
  u = function(ctx, budget)
    ff.forget_reports(ctx, budget)
  end,
  j = function(ctx, job)
    return ff.resume_job(ctx, job)
  end,
  y = function(ctx, flow)
    ff.remove_flow(ctx, flow)
  end,
}

-- How many commands an entry of a due index takes, a removal, and an end: 3, but 100 ends with all that they read fit into a call.
local ENTRY, REMOVAL, END = 4, 3, 2.9

-- Handle one entry. A damaged entry, or one that only a newer release knows, is postponed.
local function handle_entry(ctx, index, member)
  local kind, what = string.sub(member, 1, 1), string.sub(member, 2)
  local handler = HANDLERS[kind]
  -- A handler that wants to be called again notes a new entry.
  ff.due_at(ctx, index, member, false)
  local failed = not handler or ff.isolated(ctx, what, handler, what, index) ~= nil
  if failed and kind ~= 'x' then
    ff.due_at(ctx, index, member, ctx.now + ff.POSTPONED)
  end
end

-- Handle up to `limit` entries of one index that are due by `last`, after the first `offset`, and no more than one once the call
-- has only `least` of its work left. Return how many, and whether that work stopped it. An end takes as long as an entry.
local function run_index(ctx, index, last, offset, limit, least)
  local members = call('ZRANGE', ctx.base .. ':' .. index, '-inf', last, 'BYSCORE', 'LIMIT', offset, limit)
  for i, member in ipairs(members) do
    if i > 1 and ctx.work <= least then
      return i - 1, true
    end
    local ended = ctx.ended
    handle_entry(ctx, index, member)
    ff.spend(ctx, ENTRY * (1 + ctx.ended - ended), 0)
  end
  return #members, false
end

-- Handle up to `limit` delays that are over, in equal shares per lane. What a lane leaves of its share goes to the others.
local function run_delays(ctx, limit, least)
  local lanes = call('ZRANGE', ctx.base .. ':delayed', '-inf', ctx.now, 'BYSCORE', 'LIMIT', 0, math.min(limit, 32))
  local left, open, handled, is_stopped = limit, lanes, {}, false
  while left > 0 and #open > 0 and (ctx.work > least or open == lanes) do
    local share, still_open = math.ceil(left / #open), {}
    for _, lane in ipairs(open) do
      local wanted, before = math.min(share, left), handled[lane] or 0
      local count, stops = 0, false
      if wanted > 0 then
        count, stops = run_index(ctx, 'delays:' .. lane, ctx.now, before, wanted, least)
      end
      is_stopped = is_stopped or stops
      handled[lane] = before + count
      left = left - count
      if count == wanted then
        still_open[#still_open + 1] = lane
      end
    end
    open = still_open
  end
  return limit - left, lanes, is_stopped or left > 0 and #open > 0
end

-- Handle up to `limit` removals that are due by `last`, after those that this call has handled, for up to `work` commands;
-- return how many.
local function run_removals(ctx, last, limit, work)
  local count = run_index(ctx, 'retention', last, ctx.removals, limit, ctx.work - work)
  ctx.removals = ctx.removals + count
  return count
end

-- Handle up to `limit` removals that are due, within a share of the call's budget; return how many.
function ff.run_removals(ctx, limit, share)
  return run_removals(ctx, ctx.now, ff.allowed(ctx, limit, REMOVAL, share), math.max(0, ctx.work * share))
end

-- Handle twice as many removals as this call ended executions, so removal keeps pace. What ended in this millisecond is
-- left for a later call, so that this call can be repeated.
function ff.keep_pace(ctx)
  if ctx.ended > 0 then
    run_removals(ctx, '(' .. ctx.now_text, 2 * ctx.ended, 2 * ENTRY * ctx.ended)
    ctx.ended = 0
  end
end

-- Return how many commands one end takes, with the removals that keep pace with it if some are due. It is read once per call.
function ff.cost_of_end(ctx)
  if not ctx.cost_of_end then
    local removal = ff.first_moment(ctx, ':retention')
    ctx.cost_of_end = removal and removal < ctx.now and END + 2 * REMOVAL or END
  end
  return ctx.cost_of_end
end

-- Return what the first of two parts leaves of a budget, but never less than a quarter, so the second part always
-- progresses.
local function rest_of(limit, used)
  return math.max(limit - used, math.floor(limit / 4))
end

-- Handle up to `limit` entries that are due, within a share of the call's budget: leases, deadlines and reservations
-- first, then delays. Return how many. The indexes of both are up to date afterwards.
function ff.run_due(ctx, limit, share)
  limit = ff.allowed(ctx, limit, ENTRY, share)
  local least = ctx.work - ENTRY * limit
  local handled, is_stopped = run_index(ctx, 'due', ctx.now, 0, limit, least)
  local delays, lanes, stops = run_delays(ctx, rest_of(limit, handled), math.min(least, ctx.work - ENTRY * limit / 4))
  if handled + delays > 0 then
    ff.run_jobs(ctx)
    ff.flush_gates(ctx)
    ff.flush_ready(ctx)
    ff.flush_due(ctx)
  end
  for _, lane in ipairs(lanes) do
    ff.settle_lane(ctx, lane)
  end
  ctx.is_cut_short = is_stopped or stops or handled + delays >= limit
  return handled + delays
end

-- How many removals one call of upkeep handles: few, because the server frees a payload and a result of 1 MiB at once.
local MOST_REMOVED = 32

-- run_upkeep: handle what is due.
-- Arguments: most entries to handle, call id.
-- Replies: how many were handled; now; next due moment or false; the lanes that other partitions have to follow, as
-- ff.lanes_following returns them; and what this partition owes to others, as ff.owed returns it.
ff.register('run_upkeep', { 'allow-oom' }, function(ctx, args)
  local limit, call_id = tonumber(args[1]), args[2]
  local meta = ctx.base .. ':meta'
  local memory = call('HGET', meta, 'upkeep')
  local before = ff.recall(memory, call_id)
  if before then
    return { tonumber(before[1]), ctx.now, ff.next_due_or_removal(ctx) or false, ff.lanes_following(ctx), ff.owed(ctx, 100) }
  end
  ff.repair_scores(ctx)
  local handled = ff.run_due(ctx, limit, 0.75)
  handled = handled + ff.run_removals(ctx, math.min(MOST_REMOVED, rest_of(limit, handled)), 1)
  if handled > 0 then
    call('HSET', meta, 'upkeep', ff.remember(memory, call_id, { ff.text(handled) }))
  end
  if ctx.meta.is_real then
    -- The latest time is stored, so a clock that is set back is noticed.
    call('HSET', meta, 'feed_last', ctx.feed_now)
  end
  ff.flush(ctx)
  return { handled, ctx.now, ff.next_due_or_removal(ctx) or false, ff.lanes_following(ctx), ff.owed(ctx, 100) }
end)

-- check_rights: find the commands that the caller may not use. It touches no key, so any user may run it.
-- Arguments: a key, a channel, then command names, each with its subcommand behind a space.
-- Replies: the commands that the caller may not use at all, or not on that key or channel.
redis.register_function({
  function_name = '@NAMES@check_rights',
  callback = function(_, args)
    local key, channel = args[1], args[2]
    -- fakeredis has no users and lacks this function.
    local acl_check_cmd = redis.acl_check_cmd
    if not acl_check_cmd then
      return {}
    end
    local refused = {}
    for i = 3, #args do
      local name, subcommand = string.match(args[i], '^(%S+) ?(%S*)$')
      local on = (name == 'PUBLISH' or name == 'SUBSCRIBE') and channel or key
      if not acl_check_cmd(name, subcommand ~= '' and subcommand or on) then
        refused[#refused + 1] = args[i]
      end
    end
    return refused
  end,
  flags = { 'no-writes' },
})

-- prepare: set a partition up, or return how it was set up.
-- Arguments: contract major, partitions, '1' for a store for tests, call id, how long ends stay in the feed in ms or ''
-- to keep the present time; kid, secret and fingerprint of the first secret for waitpoint tokens, which are stored unless
-- there is one.
-- Replies: 'prepared' or 'known', then the stored major, partitions, '1' for tests, kid, secret, fingerprint, and what tells
-- of a mistyped key or ''.
ff.register('prepare', {}, function(ctx, args)
  local major, partitions, testing, call_id, feed_age = args[1], args[2], args[3], args[4], args[5]
  local kid, secret, fingerprint = args[6], args[7], args[8]
  local meta = ctx.base .. ':meta'
  local new = call('HSETNX', meta, 'major', major)
  if new == 1 then
    call('HSET', meta, 'partitions', partitions, 'testing', testing, 'created', ctx.now)
    call('HSET', meta, 'prepared', ff.remember(nil, call_id, { 'prepared' }))
  end
  if feed_age ~= '' then
    call('HSET', meta, 'feed_age', feed_age)
  end
  local stored = call('HMGET', meta, 'major', 'partitions', 'testing', 'prepared')
  local status = ff.recall(stored[4], call_id) and 'prepared' or 'known'
  kid, secret, fingerprint = ff.first_secret(ctx, kid, secret, fingerprint)
  return { status, stored[1], stored[2], stored[3], kid, secret, fingerprint, ff.mistyped(ctx.base) or '' }
end)

-- set_clock: stop the clock of a store for tests at a moment.
-- Arguments: the moment in ms, or '' for the real clock.
-- Replies: 'ok'.
-- Errors: clock_not_settable.
ff.register('set_clock', {}, function(ctx, args)
  local moment = args[1]
  if call('HGET', ctx.base .. ':meta', 'testing') ~= '1' then
    return ff.failure('clock_not_settable')
  end
  if moment == '' then
    call('HDEL', ctx.base .. ':meta', 'clock')
  else
    call('HSET', ctx.base .. ':meta', 'clock', moment)
  end
  return { 'ok' }
end)

-- Remove at most `limit` members of an index and what they name; return whether those were all.
local function empty(ctx, index, limit, remove)
  local members = call('ZRANGE', ctx.base .. index, 0, limit - 1)
  for _, member in ipairs(members) do
    remove(member)
  end
  ff.chunked('ZREM', ctx.base .. index, members)
  return #members < limit
end

-- erase: remove everything that a partition of a store for tests holds.
-- Arguments: most entries to remove in this call.
-- Replies: 'erased', or 'more' if the call has to be repeated.
-- Errors: configuration_mismatch.
ff.register('erase', { 'allow-oom' }, function(ctx, args)
  local limit = tonumber(args[1])
  local stored = call('HMGET', ctx.base .. ':meta', 'major', 'testing')
  if stored[1] and stored[2] ~= '1' then
    return ff.failure('configuration_mismatch', 'testing', '0', '1')
  end
  local is_empty = empty(ctx, ':ids', limit, function(member)
    local record = ff.record_key(ctx, (ff.behind_first(member)))
    local readable, values = pcall(call, 'HMGET', record, 'idempotency_key', 'keys')
    if readable then
      ff.remove_keys(ctx, values[2])
      call('DEL', ctx.base .. ':key:' .. (values[1] or ''))
    end
    call('DEL', record)
  end) and empty(ctx, ':classes', limit, function(class)
    call('DEL', ctx.base .. ':ready:' .. class)
  end) and empty(ctx, ':lanes', limit, function(lane)
    local name, namespace = ff.behind_first(lane)
    local packed = namespace .. ff.pack({ name })
    call('DEL', ctx.base .. ':lane:' .. packed, ctx.base .. ':delays:' .. packed, ctx.base .. ':of_lane:' .. packed)
    for _, state in ipairs(ff.LISTED) do
      call('DEL', ctx.base .. ':' .. ff.state_index(namespace, state))
    end
  end)
  for _, index in ipairs({ ':flows', ':building' }) do
    is_empty = is_empty and empty(ctx, index, limit, function(member)
      for _, kind in ipairs({ 'flow', 'links', 'edges', 'groups' }) do
        call('UNLINK', ff.flow_key(ctx, kind, (ff.behind_first(member))))
      end
    end)
  end
  is_empty = is_empty and empty(ctx, ':lane_sets', limit, function(member)
    call('DEL', ctx.base .. ':idle:' .. string.match(member, '%z([^%z]*)$'))
  end) and empty(ctx, ':budgets', limit, function(budget)
    ff.remove_keys_of_budget(ctx, budget)
  end)
  is_empty = is_empty and empty(ctx, ':quotas', limit, function(member)
    local id, namespace = ff.behind_first(member)
    local quota = namespace .. ff.pack({ id })
    ff.remove_keys_of_quota(ctx, quota)
  end) and empty(ctx, ':elsewhere', limit, function(gate)
    call('DEL', ctx.base .. ':gate:' .. gate)
  end)
  if not is_empty then
    return { 'more' }
  end
  for _, names in pairs(ff.SINGLE_KEYS) do
    for _, name in ipairs(names) do
      call('DEL', ctx.base .. name)
    end
  end
  return { 'erased' }
end)
