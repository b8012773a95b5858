-- The journal of an execution: the results of its steps, in the order in which they were recorded.
--
--   steps           how many there are
--   step#<number>   the name of one, numbered from 1
--   step:<name>     its value
--   journal_bytes   the bytes of all names and values

local AT_ONCE = 500

-- Return the names of the steps of a record in their order, or nil if one is missing.
function ff.step_names(record)
  local names, steps = {}, tonumber(record.steps or '0')
  for first = 1, steps, AT_ONCE do
    local slots = {}
    for i = first, math.min(first + AT_ONCE - 1, steps) do
      slots[#slots + 1] = 'step#' .. i
    end
    local found = call('HMGET', record.key, unpack(slots)) -- bounded: AT_ONCE
    for i = 1, #slots do
      if not found[i] then
        return nil
      end
      names[#names + 1] = found[i]
    end
  end
  return names
end

-- Return the steps of a record as { name, value, name, value }, or nil if one of them is missing.
function ff.journal(record)
  local names, entries = ff.step_names(record), {}
  for first = 1, names and #names or 0, AT_ONCE do
    local fields = {}
    for i = first, math.min(first + AT_ONCE - 1, #names) do
      fields[#fields + 1] = 'step:' .. names[i]
    end
    local values = call('HMGET', record.key, unpack(fields)) -- bounded: AT_ONCE
    for i = 1, #fields do
      if not values[i] then
        return nil
      end
      ff.append(entries, { names[first + i - 1], values[i] })
    end
  end
  return names and entries
end

-- Return the place of the first entry of a name: the step itself, or what the SDK keeps of it as 'ff:<word> <name>'. Return
-- nil if there is none.
function ff.place_of_step(names, name)
  for place, entry in ipairs(names) do
    if entry == name or string.match(entry, '^ff:%a+ (.*)$') == name then
      return place
    end
  end
  return nil
end

-- Forget the steps of a record from a place on. Return how many steps are left, and their bytes.
function ff.forget_steps(record, names, first)
  local forgotten, fields = 0, {}
  for i = first, #names do
    local field = 'step:' .. names[i]
    forgotten = forgotten + #names[i] + (first > 1 and call('HSTRLEN', record.key, field) or 0)
    ff.append(fields, { 'step#' .. i, field })
  end
  ff.chunked('HDEL', record.key, fields)
  return first - 1, first > 1 and math.max(0, tonumber(record.journal_bytes or '0') - forgotten) or 0
end
