-- How ready work is found in the lanes that a call asks for.

-- How many entries that cannot be handed out one call passes over. The next call continues behind them.
local MOST_PASSED = 256

-- How many entries the first pages of all classes have together, and how many each later page has.
local MOST_READ, LEAST_PAGE = 512, 16

-- How many classes that hold work are looked for: as many as one claim asks for.
local MOST_LEFT = 64

-- Return the lanes that a call asks for, from argument `at` on. Each lane is: pack{namespace, lane}, limit, revision of the
-- classes that the caller knows or '' for any, number of classes, the classes.
function ff.lanes_of(args, at)
  local lanes = {}
  while at <= #args do
    local lane = { name = args[at], limit = tonumber(args[at + 1]), revision = args[at + 2], classes = {} }
    local count = tonumber(args[at + 3])
    for i = 1, count do
      lane.classes[i] = args[at + 3 + i]
    end
    lanes[#lanes + 1] = lane
    at = at + 4 + count
  end
  return lanes
end

-- Read whether a lane is paused, and whether its classes are other than those that the caller knows.
function ff.look_at_lane(ctx, lane)
  local stored = call('HMGET', ctx.base .. ':lane:' .. lane.name, 'paused', 'revision')
  lane.paused = stored[1] ~= false
  lane.stale = lane.revision ~= '' and lane.revision ~= (stored[2] or '0')
end

-- The score of an entry that only a newer release can handle is this and until when the entry is postponed. So it stands
-- behind all others.
ff.POSTPONED_FROM = 1e15

-- Return the highest score of an entry that is not postponed now.
local function last_score(ctx)
  return ff.POSTPONED_FROM + ctx.now
end

-- End a source at the entries that are postponed.
local function stop_at_postponed(ctx, source)
  if source.score and source.score > last_score(ctx) then
    source.uuid = nil
  end
end

-- Read the next page of a class, and move to its first entry. A source is the ready entries of one class in their order. What
-- leaves the index does so at the end of the call, so the places of entries stay valid.
local function read_page(ctx, source, size)
  local entries = call('ZRANGE', source.key, source.read, source.read + size - 1, 'WITHSCORES')
  ff.spend(ctx, 1, 0)
  source.entries, source.at, source.read = entries, 1, source.read + #entries / 2
  source.has_more = #entries == 2 * size
  source.uuid, source.score = entries[1], tonumber(entries[2])
  stop_at_postponed(ctx, source)
end

-- Move a source behind its present entry.
local function advance(ctx, source)
  source.at = source.at + 2
  if source.at > #source.entries and source.has_more then
    read_page(ctx, source, LEAST_PAGE)
  else
    source.uuid, source.score = source.entries[source.at], ff.moment_in(source.entries[source.at + 1])
    stop_at_postponed(ctx, source)
  end
end

-- Return those of some gates that admit a number of executions, which an admission may use up; or nil if there are none.
local function limits_of(ctx, gates)
  local limits
  for i = 1, gates and #gates or 0 do
    if ff.gate(ctx, gates[i]).allowance < math.huge then
      limits = limits or {}
      limits[#limits + 1] = gates[i]
    end
  end
  return limits
end

-- Return the sources of some classes, each with its first page. A class behind a closed gate is none.
local function sources_of(ctx, classes, wanted)
  local size = math.min(wanted, math.max(2, math.floor(MOST_READ / #classes)))
  local sources = {}
  for _, class in ipairs(classes) do
    local gates = ff.class(class).gates
    if not gates or ff.allowance(ctx, gates) > 0 then
      local source = { class = class, gates = gates, key = ctx.base .. ':ready:' .. class, read = 0 }
      source.limits = limits_of(ctx, gates)
      sources[#sources + 1] = source
      read_page(ctx, source, size)
    else
      ff.watch_gates(ctx, gates)
    end
  end
  return sources
end

-- Return the source whose entry is the first in the common order of all, or nil if none has an entry. Those whose gates
-- have closed meanwhile are left out.
local function first_of(ctx, sources)
  local first
  for _, source in ipairs(sources) do
    if source.limits and ff.allowance(ctx, source.limits) <= 0 then
      source.uuid = nil
    end
    if source.uuid and (not first or source.score < first.score
      or source.score == first.score and source.uuid < first.uuid) then
      first = source
    end
  end
  return first
end

-- Postpone an entry of a newer release: it stays in the index, behind all others, so that it hides none of them.
function ff.postpone_ready(ctx, class, uuid)
  ff.ready_at(ctx, class, uuid, last_score(ctx) + ff.POSTPONED)
  ff.spend(ctx, 3, 0)
  ctx.has_progressed = true
end

-- Take an entry that cannot be handed out from its index. Reading it and updating the index takes 3 commands, and what
-- happened to it takes `further` ones.
function ff.drop_ready(ctx, class, uuid, further)
  ff.ready_at(ctx, class, uuid, false)
  ff.spend(ctx, 3 + further, 0)
  ctx.has_progressed = true
end

-- Return whether a call has used its work budget, and took or dropped an entry, so that the next call continues behind it.
function ff.is_spent(ctx)
  return ctx.work <= 0 and ctx.has_progressed
end

-- Return whether a claim has to ask the partition of a quota before it can take the first entry of a source, and note for how
-- many executions it asks, and how many are ready.
local function has_to_ask(ctx, source, sources, wanted)
  local name = ctx.asks and source.gates and ff.gate_to_ask(ctx, source.gates)
  if not name then
    return false
  end
  local count = 0
  for _, other in ipairs(sources) do
    for i = 1, other.gates and #other.gates or 0 do
      count = count + (other.gates[i] == name and call('ZCARD', other.key) or 0)
    end
  end
  ctx.wants = { name, ff.text(math.min(wanted, count)), ff.text(count), ctx.now_text }
  return true
end

-- Give up to `wanted` ready records to `use`, in the common order of their classes, until it returns false. `find` returns
-- the record of an entry, or nil if it cannot be handed out. The lanes of a call share its work budget.
function ff.each_ready(ctx, classes, wanted, find, use)
  if ff.is_spent(ctx) or ff.has_passed_enough(ctx) then
    return
  end
  local sources = sources_of(ctx, classes, wanted)
  local source = first_of(ctx, sources)
  while source and not has_to_ask(ctx, source, sources, wanted) do
    local record = find(ctx, source.uuid, source.class)
    if not record then
      ctx.passed = ctx.passed + 1
    elseif use(record) then
      ctx.has_progressed = true
      wanted = wanted - 1
    else
      return
    end
    if wanted == 0 or ff.has_passed_enough(ctx) or ff.is_spent(ctx) then
      return
    end
    advance(ctx, source)
    source = first_of(ctx, sources)
  end
end

-- Return whether a call passed over as many entries as it may.
function ff.has_passed_enough(ctx)
  return ctx.passed >= MOST_PASSED
end

-- Return whether one of the classes between two places, at most MOST_LEFT, has ready executions. One class alone is looked at
-- anyway.
function ff.any_ready(ctx, classes, first, last)
  local keys = {}
  for i = first, last do
    keys[i - first + 1] = ctx.base .. ':ready:' .. classes[i]
  end
  return first == last or call('EXISTS', unpack(keys)) > 0 -- bounded: MOST_LEFT keys
end

-- Return the classes of some lanes that still hold work which may be handed out, at most MOST_LEFT. Most of many classes
-- hold none, so they are looked at together.
function ff.classes_left(ctx, lanes)
  local left, highest = {}, ff.text(last_score(ctx))
  for _, lane in ipairs(lanes) do
    local count = lane.paused and 0 or #lane.classes
    for first = 1, count, MOST_LEFT do
      local last = math.min(first + MOST_LEFT - 1, count)
      for i = first, ff.any_ready(ctx, lane.classes, first, last) and last or 0 do
        local class = lane.classes[i]
        if #left < MOST_LEFT and call('ZCOUNT', ctx.base .. ':ready:' .. class, '-inf', highest) > 0
          and not ff.closed_gate(ctx, class) then
          left[#left + 1] = class
        end
      end
    end
  end
  return left
end

-- Wake one waiter for each class that still holds work after this call.
function ff.wake_next(ctx, lanes)
  if call('EXISTS', ctx.base .. ':waiters') == 1 then
    for _, class in ipairs(ff.classes_left(ctx, lanes)) do
      ff.note_wake(ctx, class, 1)
    end
  end
end
