-- Fifth part of what every stored function shares: the state of an execution.

-- The six dimensions of a state are stored as one field, so that they change together:
-- phase, ownership, eligibility, blocking reason, outcome, attempt.
ff.READY = 'runnable unowned eligible_now waiting_for_worker none '
ff.DELAYED = 'runnable unowned not_eligible_until_time waiting_for_delay none '
ff.BACKOFF = 'runnable unowned not_eligible_until_time waiting_for_retry_backoff none '
ff.RUNNING = 'active leased not_applicable none none running_attempt'
ff.LAPSED = 'active lease_expired_reclaimable not_applicable waiting_for_worker none attempt_interrupted'
ff.REVOKED = 'active lease_revoked not_applicable waiting_for_worker none attempt_interrupted'

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

-- The public state follows from the six dimensions by this rule alone; it is never stored.
function ff.public_state(words)
  if words.phase == 'terminal' then
    return ff.OUTCOMES[words.outcome] or 'failed'
  elseif words.phase == 'suspended' or words.phase == 'active' then
    return words.phase
  end
  return ff.ELIGIBILITIES[words.eligibility] or 'waiting'
end

-- The words of a stored state; nil when it is damaged. There are few states, so each is read apart once.
function ff.words(state)
  local words = ff.known_states[state]
  if words then
    return words
  end
  local phase, ownership, eligibility, blocking, outcome, attempt =
    string.match(state, '^(%l+) ([%l_]+) ([%l_]+) ([%l_]+) ([%l_]+) ([%l_]+)$')
  if not phase then
    return nil
  end
  words = {
    phase = phase,
    ownership = ownership,
    eligibility = eligibility,
    blocking = blocking,
    outcome = outcome,
    attempt = attempt,
  }
  words.public = ff.public_state(words)
  -- A newer release wrote it: this one leaves it alone.
  words.foreign = not ff.PHASES[phase]
  words.leased = ownership == 'leased'
  words.claimable = (phase == 'runnable' and eligibility == 'eligible_now')
    or ownership == 'lease_expired_reclaimable'
    or ownership == 'lease_revoked'
  ff.known_states[state] = words
  return words
end
