-- The policy of an execution, as its record stores it.

local POLICY = {
  'max_retries', 'backoff', 'initial', 'maximum', 'multiplier', 'jitter', 'categories', 'timeout', 'max_reclaims',
  'max_replays', 'retention', 'dedup_window', 'execution_deadline', 'key',
}
-- How many values every policy has.
local LEAST = 13

-- There are few policies, so each is parsed once. The cache is emptied before it grows large.
local known_policies, known_policy_count = {}, 0

-- Return the values of a stored policy by name, or nil if it is damaged.
function ff.parse_policy(text)
  local known = known_policies[text]
  if known then
    return known
  end
  local policy, at = {}, 0
  for value in string.gmatch(text, '([^|]*)|') do
    at = at + 1
    if POLICY[at] then
      policy[POLICY[at]] = value ~= '' and value or nil
    end
  end
  if text ~= '' and (at < LEAST or string.sub(text, -1) ~= '|' or not ff.is_policy(policy)) then
    return nil
  end
  policy.retention = tonumber(policy.retention or '')
  if known_policy_count >= 4096 then
    known_policies, known_policy_count = {}, 0
  end
  known_policies[text] = policy
  known_policy_count = known_policy_count + 1
  return policy
end

-- Return the values of a record's policy by name.
function ff.policy(record)
  return ff.parse_policy(record.policy or '')
end
