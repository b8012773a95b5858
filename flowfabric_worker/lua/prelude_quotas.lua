-- Quotas as gates: how many executions of their classes run at once, and how many attempts begin in a sliding window.
--
--   :quotas          zset    the quotas of this partition, by namespace and id
--   :gate:q<quota>   hash    window, rate, slots, hold: what it allows, '' for no limit; created; answered: its last calls;
--                            counted: the attempts in the window; oldest: the moment of the first of them; newest,
--                            newest_count: the last entry of :began; pending, users, asking, turn: see prelude_admissions.lua
--   :holders:<quota> zset    the executions that have a slot; score = when it is checked that they still have it
--   :began:<quota>   zset    the attempts that began in the window, '<moment>|<number>'; score = the moment
--
-- A quota is pack{namespace, id}. An attempt counts until its moment is as old as the window is long. Many attempts are
-- counted together: those of one millisecond, and under a high rate those of a thousandth of the window.
--
-- A holder in this partition is its uuid, and one in another partition is '<uuid>@<partition>@<claim>': a claim that was
-- forgotten never takes the slot of a later one.

local FIELDS = {
  'window', 'rate', 'slots', 'hold', 'created', 'answered', 'counted', 'oldest', 'newest', 'newest_count', 'pending',
  'users', 'asking', 'turn', 'shut', 'why',
}
local NUMBERS = {
  'window', 'rate', 'slots', 'counted', 'oldest', 'newest', 'newest_count', 'pending', 'turn', 'shut',
}

-- Up to which rate each millisecond is an entry of its own.
local MOST_ENTRIES = 1000

-- How many entries of a window one call removes; how many holders of slots it checks that are due, and how many of the last ones,
-- whose moments may be damaged.
local MOST_TRIMMED, MOST_CHECKED, LAST_CHECKED = 256, 32, 8

-- How often the holders of slots are checked, in ms.
local CHECK_EVERY = 60000

local quotas = { eligibility = 'q', blocking = 'q', cost = 3 }
ff.gate_kinds.q = quotas

function quotas.holders_key(ctx, gate)
  return ctx.base .. ':holders:' .. string.sub(gate.name, 2)
end

function quotas.began_key(ctx, gate)
  return ctx.base .. ':began:' .. string.sub(gate.name, 2)
end

-- Set how many executions a quota admits, which limit stops the next one, and when that may change by itself. What claims of
-- other partitions may still take counts against both limits.
function quotas.measure(gate)
  local slots = gate.slots and gate.slots - gate.running - gate.pending or math.huge
  local rate = gate.rate and gate.rate - gate.counted - gate.pending or math.huge
  gate.allowance = math.max(0, math.min(slots, rate))
  gate.why = rate <= 0 and 'rate' or slots <= 0 and 'concurrency' or nil
  gate.till = rate <= 0 and gate.oldest and gate.oldest + gate.window or nil
end

-- Leave out of the count what is older than the window; the entries are removed when the quota is written.
local function trim(ctx, gate)
  local last = ctx.now - gate.window
  if not gate.oldest or gate.oldest > last then
    return
  end
  local entries = call('ZRANGE', quotas.began_key(ctx, gate), 0, MOST_TRIMMED, 'WITHSCORES')
  gate.oldest = nil
  for i = 1, #entries, 2 do
    local moment = tonumber(entries[i + 1])
    if moment > last or i > 2 * MOST_TRIMMED then
      gate.oldest = moment
      return
    end
    gate.expired[#gate.expired + 1] = entries[i]
    gate.counted = gate.counted - tonumber(string.match(entries[i], '|(%d+)$'))
  end
  -- Nothing began in the window, so nothing counts, whatever the counter says.
  gate.counted = 0
end

function quotas.load(ctx, gate)
  local values = call('HMGET', gate.key, unpack(FIELDS)) -- bounded: a fixed list of names
  for i, field in ipairs(FIELDS) do
    gate[field] = values[i] and values[i] ~= '' and values[i] or nil
  end
  for _, field in ipairs(NUMBERS) do
    if gate[field] and not ff.stored_moment(gate[field]) then
      gate.damaged = field
      return
    end
    gate[field] = ff.number(gate[field])
  end
  gate.is_for_run = gate.hold == 'run'
  if not gate.window then
    gate.damaged = gate.created and 'window'
    ff.load_elsewhere(ctx, gate)
    return
  end
  gate.counted, gate.expired, gate.began, gate.changes = gate.counted or 0, {}, 0, {}
  gate.pending = gate.pending or 0
  gate.running = call('ZCARD', quotas.holders_key(ctx, gate))
  trim(ctx, gate)
  quotas.measure(gate)
end

-- Remove the keys of a quota.
function ff.remove_keys_of_quota(ctx, quota)
  for _, key in ipairs({ ':gate:q', ':holders:', ':began:', ':admitted:' }) do
    call('UNLINK', ctx.base .. key .. quota)
  end
end

function quotas.exists(ctx, name)
  return call('EXISTS', ctx.base .. ':gate:' .. name) == 1
end

function quotas.unknown(id)
  return ff.failure('quota_policy_not_found', id)
end

-- Count that a holder has a slot, and that its attempt begins now unless it began earlier.
function quotas.take_slot(ctx, gate, holder, expires, again)
  gate.changes[holder], gate.running, gate.is_changed = expires, gate.running + 1, true
  if gate.rate and not again then
    gate.began, gate.counted, gate.oldest = gate.began + 1, gate.counted + 1, gate.oldest or ctx.now
  end
  quotas.measure(gate)
end

function quotas.admit(ctx, gate, uuid, expires, again)
  if gate.is_elsewhere then
    ff.take_admission(ctx, gate, uuid, again)
  elseif not gate.is_missing then
    quotas.take_slot(ctx, gate, uuid, expires, again)
  end
end

function quotas.leave(_, gate, uuid, claim)
  if gate.is_elsewhere then
    ff.leave_elsewhere(gate, uuid, claim)
  elseif not gate.is_missing then
    gate.changes[uuid], gate.is_changed = false, true
  end
end

-- Count the attempts that began in this call, and remove the entries that are older than the window.
local function flush_window(ctx, gate)
  local key = quotas.began_key(ctx, gate)
  ff.chunked('ZREM', key, gate.expired)
  if gate.began > 0 then
    local grid = gate.rate > MOST_ENTRIES and math.ceil(gate.window / 1000) or 1
    local moment, count = math.ceil(ctx.now / grid) * grid, gate.began
    if gate.newest == moment then
      call('ZREM', key, ff.text(moment) .. '|' .. ff.text(gate.newest_count or 0))
      count = count + (gate.newest_count or 0)
    end
    call('ZADD', key, moment, ff.text(moment) .. '|' .. ff.text(count))
    gate.newest, gate.newest_count = moment, count
  end
  call(
    'HSET', gate.key, 'counted', ff.text(gate.counted), 'oldest', gate.oldest and ff.text(gate.oldest) or '', 'newest',
    gate.newest and ff.text(gate.newest) or '', 'newest_count', ff.text(gate.newest_count or 0)
  )
  gate.expired, gate.began = {}, 0
end

-- Note that the holders of slots are checked, unless that is noted already.
local function check_later(ctx, gate)
  call('ZADD', ctx.base .. ':retention', 'NX', ctx.now + CHECK_EVERY, 'g' .. gate.name)
end

-- A quota without a free slot may be full of holders that were written wrongly, of which nothing else is noted.
function quotas.watch(ctx, gate)
  if gate.window and gate.why == 'concurrency' and not gate.is_watched then
    gate.is_watched = true
    check_later(ctx, gate)
  end
end

function quotas.flush(ctx, gate)
  if gate.is_elsewhere then
    ff.flush_elsewhere(ctx, gate)
    return
  end
  local key = quotas.holders_key(ctx, gate)
  local added, removed = ff.split(gate.changes)
  gate.changes = {}
  ff.chunked('ZREM', key, removed)
  ff.chunked('ZADD', key, added)
  if #added > 0 then
    check_later(ctx, gate)
  end
  if gate.began > 0 or #gate.expired > 0 then
    flush_window(ctx, gate)
  end
  if gate.has_pending then
    gate.has_pending = false
    call('HSET', gate.key, 'pending', ff.text(gate.pending))
  end
  gate.running = call('ZCARD', key)
  quotas.measure(gate)
end

-- Return until when an execution has a slot of a quota, or nil if it has none; and the claim that took the slot, if the quota
-- is in another partition.
function quotas.has_until(ctx, gate, uuid)
  local record = ff.found(ctx, uuid, ff.load)
  local known = record and ff.class(record.class)
  if not record or record.words.phase == 'terminal' then
    return nil
  elseif known.held == gate.name then
    return record.words.leased and tonumber(record.expires) or ctx.now, record.slot
  elseif record.words.leased then
    local lease = ff.fence_parts(record.fence)
    for i = 1, known.gates and #known.gates or 0 do
      if known.gates[i] == gate.name and record.slot ~= ff.given_back(lease) then
        return tonumber(record.expires), lease
      end
    end
  end
  return nil
end

-- Check the holders of slots whose lease should be over, and the last ones. What they count is right unless a record or a holder
-- was damaged; what happened in another partition is asked there.
function quotas.check(ctx, gate)
  if gate.is_elsewhere then
    return
  end
  local key = quotas.holders_key(ctx, gate)
  local holders = call('ZRANGE', key, '-inf', ctx.now, 'BYSCORE', 'LIMIT', 0, MOST_CHECKED)
  local has_more = #holders == MOST_CHECKED
  ff.append(holders, call('ZRANGE', key, 0, LAST_CHECKED - 1, 'REV'))
  for _, holder in ipairs(holders) do
    local next_check = ctx.now + CHECK_EVERY
    if not ff.ask_about(ctx, gate, holder) then
      local until_ms = quotas.has_until(ctx, gate, holder)
      next_check = until_ms and math.max(until_ms, next_check) or false
    end
    gate.changes[holder], gate.is_changed = next_check, true
  end
  ff.spend(ctx, 2 * #holders, 0)
  if gate.running > 0 then
    ff.due_at(ctx, 'retention', 'g' .. gate.name, has_more and ctx.now or ctx.now + CHECK_EVERY)
  end
end

-- Return what explain_execution tells of a closed quota: which limit, how much it allows, the window, until when, then the
-- first executions that have a slot: the uuid, the moment at which the lease expires if it is known, and the partition if that
-- is another one.
function quotas.explain(ctx, gate)
  local row = { gate.why or '', ff.text((gate.why == 'rate' and gate.rate or gate.slots) or 0), ff.text(gate.window or 0),
    gate.till and ff.text(gate.till) or '' }
  for _, holder in ipairs(call('ZRANGE', quotas.holders_key(ctx, gate), 0, 2)) do
    local uuid, partition = ff.holder_elsewhere(holder)
    local expires = uuid and '' or call('HGET', ff.record_key(ctx, holder), 'expires') or ''
    ff.append(row, { uuid or holder, expires, partition or '' })
  end
  return row
end
