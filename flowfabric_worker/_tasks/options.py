"""The options of a task, which its decorator sets and a submission may change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import attrs

from flowfabric_worker._codecs.formats import Codec
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import check_lane, check_name
from flowfabric_worker.engine.limits import MAX_LEASE_MS, MAX_PRIORITY
from flowfabric_worker.engine.moments import epoch_ms, milliseconds
from flowfabric_worker.engine.submission import check_headers, check_tags
from flowfabric_worker.engine.suggestions import did_you_mean
from flowfabric_worker.engine.types import checks
from flowfabric_worker.engine.types.policies import ExecutionPolicy, RetryPolicy
from flowfabric_worker.engine.types.workers import TaskPublication
from flowfabric_worker.schedule import Missed

OnConflict = Literal["raise", "return"]
Unique = Literal["waiting", "running"]

DEFAULT_LANE: Final = "default"
# An execution that kills its workers is not handed to all of them.
DEFAULT_MAX_RECLAIMS: Final = 5
# The options that belong to the task, and cannot be changed for a submission.
TASK_ONLY: Final = frozenset(
    {
        "lease", "codec", "permanent", "interrupt", "every", "cron", "timezone", "missed", "rate", "concurrency",
        "limit_by",
    }
)  # fmt: skip
# An execution that is unique while it runs keeps its key until it has ended, and not longer.
_UNTIL_ENDED: Final = timedelta(milliseconds=1)


def _names(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError(f"a collection of names is needed, not the single text {value!r}: write [{value!r}]")
    if not isinstance(value, Iterable):
        raise TypeError(f"a collection of names is needed, such as ['name'], not {value!r:.100}")
    return tuple(value)


def _exceptions(value: Iterable[type[Exception]]) -> tuple[type[Exception], ...]:
    classes = tuple(value) if isinstance(value, Iterable) else (None,)
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(f"permanent= takes classes of exceptions, such as [ValueError], not {value!r:.100}")
    return classes


def _retry(_: object, __: object, value: RetryPolicy | None) -> None:
    if value is not None and not isinstance(value, RetryPolicy):
        raise ValidationError("invalid_input", f"retry must be such as RetryPolicy(max_retries=3), not {value!r:.100}.")


def _lease(_: object, attribute: attrs.Attribute[Any], value: timedelta | None) -> None:
    if value is not None and milliseconds(value, attribute.name, least=1) > MAX_LEASE_MS:
        raise ValueError(f"a lease holds at most {timedelta(milliseconds=MAX_LEASE_MS)}, not {value}")


def _duration(least: int) -> Any:
    """Return a validator of durations of at least `least` ms; the error names the option."""

    def check(_: object, attribute: attrs.Attribute[Any], value: timedelta | None) -> None:
        if value is not None:
            milliseconds(value, attribute.name, least=least)

    return check


def _count(most: int) -> Any:
    """Return a validator of whole numbers from 0 to `most`."""

    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if type(value) is not int or not 0 <= value <= most:
            raise ValidationError(
                "invalid_input", f"{attribute.name} must be a whole number from 0 to {most}, not {value!r}."
            )

    return check


def _moment(_: object, attribute: attrs.Attribute[Any], value: datetime | None) -> None:
    if value is not None:
        epoch_ms(value, attribute.name)


def _optional_name(_: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None:
        check_name(value, attribute.name)


def _checked(check: Callable[[Any], object]) -> Any:
    """Return a validator that runs a check of the engine."""
    return lambda _, __, value: check(value)


@attrs.frozen(kw_only=True)
class TaskOptions:
    """The options of a task, which its decorator sets and a submission may change.

    Attributes:
        lane: the queue that the executions wait in.
        retry: how a failed attempt is retried; None for no retries.
        timeout: how long one attempt may take.
        deadline: how long the execution may take from its submission; then it ends as expired.
        priority: 0 to 9000; executions with a higher priority are claimed first.
        delay: how long after its submission the execution may begin.
        at: the moment from which the execution may begin; only one of `delay` and `at`.
        key: an idempotency key: a second submission of this task under the same key returns the first run.
        on_conflict: what a submission does if its key was used for other arguments: "raise" a `ConflictError`, or
            "return" the first run.
        unique: for how long the key refuses a second execution: "waiting" until the first attempt begins, "running"
            until the execution has ended; None for 24 h, and at least until it has ended.
        tags: names and values to find the execution by.
        headers: texts that the handler finds in `current().headers`, such as a trace context; they are not indexed.
        requires: the capabilities that a worker must have.
        budgets: the budgets that the execution spends from.
        quota: the quota policy that admits the execution.
        rate: how many attempts of the task may begin in a sliding window, such as `10/m` or `100/30s`.
        concurrency: how many executions of the task may run at once, over all workers.
        limit_by: a function of the call's arguments that returns a key; `rate` and `concurrency` hold for each key.
        lease: how long a claim holds without renewal; None for the worker's lease.
        codec: how arguments and results are encoded; None for the worker's codec.
        retention: how long the ended execution is kept; None for 24 h.
        max_reclaims: how often the execution is claimed again after its worker was lost, or was stopped because of
            the handler. With 0, a worker's stop also ends an execution whose handler has begun.
        permanent: exceptions for which no retry is made.
        interrupt: raise `Interrupted` in the handler's thread when its result will not count any more; without it
            the handler has to ask, by `current().check()` or `current().cancelled`.
        every: submit the task by itself at this interval, without arguments; counted from the beginning of 1970 in UTC.
        cron: submit the task by itself at these times, such as `*/5 * * * *`; only one of `every` and `cron`.
        timezone: the time zone of `cron`; see `Schedule` for what happens when its clocks change.
        missed: which ticks run that were due while no worker ran: "latest", "all" or "none".
    """

    lane: str = attrs.field(default=DEFAULT_LANE, converter=check_lane)
    retry: RetryPolicy | None = attrs.field(default=None, validator=_retry)
    timeout: timedelta | None = attrs.field(default=None, validator=_duration(1))
    deadline: timedelta | None = attrs.field(default=None, validator=_duration(1))
    priority: int = attrs.field(default=0, validator=_count(MAX_PRIORITY))
    delay: timedelta | None = attrs.field(default=None, validator=_duration(0))
    at: datetime | None = attrs.field(default=None, validator=_moment)
    key: str | None = attrs.field(default=None, validator=_optional_name)
    on_conflict: OnConflict = attrs.field(default="raise", validator=checks.one_of("raise", "return"))
    unique: Unique | None = attrs.field(
        default=None, validator=attrs.validators.optional(checks.one_of("waiting", "running"))
    )
    tags: Mapping[str, str] = attrs.field(factory=dict, validator=_checked(check_tags))
    headers: Mapping[str, str] = attrs.field(factory=dict, validator=_checked(check_headers))
    requires: tuple[str, ...] = attrs.field(default=(), converter=_names)
    budgets: tuple[str, ...] = attrs.field(default=(), converter=_names)
    quota: str | None = attrs.field(default=None, validator=_optional_name)
    rate: str | None = None
    concurrency: int | None = None
    limit_by: Callable[..., str] | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.is_callable())
    )
    lease: timedelta | None = attrs.field(default=None, validator=_lease)
    codec: str | Codec | None = None
    retention: timedelta | None = attrs.field(default=None, validator=_duration(0))
    max_reclaims: int = attrs.field(default=DEFAULT_MAX_RECLAIMS, validator=_count(1_000_000))
    permanent: tuple[type[Exception], ...] = attrs.field(default=(), converter=_exceptions)
    interrupt: bool = attrs.field(default=False, validator=checks.true_or_false)
    every: timedelta | None = None
    cron: str | None = None
    timezone: str = "UTC"
    missed: Missed = "latest"

    def __attrs_post_init__(self) -> None:
        if self.delay is not None and self.at is not None:
            raise ValidationError("invalid_input", "delay and at both set the time of the start: give one of them.")

    def policy(self) -> ExecutionPolicy:
        """Return what the engine is told of these options."""
        return ExecutionPolicy(
            retry=self.retry,
            attempt_timeout=self.timeout,
            execution_deadline=self.deadline,
            max_reclaim_count=self.max_reclaims,
            retention=self.retention,
            dedup_window=_UNTIL_ENDED if self.unique == "running" else None,
            frees_key=self.unique == "waiting",
            requires=frozenset(self.requires),
            budget_ids=self.budgets,
            quota_policy_id=self.quota,
        )


def published_options(published: TaskPublication) -> TaskOptions:
    """Return the options of a task from its publication."""
    policy = published.policy
    return TaskOptions(
        lane=published.lane,
        priority=published.priority,
        delay=published.delay,
        tags=published.tags,
        headers=published.headers,
        retry=policy.retry,
        timeout=policy.attempt_timeout,
        deadline=policy.execution_deadline,
        max_reclaims=policy.max_reclaim_count,
        retention=policy.retention,
        requires=sorted(policy.requires),
        budgets=policy.budget_ids,
        quota=policy.quota_policy_id,
    )


def change_options(options: TaskOptions, changes: Mapping[str, Any]) -> TaskOptions:
    """Return options with changes.

    Raises:
        TypeError: an option is unknown; the message names a similar one, and lists all options.
    """
    known = attrs.fields_dict(TaskOptions)
    unknown = sorted(changes.keys() - known.keys())
    if unknown:
        hint = did_you_mean(unknown[0], known)
        raise TypeError(f"unknown option {', '.join(map(repr, unknown))}.{hint} The options are {', '.join(known)}.")
    return attrs.evolve(options, **changes)
