-- Streams as the other areas see them: why the stream of an attempt is closed, and which readers are woken.
--
-- An execution with frames, or with a reader that waits for some, has the field `stream`, and `keys` names the keys of its
-- streams. All attempts share these keys: ids grow over all attempts, and the hash ':stream:<uuid>' tells the frames of one
-- attempt from those of the others:
--
--   last        the newest id
--   live, deltas    the newest ids of live frames and of summary frames
--   a<index>    the state of the stream of an attempt, see prelude_frames.lua
--   s<index>    the summary document of an attempt
--   <index>.<seq>, <index>~<slot>   the replies to numbered frames: to every durable one, and to the newest others
--   calls       the replies to the last appends of frames without numbers
--   readers     pack{topic, until, topic, until, ...} of the processes that wait; each is told once

local STREAM_KEYS = { ':stream:', ':frames:', ':deltas:', ':live:' }

-- Return the key of the hash of an execution's streams.
function ff.stream_key(ctx, record)
  return ctx.base .. ':stream:' .. record.uuid
end

-- Name the keys of an execution's streams in its record, so that they are removed with it. The record was loaded with `keys`.
function ff.open_stream(ctx, record)
  if record.stream then
    return
  end
  local names = {}
  for i, name in ipairs(STREAM_KEYS) do
    names[i] = name .. record.uuid
  end
  ff.change(ctx, record, { 'stream', 1, 'keys', (record.keys or '') .. ff.pack(names) })
end

-- Wake the processes that wait for frames of an execution, or for the end of an attempt. A process that reads on and finds
-- nothing registers again.
function ff.wake_tails(ctx, record)
  if not record.stream then
    return
  end
  local key = ff.stream_key(ctx, record)
  -- A damaged stream must not prevent an end.
  local readable, waiting = pcall(call, 'HGET', key, 'readers')
  if not readable or not waiting then
    return
  end
  call('HDEL', key, 'readers')
  local parts = ff.unpack(waiting) or {}
  ff.spend(ctx, 1 + #parts / 2, 0)
  for i = 1, #parts - 1, 2 do
    local till = tonumber(parts[i + 1])
    if till and till > ctx.now then
      call('PUBLISH', ctx.channel .. parts[i], 'frames ' .. ff.id(ctx, record))
    end
  end
end

local REASONS = {
  success = 'attempt_success', cancelled = 'attempt_cancelled', skipped = 'attempt_cancelled', expired = 'expired',
}

-- Return why the end of an execution closes a stream.
local function reason_of_end(record)
  return REASONS[record.words.outcome] or record.error_class == 'timeout' and 'timed_out' or 'attempt_failure'
end

-- Return why the stream of the present attempt is closed, and since when; nil while it is open. The reason for which the
-- attempt ended stands, whatever ends the execution later.
function ff.why_closed(record)
  local _, _, _, _, ended = ff.attempt_parts(record.attempt or '')
  if ended and ended ~= '' then
    return record.closed or 'attempt_failure', ended
  elseif record.words.phase == 'terminal' then
    return reason_of_end(record), record.ended
  end
  return nil
end

-- Return the same of a past attempt. The reason is '' if the attempt is no longer among those that the record keeps.
local function why_past_closed(record, index)
  local past = record.attempts and ff.unpack(record.attempts) or {}
  for i = #past, 1, -1 do
    local parts = ff.unpack(past[i])
    if parts[1] == index then
      return parts[9] or 'attempt_failure', parts[5]
    end
  end
  return '', past[1] and ff.unpack(past[1])[4] or '0'
end

-- Return the same of any attempt. The stream of an attempt that has not begun is closed by the end of the execution.
function ff.why_attempt_closed(record, index)
  local present, _, _, started = ff.attempt_parts(record.attempt or '')
  if present and (tonumber(index) < tonumber(present) or index == present and started == '') then
    return why_past_closed(record, index)
  elseif index == present then
    return ff.why_closed(record)
  elseif record.words.phase == 'terminal' then
    return reason_of_end(record), record.ended
  end
  return nil
end
