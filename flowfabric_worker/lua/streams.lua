-- Frames that running attempts append, and that readers follow.

local FRAMES_PER_READ = 200
local BYTES_PER_READ = 512 * 1024
-- How many processes one execution wakes. The readers in others poll.
local MOST_READERS = 64

-- The fields that an append reads, and those that a reader needs, which may ask for a past attempt.
local APPENDING = ff.joined({ ff.CORE, { 'last', 'keys' } })
local FIELDS = ff.joined({ ff.CORE, ff.ATTEMPT, { 'last', 'keys' } })

-- Appending ---------------------------------------------------------------------------------------------------------

-- Return whether one of `count` frames has no reply yet.
local function lacks(answers, count)
  for i = 1, count do
    if not answers[i] then
      return true
    end
  end
  return false
end

-- Return the failure of a holder that may not append to an attempt, or nil if the holder may.
local function why_refused(ctx, uuid, fence, index)
  local record, failure = ff.fenced(ctx, uuid, fence, nil, APPENDING)
  if record and ff.attempt_parts(record.attempt) ~= index then
    return ff.failure('stale_lease', uuid)
  end
  return failure
end

-- Append the frames of an item, and return its reply.
local function append(ctx, uuid, fence, index, item)
  local record, failure = ff.load(ctx, uuid, APPENDING)
  local stream
  if record then
    stream, failure = ff.load_stream(ctx, record, index)
  end
  if not stream then
    return failure
  end
  local count, answers = #item.frames, ff.recall_frames(record, stream, item, fence)
  failure = lacks(answers, count) and why_refused(ctx, uuid, fence, index)
  if failure and not next(answers) then
    return failure
  end
  for i = 1, failure and count or 0 do
    answers[i] = answers[i] or failure
  end
  if lacks(answers, count) then
    stream.state.attempt = select(3, ff.fence_parts(fence))
    if ff.append_new(ctx, record, stream, item, answers) then
      ff.close_append(ctx, record, stream, item)
    end
  end
  return { 'frames', unpack(answers, 1, count) } -- bounded: an item
end

-- append_frames: append frames to the streams of executions' present attempts.
-- Arguments per item: uuid, fence, index of the attempt, call, frames (see ff.frames_of), the version of the summary into
-- which summary frames were merged and the merged document, or '' and '', most durable frames, most bytes of them.
-- The frames of an item have growing numbers or none has one; they are all summary frames or none is one.
-- Replies per item: 'frames', then per frame: 'ok', id, count, version of the summary or ''; or a failure.
-- Errors per item: those of ff.fenced. Errors per frame: those too, frame_conflict, stream_full, stale_summary_version.
ff.register('append_frames', {}, function(ctx, args)
  return ff.each(ctx, args, 1, 9, 4, function(_, _, at)
    local uuid, fence, index = args[at], args[at + 1], args[at + 2]
    local item = {
      call_id = args[at + 3], frames = ff.frames_of(args[at + 4]), version = args[at + 5], document = args[at + 6],
      most_frames = tonumber(args[at + 7]), most_bytes = tonumber(args[at + 8]),
    }
    ff.spend(ctx, #item.frames, 0)
    return append(ctx, uuid, fence, index, item)
  end)
end)

-- Reading -----------------------------------------------------------------------------------------------------------

-- Return the next entry of a source, or nil at its end. The larger the entries are, the fewer are read at a time.
local function head(source, to)
  local entry = source.entries[source.at]
  if entry or source.is_read then
    return entry
  end
  local size = source.bytes > 0 and math.floor(BYTES_PER_READ / 2 * source.count / source.bytes) or 16
  size = math.max(1, math.min(100, size))
  source.entries = call('XRANGE', source.key, source.from, to, 'COUNT', size)
  source.at, source.is_read = 1, #source.entries < size
  local last = source.entries[#source.entries]
  source.from = last and '(' .. last[1]
  return source.entries[1]
end

-- Return up to `limit` entries of several streams in the order of their ids, and whether there are more.
local function merged(keys, from, to, limit)
  local sources, entries, bytes = {}, {}, 0
  for i, key in ipairs(keys) do
    sources[i] = { key = key, from = from, entries = {}, at = 1, count = 0, bytes = 0 }
  end
  while true do
    local first
    for _, source in ipairs(sources) do
      local entry = head(source, to)
      if entry and not (first and ff.is_older(first.entries[first.at][1], entry[1])) then
        first = source
      end
    end
    if not first or #entries >= limit or bytes >= BYTES_PER_READ then
      return entries, first ~= nil
    end
    local entry = first.entries[first.at]
    local size = #entry[2][2] + #entry[2][4]
    first.at, first.count, first.bytes = first.at + 1, first.count + 1, first.bytes + size
    bytes = bytes + size
    entries[#entries + 1] = { entry[1], unpack(entry[2], 1, 8) } -- bounded: four fields
  end
end

-- Return the newest frame of an attempt that was dropped from a stream behind `from`, and the first that is kept, or ''.
-- Return nil if none was dropped. `newest` and `first` are ids of the attempt.
local function dropped(key, newest, first, from)
  local oldest = newest ~= '' and call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
  if not oldest then
    return nil
  end
  local gone, fields = ff.FIRST_FRAME, oldest[2]
  for i = 1, #fields, 2 do
    gone = fields[i] == 'before' and fields[i + 1] or gone
  end
  local is_kept = not ff.is_older(newest, oldest[1])
  gone = is_kept and gone or newest
  if ff.is_older(gone, first) or ff.is_older(gone, from) then
    return nil
  end
  return gone, is_kept and oldest[1] or ''
end

-- Return the newer one of two ids.
local function later(id, other)
  return ff.is_older(id, other) and other or id
end

-- Return the frames of an attempt between two ids, and whether there are more; then the newest frame that was dropped
-- between them, and the first that is kept behind it, or ''.
local function read_frames(ctx, record, stream, from, to, limit, left_out)
  local state = stream.state
  if state.first == '' then
    return {}, false, '', ''
  end
  from = later(from, state.first)
  to = ff.is_older(state.last, to) and state.last or to
  local keys, gone, kept = {}, nil, ''
  for _, mode in ipairs({ 'durable', 'summary', 'best_effort' }) do
    if mode ~= left_out then
      local key = ctx.base .. ff.FRAME_KEYS[mode] .. record.uuid
      keys[#keys + 1] = key
      if ff.TRIMMED[mode] then
        local last_gone, first_kept = dropped(key, state[ff.TRIMMED[mode]], state.first, from)
        gone = last_gone and gone and later(last_gone, gone) or last_gone or gone
        kept = first_kept and (kept == '' or first_kept ~= '' and ff.is_older(first_kept, kept)) and first_kept or kept
      end
    end
  end
  local entries, more = merged(keys, from, to, math.min(limit, FRAMES_PER_READ))
  return entries, more, gone or '', kept
end

-- Register a process to be woken by the next frame or end. Return '1', or '' if too many processes are registered.
local function wait_for_frames(ctx, record, topic)
  ff.open_stream(ctx, record)
  local key = ff.stream_key(ctx, record)
  local known = { topic, ff.text(ctx.now + ff.FALLBACK + 1000) }
  local parts = ff.unpack(call('HGET', key, 'readers') or '') or {}
  for i = 1, #parts - 1, 2 do
    local till = ff.number(parts[i + 1])
    if parts[i] ~= topic and till and till > ctx.now then
      ff.append(known, { parts[i], parts[i + 1] })
    end
  end
  if #known > 2 * MOST_READERS then
    return ''
  end
  call('HSET', key, 'readers', ff.pack(known))
  return '1'
end

-- read_stream: read frames of an attempt between two ids, both included, or wait for the next one.
-- Arguments: uuid, pack{namespace}, index of the attempt, first id, last id, limit, the mode to leave out or '', topic
-- to wake if there is nothing yet, or ''.
-- Replies: 'ok', now, when the stream was closed or '', the reason, index of the present attempt or '', '1' if the execution
-- has ended, the next due moment of the execution or '', '1' if there are more frames, the newest frame that was dropped
-- between the ids or '', the first that is kept behind it or '', '1' if the topic is registered, the frames. A frame is:
-- id, field, value, field, value.
-- Errors: execution_not_found.
ff.register_single('read_stream', { 'allow-oom' }, function(ctx, args)
  local uuid, namespace, attempt, from, to, limit = args[1], args[2], args[3], args[4], args[5], tonumber(args[6])
  local left_out, topic = args[7], args[8]
  local record, failure = ff.load_now(ctx, namespace, uuid, FIELDS)
  local stream
  if record then
    stream, failure = ff.load_stream(ctx, record, attempt)
  end
  if not stream then
    return failure
  end
  local reason, closed = ff.why_attempt_closed(record, attempt)
  local entries, more, gone, kept = read_frames(ctx, record, stream, from, to, limit, left_out)
  local told = ''
  if #entries == 0 and not reason and gone == '' and topic ~= '' then
    told = wait_for_frames(ctx, record, topic)
  end
  local _, _, due, index = ff.derive(record)
  local has_ended = record.words.phase == 'terminal'
  return {
    'ok', ctx.now_text, closed and ff.text(tonumber(closed)) or '', reason or '',
    ff.attempt_parts(record.attempt or '') or '', has_ended and '1' or '', index and not has_ended and ff.text(due) or '',
    more and '1' or '', gone, kept, told, entries,
  }
end)

-- read_summary: read the summary document of an attempt.
-- Arguments: uuid, pack{namespace}, index of the attempt.
-- Replies: 'ok', version, when it was created, when it was changed, the document; or 'none'.
-- Errors: execution_not_found.
ff.register_single('read_summary', { 'allow-oom' }, function(ctx, args)
  local uuid, namespace, attempt = args[1], args[2], args[3]
  local record, failure = ff.load_now(ctx, namespace, uuid, FIELDS)
  local stream
  if record then
    stream, failure = ff.load_stream(ctx, record, attempt)
  end
  if not stream then
    return failure
  end
  local state = stream.state
  if state.version == 0 then
    return { 'none' }
  end
  local document = call('HGET', stream.key, 's' .. attempt)
  if not document then
    return ff.set_aside(ctx, uuid, 'summary', record.class)
  end
  return { 'ok', ff.text(state.version), state.begun, state.changed, document }
end)
