-- Resume conditions, counted leaf by leaf. `evaluate` in engine/conditions.py defines what a condition means, and a property
-- test compares the two.
--
-- A condition comes as pack{word, ...} in postfix order, as engine/conditions.py writes it. Conditions are joined by
-- all_of alone, at any depth, so one is met when all of its leaves are. A leaf is met for good once it has counted what it
-- needs: a signal adds to the leaves that it matches, and no signal is ever looked at again.

-- The kinds of leaves that count each waitpoint or source once. A signal id stands once in an execution, so each accepted
-- signal counts.
local COUNTED_ONCE = { waitpoints = true, sources = true }

-- The name of a leaf that takes the signals named as their waitpoint, and decisions; and that of a leaf that takes only
-- decisions. No signal can have these names.
local OWN_NAME, DECISION = '\t', '\n'

-- Return the leaf at place `at` of the words, and the place after it.
local function read_leaf(words, at)
  if words[at] == 'single' then
    return { needed = 1, kind = 'signals', name = words[at + 2], names = { [words[at + 1]] = true } }, at + 3
  end
  local leaf = { needed = tonumber(words[at + 1]), kind = words[at + 2], name = words[at + 3], names = {} }
  local count = tonumber(words[at + 4])
  for i = at + 5, at + 4 + count do
    leaf.names[words[i]] = true
  end
  return leaf, at + 5 + count
end

-- Return the leaves of a condition. `is_endless` is set if no signal can meet it, and `is_foreign` if the condition has a word
-- that only a newer release knows.
function ff.leaves(text)
  local words, leaves, at = ff.unpack(text), {}, 1
  while at <= #words do
    if words[at] == 'all_of' then
      at = at + 2
    elseif words[at] == 'operator_only' or words[at] == 'timeout_only' then
      leaves.is_endless = true
      at = at + 1
    elseif words[at] == 'single' or words[at] == 'count' then
      leaves[#leaves + 1], at = read_leaf(words, at)
    else
      leaves.is_foreign = ff.is_word(words[at]) or error('a condition is damaged')
      return leaves
    end
  end
  return leaves
end

-- Return the counts of some leaves from their stored form, '<count>,<count>,...', which is '' before the first signal.
function ff.read_counts(text, leaves)
  local counts = {}
  for count in string.gmatch(text or '', '%d+') do
    counts[#counts + 1] = tonumber(count)
  end
  for i = #counts + 1, #leaves do
    counts[i] = 0
  end
  return counts
end

-- Return whether a signal has a name that a leaf takes.
local function has_name(leaf, signal)
  if leaf.name == OWN_NAME or leaf.name == DECISION then
    return signal.category == 'approval' or leaf.name == OWN_NAME and signal.name == signal.waitpoint_name
  end
  return leaf.name == '' or leaf.name == signal.name
end

-- Add a signal to the counts of the leaves that it matches, and return whether it matched any. `key` is the hash of what has
-- been counted: at most as many names as the leaf needs.
function ff.count_signal(ctx, key, leaves, counts, signal)
  local matched = false
  for i, leaf in ipairs(leaves) do
    if leaf.names[signal.waitpoint_name] and has_name(leaf, signal) then
      matched = true
      local counts_once = COUNTED_ONCE[leaf.kind]
      local what = leaf.kind == 'sources' and ff.pack({ signal.source_type, signal.source }) or signal.waitpoint_name
      ff.spend(ctx, counts_once and 1 or 0, 0)
      if counts[i] < leaf.needed and (not counts_once or call('HSETNX', key, 'c' .. i .. ':' .. what, '') == 1) then
        counts[i] = counts[i] + 1
      end
    end
  end
  return matched
end

-- Return whether counts meet a condition.
function ff.is_met(leaves, counts)
  for i, leaf in ipairs(leaves) do
    if counts[i] < leaf.needed then
      return false
    end
  end
  return not leaves.is_endless
end
