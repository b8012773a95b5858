-- What a record says of itself in packed form: its policy and its class.

local POLICY = {
  'max_retries', 'backoff', 'initial', 'maximum', 'multiplier', 'jitter', 'categories', 'timeout', 'max_reclaims',
  'max_replays', 'retention', 'dedup_window', 'execution_deadline',
}

-- There are few policies and classes, so each is taken apart once; what is known of them is forgotten before it grows
-- large.
local known_policies, known_policy_count = {}, 0

-- The values of a stored policy by their names; nil where it is damaged.
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
  if text ~= '' and (at < #POLICY or string.sub(text, -1) ~= '|' or not ff.is_policy(policy)) then
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

function ff.policy(record)
  return ff.parse_policy(record.policy or '')
end

-- What a class says of itself: its lane (packed), its namespace (packed), the lane's name, the task, and the index of the
-- lane's delayed executions; nil where it is damaged.
ff.known_classes = {}
ff.known_class_count = 0

function ff.class(class)
  local known = ff.known_classes[class]
  if not known then
    local parts = ff.unpack(class)
    if not parts or #parts < 6 then
      return nil
    end
    local lane = ff.pack({ parts[1], parts[2] })
    known = {
      lane = lane, namespace = ff.pack({ parts[1] }), lane_name = parts[2], task = parts[3], delays = 'delays:' .. lane,
      of_lane = 'of_lane:' .. lane,
    }
    known.of_states = ff.state_indexes(known.namespace)
    if ff.known_class_count >= 4096 then
      ff.known_classes, ff.known_class_count = {}, 0
    end
    ff.known_classes[class] = known
    ff.known_class_count = ff.known_class_count + 1
  end
  return known
end
