-- How frames are appended: the state of a stream, the numbers that make an append repeatable, and how many frames are kept.

-- How many summary frames are kept. The document holds them all.
local DELTAS_KEPT = 256
-- How many of the numbered frames that are not durable can be repeated: the newest.
local SLOTS = 1024
-- How many frames an item drops at most: more than it appends, but few, because each may be large.
local MOST_TRIMMED = 200

ff.FIRST_FRAME = '0-0'
ff.FRAME_KEYS = { durable = ':frames:', summary = ':deltas:', best_effort = ':live:' }
-- The modes whose oldest frames are dropped, and the fields that hold the newest id of each.
ff.TRIMMED = { summary = 'deltas', best_effort = 'live' }

-- The state of the stream of an attempt, packed in this order: the id of the attempt; the first and the newest id of a
-- frame; the number of frames; the number of durable frames and their bytes; the highest number of a frame; the rate of
-- live frames in Hz, and when it was measured; the newest ids of live frames and of summary frames; the version of the
-- summary, and when it was created and changed.
local ATTEMPT_STATE = {
  'attempt', 'first', 'last', 'count', 'durable', 'bytes', 'seq', 'rate', 'rated', 'live', 'deltas', 'version', 'begun',
  'changed',
}
local COUNTERS = { count = true, durable = true, bytes = true, version = true }

-- State -------------------------------------------------------------------------------------------------------------

-- Return the state that a text holds, or nil if the text is damaged. Parts that a newer release added are kept.
local function read_state(text)
  local parts, state = text and ff.unpack(text) or {}, { further = {} }
  if not parts or text and #parts < #ATTEMPT_STATE then
    return nil
  end
  for i, name in ipairs(ATTEMPT_STATE) do
    state[name] = COUNTERS[name] and tonumber(parts[i] or '0') or parts[i] or ''
  end
  for i = #ATTEMPT_STATE + 1, #parts do
    state.further[i - #ATTEMPT_STATE] = parts[i]
  end
  return state
end

-- Return the text that holds a state.
local function state_text(state)
  local parts = {}
  for i, name in ipairs(ATTEMPT_STATE) do
    parts[i] = type(state[name]) == 'number' and ff.text(state[name]) or state[name]
  end
  ff.append(parts, state.further)
  return ff.pack(parts)
end

-- Return the stream of an attempt as it is stored, or nil and the failure.
function ff.load_stream(ctx, record, index)
  local key = ff.stream_key(ctx, record)
  local values = record.stream and call('HMGET', key, 'last', 'a' .. index, 'calls', 'live', 'deltas') or {}
  local state, last = read_state(values[2]), values[1] or ff.FIRST_FRAME
  if not state or not string.find(last, '^%d+%-%d+$') then
    return nil, ff.set_aside(ctx, record.uuid, 'stream', record.class)
  end
  local first = ff.FIRST_FRAME
  return {
    key = key, index = index, state = state, last = last, calls = values[3], live = values[4] or first,
    deltas = values[5] or first, fields = {},
  }
end

-- Appending ---------------------------------------------------------------------------------------------------------

-- Return the frames of an item. Each is packed as: mode, head, payload, number or '', digest, pack{ttl in ms, least, most,
-- alpha} of a live frame or ''.
function ff.frames_of(packed)
  local parts, frames = ff.unpack(packed), {}
  for i = 1, #parts, 6 do
    frames[#frames + 1] = {
      mode = parts[i], head = parts[i + 1], payload = parts[i + 2], seq = parts[i + 3], digest = parts[i + 4],
      live = parts[i + 5],
    }
  end
  return frames
end

-- Return the field that holds the reply to a numbered frame.
local function memory_of(index, frame)
  if frame.mode == 'durable' then
    return index .. '.' .. frame.seq
  end
  return index .. '~' .. ff.text(tonumber(frame.seq) % SLOTS)
end

-- Return the reply to a frame that was appended.
local function answer(id, count, version)
  return { 'ok', id, count, version }
end

-- Return the replies to those of some numbered frames that were appended before, by their places. The id is '' in a reply
-- that is no longer kept.
local function recall_numbered(record, stream, frames)
  local fields, known, answers = {}, {}, {}
  local highest = tonumber(stream.state.seq)
  for i, frame in ipairs(frames) do
    if frame.seq ~= '' and highest and tonumber(frame.seq) <= highest then
      known[#known + 1] = i
      fields[#fields + 1] = memory_of(stream.index, frame)
    end
  end
  local values = #fields > 0 and call('HMGET', stream.key, unpack(fields)) or {} -- bounded: the frames of one item
  for at, i in ipairs(known) do
    local frame = frames[i]
    local digest, seq, id, count, version = string.match(values[at] or '', '^(%x+)|(%d+)|([%d-]+)|(%d+)|(%d*)$')
    if seq == frame.seq and digest == frame.digest then
      answers[i] = answer(id, count, version)
    elseif seq and tonumber(seq) > tonumber(frame.seq) then
      answers[i] = answer('', '', '')
    else
      answers[i] = ff.failure('frame_conflict', record.uuid, frame.seq)
    end
  end
  return answers
end

-- Return the replies of an earlier call to frames without numbers, by their places. '1' stands for each appended frame.
local function recall_call(stream, call_id)
  local before = ff.recall(stream.calls, call_id)
  local answers = {}
  if before then
    local ms, number, count, version = before[1], tonumber(before[2]), tonumber(before[3]), tonumber(before[4])
    for i = 1, #before[5] do
      if string.sub(before[5], i, i) == '1' then
        answers[i] = answer(ms .. '-' .. ff.text(number), ff.text(count), version and ff.text(version) or '')
        number, count, version = number + 1, count + 1, version and version + 1
      end
    end
  end
  return answers
end

-- Return the id of the next frame. Ids grow also when the clock is set back.
local function next_id(ctx, last)
  local ms, number = string.match(last, '^(%d+)-(%d+)$')
  if tonumber(ms) >= ctx.now then
    return ms .. '-' .. ff.text(tonumber(number) + 1)
  end
  return ctx.now_text .. '-0'
end

-- Return how many live frames are kept after one more was appended: twice as many as arrive in `ttl` at the present rate,
-- within the bounds of the frame. The rate is a moving average in which the newest frame has the weight alpha.
local function live_bound(ctx, state, packed)
  local config = ff.unpack(packed)
  local seconds, least, most = math.max(tonumber(config[1]), 1) / 1000, tonumber(config[2]), tonumber(config[3])
  local before, alpha = tonumber(state.rate), tonumber(config[4])
  local rate = least / (2 * seconds)
  if before then
    local past = math.max(ctx.now - tonumber(state.rated), 1)
    rate = alpha * 1000 / past + (1 - alpha) * before
  end
  state.rate, state.rated = string.format('%.17g', rate), ctx.now_text
  return math.max(least, math.min(most, math.ceil(rate * seconds * 2)))
end

-- Drop the oldest frames of a stream beyond a number.
local function trim(key, most)
  local size = call('XLEN', key)
  if size > most then
    call('XTRIM', key, 'MAXLEN', math.max(most, size - MOST_TRIMMED))
  end
end

-- Append one frame and return the reply to it. The fields to write are added to the stream.
local function append_one(ctx, record, stream, frame)
  local state, newest = stream.state, ff.TRIMMED[frame.mode]
  local id = next_id(ctx, stream.last)
  ff.open_stream(ctx, record)
  local entry = { 'frame', frame.head, 'payload', frame.payload }
  if newest then
    -- So the oldest frame that is kept names the newest one that was dropped.
    ff.append(entry, { 'before', stream[newest] })
    stream[newest], state[newest] = id, id
  else
    state.durable, state.bytes = state.durable + 1, state.bytes + #frame.payload
  end
  if string.match(id, '^%d+') ~= ctx.now_text then
    ff.append(entry, { 'at', ctx.now_text })
  end
  call('XADD', ctx.base .. ff.FRAME_KEYS[frame.mode] .. record.uuid, id, unpack(entry)) -- bounded: four fields
  stream.last, state.last = id, id
  state.first = state.first ~= '' and state.first or id
  state.count = state.count + 1
  if frame.mode == 'summary' then
    state.version = state.version + 1
  elseif newest then
    stream.bound = live_bound(ctx, state, frame.live)
  end
  local told = answer(id, ff.text(state.count), frame.mode == 'summary' and ff.text(state.version) or '')
  if frame.seq ~= '' then
    state.seq = frame.seq
    ff.append(stream.fields, {
      memory_of(stream.index, frame), table.concat({ frame.digest, frame.seq, id, told[3], told[4] }, '|'),
    })
  end
  return told
end

-- Return the failure of a frame that cannot be appended, or nil.
local function refusal(record, state, frame, item)
  if item.is_stale then
    return ff.failure('stale_summary_version', record.uuid)
  elseif frame.mode ~= 'durable' then
    return nil
  elseif state.durable >= item.most_frames then
    return ff.failure('stream_full', record.uuid, ff.text(item.most_frames), 'frames')
  elseif state.bytes + #frame.payload > item.most_bytes then
    return ff.failure('stream_full', record.uuid, ff.text(item.most_bytes), 'bytes')
  end
  return nil
end

-- Append the frames of an item that have no reply yet, and add the replies. Return whether a frame was appended.
function ff.append_new(ctx, record, stream, item, answers)
  local state, taken, first = stream.state, {}, nil
  local count, version = state.count + 1, item.version ~= '' and ff.text(state.version + 1) or ''
  -- The document of such an item was not merged from the present one and the new frames alone.
  item.is_stale = item.version ~= '' and (next(answers) ~= nil or state.version ~= tonumber(item.version))
  for i, frame in ipairs(item.frames) do
    taken[i] = '0'
    if not answers[i] then
      answers[i] = refusal(record, state, frame, item)
      if not answers[i] then
        answers[i], taken[i] = append_one(ctx, record, stream, frame), '1'
        first = first or answers[i][2]
      end
    end
  end
  if first and item.frames[1].seq == '' then
    local ms, number = string.match(first, '^(%d+)-(%d+)$')
    local told = { ms, number, ff.text(count), version, table.concat(taken) }
    ff.append(stream.fields, { 'calls', ff.remember(stream.calls, item.call_id, told) })
  end
  return first ~= nil
end

-- Write the state of a stream after an append, drop frames beyond its bounds, and wake its readers.
function ff.close_append(ctx, record, stream, item)
  local state = stream.state
  if item.version ~= '' then
    state.begun = state.begun ~= '' and state.begun or ctx.now_text
    state.changed = ctx.now_text
    ff.append(stream.fields, { 's' .. stream.index, item.document })
  end
  call(
    'HSET', stream.key, 'last', stream.last, 'live', stream.live, 'deltas', stream.deltas, 'a' .. stream.index,
    state_text(state), unpack(stream.fields) -- bounded: an item
  )
  if stream.bound then
    trim(ctx.base .. ff.FRAME_KEYS.best_effort .. record.uuid, stream.bound)
  end
  if item.version ~= '' then
    trim(ctx.base .. ff.FRAME_KEYS.summary .. record.uuid, DELTAS_KEPT)
  end
  ff.wake_tails(ctx, record)
end

-- Return the replies to those frames of an item that its attempt appended before, by their places.
function ff.recall_frames(record, stream, item, fence)
  local _, _, attempt = ff.fence_parts(fence)
  if stream.state.attempt ~= attempt then
    return {}
  elseif item.frames[1].seq == '' then
    return recall_call(stream, item.call_id)
  end
  return recall_numbered(record, stream, item.frames)
end

