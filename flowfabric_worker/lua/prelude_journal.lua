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
    local slots, count = {}, math.min(AT_ONCE, steps - first + 1)
    for i = 1, count do
      slots[i] = 'step#' .. first + i - 1
    end
    local found = call('HMGET', record.key, unpack(slots)) -- bounded: AT_ONCE
    for i = 1, count do
      if not found[i] then
        return nil
      end
      names[first + i - 1] = found[i]
    end
  end
  return names
end

-- Return a page of the values of steps from a place on, and how many these are.
local function values_from(record, names, first)
  local fields, count = {}, math.min(AT_ONCE, #names - first + 1)
  for i = 1, count do
    fields[i] = 'step:' .. names[first + i - 1]
  end
  return call('HMGET', record.key, unpack(fields)), count -- bounded: AT_ONCE
end

-- Return the steps of a record as { name, value, name, value }, or nil if one of them is missing. To read one takes about 3 us.
function ff.journal(ctx, record)
  local names, entries = ff.step_names(record), {}
  ff.spend(ctx, 0.3 * #(names or {}), ff.number(record.journal_bytes) or 0)
  for first = 1, names and #names or 0, AT_ONCE do
    local values, count = values_from(record, names, first)
    for i = 1, count do
      if not values[i] then
        return nil
      end
      local at = 2 * (first + i - 1)
      entries[at - 1], entries[at] = names[first + i - 1], values[i]
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
    forgotten = forgotten + #names[i]
    ff.append(fields, { 'step#' .. i, 'step:' .. names[i] })
  end
  -- If all are forgotten, nothing is left to count.
  for from = first, first > 1 and #names or 0, AT_ONCE do
    local values, count = values_from(record, names, from)
    for i = 1, count do
      forgotten = forgotten + #(values[i] or '')
    end
  end
  ff.chunked('HDEL', record.key, fields)
  return first - 1, first > 1 and math.max(0, tonumber(record.journal_bytes or '0') - forgotten) or 0
end
