-- The state of an execution: its six dimensions and the public state.

-- The six dimensions of a state are stored as one field, so they change together. Each is one letter; a letter that this
-- release does not know stands for itself.
local DIMENSIONS = {
  { name = 'phase', r = 'runnable', a = 'active', s = 'suspended', t = 'terminal', b = 'submitted' },
  { name = 'ownership', u = 'unowned', l = 'leased', x = 'lease_expired_reclaimable', v = 'lease_revoked' },
  {
    name = 'eligibility', e = 'eligible_now', t = 'not_eligible_until_time', d = 'blocked_by_dependencies',
    b = 'blocked_by_budget', q = 'blocked_by_quota', r = 'blocked_by_route', l = 'blocked_by_lane_state',
    o = 'blocked_by_operator', n = 'not_applicable',
  },
  -- The reason for blocking, which only readers translate into a word.
  { name = 'blocking' },
  { name = 'outcome', n = 'none', s = 'success', f = 'failed', c = 'cancelled', e = 'expired', k = 'skipped' },
  {
    name = 'attempt', n = 'none', f = 'pending_first_attempt', r = 'running_attempt', i = 'attempt_interrupted',
    t = 'pending_retry_attempt', p = 'pending_replay_attempt', z = 'attempt_terminal',
  },
}

-- States that wait for an attempt: runnable and unowned. The last letter says what kind of attempt.
ff.READY = 'ruewn'
ff.DELAYED = 'rutdn'
ff.BACKOFF = 'rutbn'
ff.WAITING_FOR_EDGES = 'rudhn'
ff.RESUMING = 'rutrn'
ff.BLOCKED_BY_BUDGET = 'rubun'
ff.FIRST = 'f'
ff.RETRY = 't'
ff.REPLAY = 'p'
ff.INTERRUPTED = 'i'
ff.RUNNING = 'alnnnr'
ff.LAPSED = 'axnwni'
ff.REVOKED = 'avnwni'

local ENDINGS = { success = 'tunns', failed = 'tunnf', cancelled = 'tunnc', expired = 'tunne', skipped = 'tunnk' }

-- Return the state of an execution that ended. Without an attempt, it keeps the kind of attempt that it waited for.
function ff.ended_state(outcome, record)
  return ENDINGS[outcome] .. (record.attempt and 'z' or string.sub(record.words.state, 6))
end

ff.OUTCOMES = { success = 'completed', failed = 'failed', cancelled = 'cancelled', expired = 'expired', skipped = 'skipped' }
ff.ELIGIBILITIES = {
  not_eligible_until_time = 'delayed',
  blocked_by_dependencies = 'waiting_children',
  blocked_by_budget = 'rate_limited',
  blocked_by_quota = 'rate_limited',
}
ff.ENDED = { completed = true, failed = true, cancelled = true, expired = true, skipped = true }
ff.PUBLIC_STATES = {
  'waiting', 'delayed', 'rate_limited', 'waiting_children', 'active', 'suspended', 'completed', 'failed', 'cancelled',
  'expired', 'skipped',
}
ff.PHASES = { runnable = true, active = true, suspended = true, terminal = true }
ff.known_states = {}

-- Derive the public state from the six dimensions. It is never stored.
function ff.public_state(words)
  if words.phase == 'terminal' then
    return ff.OUTCOMES[words.outcome] or 'failed'
  elseif words.phase == 'suspended' or words.phase == 'active' then
    return words.phase
  end
  return ff.ELIGIBILITIES[words.eligibility] or 'waiting'
end

-- Return the words of a stored state, or nil if it is damaged. There are few states, so each is parsed once.
function ff.words(state)
  local words = ff.known_states[state]
  if words then
    return words
  elseif not string.find(state, '^%l%l%l%l%l%l$') then
    return nil
  end
  words = { state = state }
  for i, dimension in ipairs(DIMENSIONS) do
    local letter = string.sub(state, i, i)
    words[dimension.name] = dimension[letter] or letter
  end
  words.public = ff.public_state(words)
  -- A newer release wrote this state, so this release must not touch the execution.
  words.foreign = not ff.PHASES[words.phase]
  words.leased = words.ownership == 'leased'
  words.claimable = (words.phase == 'runnable' and words.eligibility == 'eligible_now')
    or words.ownership == 'lease_expired_reclaimable'
    or words.ownership == 'lease_revoked'
  ff.known_states[state] = words
  return words
end
