-- Jobs: what a change of one execution causes to others, as far as the call's work budget allows.
--
-- A job has a name and is about a flow, or about a member as '<flow>:<uuid>'. Jobs are run in the order in which they arise.
-- What is left when the budget is used up becomes a due entry 'j<name>:<what>', and the hash :jobs has how far it came. Each
-- job may be run again from its beginning without an effect, so it is enough that a job is never lost.

-- How many edges and members one call handles at least, and how many a job handles in one step.
local LEAST_HANDLED, STEP = 32, 32

-- The function of each job. It gets what the job is about, how far the job came or '', and how many edges or members it may
-- handle; it returns how far it came, or nil if the job is done.
local JOBS = {}

-- Register a job.
function ff.define_job(name, run)
  JOBS[name] = run
end

-- Let a job run before the call ends, from its beginning or from where it came to.
function ff.enqueue(ctx, name, what, cursor)
  local job = name .. ':' .. what
  if not ctx.jobs_at[job] then
    ctx.jobs[#ctx.jobs + 1] = job
  end
  ctx.jobs_at[job] = cursor or ''
end

-- Count what a job handled.
function ff.handled(ctx, count, commands)
  ctx.handled = ctx.handled + count
  ff.spend(ctx, commands, 0)
end

-- Return whether a call has used its work and handled what it must; or has used it twice, because what it handles is large.
function ff.has_handled_enough(ctx)
  return ctx.work <= 0 and (ctx.handled >= LEAST_HANDLED or ctx.work <= -ff.MAX_WORK)
end

-- Leave the rest of a job to a later call.
local function postpone(ctx, job, cursor, moment)
  ff.due_at(ctx, 'due', 'j' .. job, moment)
  if cursor == '' then
    call('HDEL', ctx.base .. ':jobs', job)
  else
    call('HSET', ctx.base .. ':jobs', job, cursor)
  end
end

-- Let a job that was just enqueued run at a later moment.
function ff.postpone_job(ctx, job, moment)
  ctx.jobs_at[job] = nil
  postpone(ctx, job, '', moment)
end

-- Run one step of a job, or leave it to a later call.
local function advance(ctx, job)
  local cursor = ctx.jobs_at[job]
  ctx.jobs_at[job] = nil
  if not cursor then
    return
  elseif ff.has_handled_enough(ctx) then
    postpone(ctx, job, cursor, ctx.now)
    return
  end
  local name, what = string.match(job, '^(%l+):(.*)$')
  local reached
  ff.isolated(ctx, string.sub(what, -36), function()
    reached = JOBS[name](ctx, what, cursor, STEP)
  end)
  if reached and not ctx.jobs_at[job] then
    ff.enqueue(ctx, name, what, reached)
  elseif not reached and ctx.resumed[job] then
    call('HDEL', ctx.base .. ':jobs', job)
  end
end

-- Run the jobs of this call within its budget, and derive the states of the flows that changed.
function ff.run_jobs(ctx)
  if not (rawget(ctx, 'jobs') or rawget(ctx, 'changed_flows')) then
    return
  end
  local at = 1
  repeat
    while at <= #ctx.jobs do
      advance(ctx, ctx.jobs[at])
      at = at + 1
    end
    ff.settle_flows(ctx)
  until at > #ctx.jobs
  ctx.jobs = nil
end

-- Continue a job that an earlier call left. Return true if only a newer release knows it.
function ff.resume_job(ctx, job)
  local name, what = string.match(job, '^(%l+):(.*)$')
  if not name or not JOBS[name] then
    return true
  end
  local cursor = call('HGET', ctx.base .. ':jobs', job)
  ctx.resumed[job] = cursor ~= false
  ff.enqueue(ctx, name, what, cursor or '')
end
