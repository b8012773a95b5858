-- The record of an execution: how it is loaded, what the indexes must say of it, and how it is changed.
--
-- A record is a hash. Its values are short, so plain work stays in the compact encoding of hashes:
--
--   state            six letters, see prelude_states.lua
--   class            its class, see prelude.lua
--   priority, place  where it stands among the ready ones
--   fence            <lease>:<epoch>:<attempt>, see prelude_leases.lua
--   expires          until when the lease holds
--   attempt          <index>|<type>|<kind>|<started>|<ended> of the present or last attempt
--   holder, topic    pack{worker id, instance}, and the topic to which the process listens
--   policy           the values of its policy, each followed by '|'
--   timeout_at       when the attempt times out
--   more             '1' if a field of ff.MORE is present

-- The fields that every operation reads, and the fields that plain work does not have.
ff.CORE = { 'state', 'class', 'priority', 'place', 'fence', 'expires', 'attempt', 'policy', 'timeout_at', 'more' }
ff.MORE = {
  'deadline', 'delay_until', 'idempotency_key', 'dedup_until', 'ended', 'reserved_for', 'reserved_until', 'retry_count',
  'reclaim_count', 'tags', 'watchers', 'suspension', 'suspended_at', 'suspended_until', 'timeout_left', 'stream', 'budgets',
  'slot_until', 'slot', 'flow', 'children',
}
-- The fields that make `more` true: all but the end, since everything is read of ended work.
local NEEDS_MORE = {}
for i = 1, #ff.MORE do
  NEEDS_MORE[ff.MORE[i]] = ff.MORE[i] ~= 'ended'
end

local CORE_COUNT = #ff.CORE

-- Loading -----------------------------------------------------------------------------------------------------------

-- Read further fields into a record; an absent field is false. Return the first damaged field, or nil. The bytes of all fields
-- that are read into records count as work, because some fields may be large.
function ff.read(ctx, record, fields)
  local values, bytes = call('HMGET', record.key, unpack(fields)), 0 -- bounded: a fixed list of names
  for i = 1, #fields do
    record[fields[i]] = values[i]
    bytes = bytes + (values[i] and #values[i] or 0)
  end
  ff.spend(ctx, 0, bytes)
  return ff.damage_in(record, fields)
end

-- Return the id of an execution as callers know it.
function ff.id(ctx, record)
  return '{fp:' .. ctx.partition .. '}:' .. record.uuid
end

-- Return the key of an execution's record.
function ff.record_key(ctx, uuid)
  return ctx.base .. ':x:' .. uuid
end

-- Read the fields from index `first` on that are not yet in a record. Return the first damaged field, or nil.
local function read_missing(ctx, record, fields, first)
  local missing = {}
  for i = first, #fields do
    -- What is absent of the fields that only some work has is known to be absent.
    if record[fields[i]] == nil and not (record.more and NEEDS_MORE[fields[i]] ~= nil) then
      missing[#missing + 1] = fields[i]
    end
  end
  return #missing > 0 and ff.read(ctx, record, missing) or nil
end

-- Read a record whose `fields` begin with ff.CORE, or return nil if there is none.
local function read_new(ctx, uuid, fields)
  local key = ctx.base .. ':x:' .. uuid
  local values = call('HMGET', key, unpack(fields)) -- bounded: a fixed list of names
  local state, class, priority, place, fence, expires, attempt, policy, timeout_at, more =
    unpack(values, 1, CORE_COUNT) -- bounded: the names of ff.CORE
  if not state and call('EXISTS', key) == 0 then
    return nil
  end
  local record = {
    uuid = uuid, key = key, words = state and ff.words(state), class = class, priority = priority, place = place,
    fence = fence, expires = expires, attempt = attempt, policy = policy, timeout_at = timeout_at, more = more,
  }
  local bytes = 0
  for i = CORE_COUNT + 1, #fields do
    local value = values[i]
    record[fields[i]] = value
    bytes = bytes + (value and #value or 0)
  end
  ff.spend(ctx, 0, bytes)
  return record
end

-- Read the fields that only some work has. Those that are absent stay nil, since with all of them the table of the record
-- would grow fourfold. Return the first damaged field, or nil.
local function read_more(ctx, record)
  local values = call('HMGET', record.key, unpack(ff.MORE)) -- bounded: a fixed list of names
  local damaged, bytes = nil, 0
  for i = 1, #ff.MORE do
    local value = values[i]
    if value then
      record[ff.MORE[i]] = value
      bytes = bytes + #value
      damaged = damaged or ff.is_damaged(ff.MORE[i], value) and ff.MORE[i]
    end
  end
  ff.spend(ctx, 1, bytes)
  return damaged
end

-- Return the first damaged field of a record that was just read, or nil. Its fields of ff.MORE are read here if it has any.
local function damage_in_new(ctx, record, fields)
  local damaged = ff.damage_in_core(record)
  if not damaged and #fields > CORE_COUNT then
    damaged = ff.damage_in(record, fields, CORE_COUNT + 1)
  end
  if not damaged and (record.more or record.words.phase == 'terminal') then
    damaged = read_more(ctx, record) or record.words.phase == 'terminal' and not record.ended and 'ended'
  end
  return damaged
end

-- Load and check the record of an execution. Return it, or nil and the failure. An absent field is false. `fields`, if
-- given, begin with ff.CORE; `class`, if given, is the class in whose index the execution was found. A record is loaded
-- once per call.
function ff.load(ctx, uuid, fields, class)
  fields = fields or ff.CORE
  local record, damaged = ctx.records[uuid], nil
  if record then
    damaged = read_missing(ctx, record, fields, CORE_COUNT + 1)
  else
    record = read_new(ctx, uuid, fields)
    damaged = record and damage_in_new(ctx, record, fields)
  end
  if not record or not record.words and not damaged then
    return nil, ff.failure('execution_not_found', uuid)
  elseif not damaged and class and class ~= record.class then
    damaged = 'class'
  end
  if damaged then
    ctx.records[uuid] = nil
    return nil, ff.set_aside(ctx, uuid, damaged, class or record.class)
  end
  ctx.records[uuid] = record
  return record
end

-- Indexes -----------------------------------------------------------------------------------------------------------

-- Return the earlier of a moment and a stored moment, either of which may be missing.
local function sooner(due, stored)
  local moment = stored and tonumber(stored)
  if moment and not (due and due <= moment) then
    return moment
  end
  return due
end

-- Return until when an ended execution is kept: its retention and the window of its idempotency key, whichever is longer.
function ff.kept_until(record)
  local kept = record.ended + (ff.policy(record).retention or ff.DEFAULT_RETENTION_MS)
  local held = record.dedup_until and tonumber(record.dedup_until)
  return held and held > kept and held or kept
end

-- Return the next moment of work that has fields of ff.MORE and has not ended, and the due index that holds it.
local function next_moment(record)
  local words = record.words
  local due = sooner(sooner(sooner(nil, record.reserved_until), record.deadline), record.slot_until)
  if words.leased then
    due = sooner(sooner(due, record.expires), record.timeout_at)
  elseif words.phase == 'suspended' then
    due = sooner(due, record.suspended_until)
  elseif words.eligibility == 'not_eligible_until_time' then
    local soonest = sooner(due, record.delay_until)
    if soonest ~= due then
      return soonest, ff.class(record.class).delays
    end
  end
  return due, due and 'due'
end

-- Return what the indexes must say of a record: its public state, its score among the ready ones, its next moment, and the
-- due index of that moment: 'due' for leases, deadlines and reservations, the lane's delays, or 'retention' for ended work.
-- An execution stands in one of these, at its earliest moment; a member of a flow is kept as long as its flow.
function ff.derive(record)
  local words = record.words
  if words.phase == 'terminal' then
    if record.flow then
      return words.public
    end
    return words.public, nil, ff.kept_until(record), 'retention'
  end
  local ready, due, index
  if words.claimable and not (record.more and tonumber(record.reserved_until or '')) then
    ready = record.place - record.priority * 1e12
  end
  if record.more then
    due, index = next_moment(record)
  elseif words.leased then
    due, index = sooner(ff.moment_in(record.expires), record.timeout_at), 'due'
  end
  return words.public, ready, due, index
end

-- Count and list that an execution of a class went from one public state to another; nil stands for a new or a removed one.
-- Counted are the depths of its lane, and the executions of the class that have not ended.
function ff.count(ctx, class, uuid, old, new)
  local known = ff.class(class)
  local lane = known.lane
  local counts = ctx.counts[lane]
  if not counts then
    counts = {}
    ctx.counts[lane] = counts
  end
  local held = 0
  if old then
    counts[old] = (counts[old] or 0) - 1
    held = ff.ENDED[old] and 0 or -1
  end
  if new then
    counts[new] = (counts[new] or 0) + 1
    held = ff.ENDED[new] and held or held + 1
  end
  if held ~= 0 then
    if not ctx.held[class] then
      -- The commands that update the indexes of one more class when the call ends.
      ff.spend(ctx, 2, 0)
    end
    ctx.held[class] = (ctx.held[class] or 0) + held
  end
  if known.gates then
    ff.count_waiting(ctx, known, class, (new == 'waiting' and 1 or 0) - (old == 'waiting' and 1 or 0))
  end
  ff.list(ctx, known, uuid, old, new)
end

-- Note that an execution is ready in a class with a score, or not ready if the score is false.
function ff.ready_at(ctx, class, uuid, score)
  local entries = ctx.ready[class]
  if entries then
    entries[uuid] = score
  else
    ctx.ready[class] = { [uuid] = score }
  end
end

-- Note what the indexes must say of a record and what they said before, both as ff.derive returns them. A new or removed
-- record has none.
function ff.follow(ctx, record, public, ready, due, index, old_public, old_ready, old_due, old_index)
  if old_public ~= public then
    ff.count(ctx, record.class, record.uuid, old_public, public)
    if record.flow then
      ff.count_member(ctx, record.flow, old_public, public)
    end
  end
  if old_ready ~= ready then
    ff.ready_at(ctx, record.class, record.uuid, ready or false)
  end
  if old_due ~= due or old_index ~= index then
    local member = 'x' .. record.uuid
    if old_index and old_index ~= index then
      ff.due_at(ctx, old_index, member, false)
    end
    if index then
      ff.due_at(ctx, index, member, due)
    end
  end
end

-- Changing ----------------------------------------------------------------------------------------------------------

-- Change a record and note what its indexes must say. `list` is name, value, name, value. Everything is computed before the
-- first write.
function ff.change(ctx, record, list)
  local public, ready, due, index = ff.derive(record)
  local more = record.more
  for i = 1, #list, 2 do
    local field = list[i]
    if field == 'state' then
      record.words = ff.words(list[i + 1])
    else
      record[field] = list[i + 1]
      more = more or NEEDS_MORE[field]
    end
  end
  if more and not record.more then
    list[#list + 1], list[#list + 2] = 'more', 1
    record.more = 1
  end
  local new_public, new_ready, new_due, new_index = ff.derive(record)
  call('HSET', record.key, unpack(list)) -- bounded: the fields of one record
  ff.follow(ctx, record, new_public, new_ready, new_due, new_index, public, ready, due, index)
end

-- Return whether a lease changes fields of a record that only some work has.
function ff.is_changed_by_lease(record)
  return record.more and (record.reserved_for or record.slot_until or record.timeout_left
    or record.idempotency_key and ff.policy(record).key == 's')
end

-- Lease a ready record of which nothing changes but its lease. What a lease writes is the same for all records of one claim,
-- so it is made once: the words of the new state, the fence, the moments, the attempt, and `first`, the fields to write.
-- Fields that nothing reads after this are not set in the table of the record: with more than 16 it would grow to 1280
-- bytes, and for each allocation of that size the server's allocator first collects all its small free blocks.
function ff.lease_alike(ctx, record, lease)
  local public, ready, due, index = record.words.public, true, nil, nil
  if record.more then
    public, ready, due, index = ff.derive(record)
  end
  record.words, record.fence, record.expires, record.attempt = lease.words, lease.fence, lease.expires, lease.attempt
  call('HSET', record.key, unpack(lease.first)) -- bounded: the fields of one record
  local new_due = record.more and next_moment(record) or lease.due
  ff.follow(ctx, record, lease.words.public, nil, new_due, 'due', public, ready, due, index)
end

-- Change a record by { name = value }, and note when it was changed; `state` nil keeps the state.
function ff.move(ctx, record, state, changes)
  local list = { 'mutated', ctx.now_text }
  for field, value in pairs(changes) do
    list[#list + 1], list[#list + 2] = field, value
  end
  if state then
    list[#list + 1], list[#list + 2] = 'state', state
  end
  ff.change(ctx, record, list)
end
