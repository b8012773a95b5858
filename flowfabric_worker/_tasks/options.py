"""The options of a task: what may be said where it is decorated, and again for a submission."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import attrs

from flowfabric_worker._codecs.formats import Codec
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import check_lane, check_name
from flowfabric_worker.engine.limits import MAX_LEASE_MS, MAX_PRIORITY
from flowfabric_worker.engine.submission import check_headers, check_tags
from flowfabric_worker.engine.types.policies import ExecutionPolicy, RetryPolicy, milliseconds
from flowfabric_worker.engine.types.workers import TaskPublication
from flowfabric_worker.engine.wire import epoch_ms
from flowfabric_worker.schedule import Missed

OnConflict = Literal["raise", "return"]

DEFAULT_LANE: Final = "default"
# A task that takes its worker down with it is not handed to all of them.
DEFAULT_MAX_RECLAIMS: Final = 5
# What belongs to the task itself and cannot differ from one submission to the next.
TASK_ONLY: Final = frozenset({"lease", "codec", "permanent", "interrupt", "every", "cron", "timezone", "missed"})


def _names(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError(f"a collection of names is needed, not the single text {value!r}")
    return tuple(value)


def _exceptions(value: Iterable[type[Exception]]) -> tuple[type[Exception], ...]:
    classes = tuple(value)
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(f"permanent= takes classes of exceptions, not {each!r}")
    return classes


def _lease(_: object, attribute: attrs.Attribute[Any], value: timedelta | None) -> None:
    if value is not None and milliseconds(value, attribute.name, least=1) > MAX_LEASE_MS:
        raise ValueError(f"a lease holds at most {timedelta(milliseconds=MAX_LEASE_MS)}, not {value}")


def _duration(least: int) -> Any:
    """Return the validator of a duration of at least so many ms; the error has the name that the caller gave."""

    def check(_: object, attribute: attrs.Attribute[Any], value: timedelta | None) -> None:
        if value is not None:
            milliseconds(value, attribute.name, least=least)

    return check


def _count(most: int) -> Any:
    """Return the validator of a whole number from 0."""

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
    """Return the validator that is a check of the engine, whose errors name what is wrong."""
    return lambda _, __, value: check(value)


@attrs.frozen(kw_only=True)
class TaskOptions:
    """What may be said of a task where it is decorated, and again for a submission.

    Attributes:
        lane: the queue that its executions wait in.
        retry: how a failed attempt is tried again; None for no retries.
        timeout: how long one attempt may take.
        deadline: how long everything may take from submission; then it ends expired.
        priority: 0 to 9000, higher first.
        delay: begin not before this long after submission.
        at: begin not before this moment; only one of `delay` and `at`.
        key: an idempotency key: a second submission of this task under it answers with the first run.
        on_conflict: what a submission does whose key stands for other arguments: "raise" a `ConflictError`, or
            "return" the first run all the same.
        tags: names to find it by.
        headers: texts that the handler finds in `current().headers`, such as a trace's context; they are not searched.
        requires: capabilities that a worker must offer.
        budgets: budgets that it spends from.
        quota: the quota that it is admitted under.
        lease: how long a claim holds without renewal; None for the worker's.
        codec: how arguments and results travel; None for the worker's.
        retention: how long the ended execution is kept; None for 24 h.
        max_reclaims: how often it is handed out again after its worker was lost, or stopped by the handler's fault.
            What has 0 and has begun is ended by a stop too.
        permanent: exceptions that no retry would help against.
        interrupt: raise `Interrupted` in the handler's thread when its result will not count any more; without it
            the handler has to ask, by `current().check()` or `current().cancelled`.
        every: run it by itself in this interval, without arguments; counted from the beginning of 1970 in UTC.
        cron: run it by itself at these times, such as `*/5 * * * *`; only one of `every` and `cron`.
        timezone: whose clocks `cron` speaks of; see `Schedule` for what it does when they are changed.
        missed: what becomes of ticks while no worker ran: "latest", "all" or "none" of them run.
    """

    lane: str = attrs.field(default=DEFAULT_LANE, converter=check_lane)
    retry: RetryPolicy | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(RetryPolicy))
    )
    timeout: timedelta | None = attrs.field(default=None, validator=_duration(1))
    deadline: timedelta | None = attrs.field(default=None, validator=_duration(1))
    priority: int = attrs.field(default=0, validator=_count(MAX_PRIORITY))
    delay: timedelta | None = attrs.field(default=None, validator=_duration(0))
    at: datetime | None = attrs.field(default=None, validator=_moment)
    key: str | None = attrs.field(default=None, validator=_optional_name)
    on_conflict: OnConflict = attrs.field(default="raise", validator=attrs.validators.in_(("raise", "return")))
    tags: Mapping[str, str] = attrs.field(factory=dict, validator=_checked(check_tags))
    headers: Mapping[str, str] = attrs.field(factory=dict, validator=_checked(check_headers))
    requires: tuple[str, ...] = attrs.field(default=(), converter=_names)
    budgets: tuple[str, ...] = attrs.field(default=(), converter=_names)
    quota: str | None = attrs.field(default=None, validator=_optional_name)
    lease: timedelta | None = attrs.field(default=None, validator=_lease)
    codec: str | Codec | None = None
    retention: timedelta | None = attrs.field(default=None, validator=_duration(0))
    max_reclaims: int = attrs.field(default=DEFAULT_MAX_RECLAIMS, validator=_count(1_000_000))
    permanent: tuple[type[Exception], ...] = attrs.field(default=(), converter=_exceptions)
    interrupt: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    every: timedelta | None = None
    cron: str | None = None
    timezone: str = "UTC"
    missed: Missed = "latest"

    def __attrs_post_init__(self) -> None:
        if self.delay is not None and self.at is not None:
            raise ValidationError("invalid_input", "delay and at both say when it begins: give one of them.")

    def policy(self) -> ExecutionPolicy:
        """Return what the engine is told of these options."""
        return ExecutionPolicy(
            retry=self.retry,
            attempt_timeout=self.timeout,
            execution_deadline=self.deadline,
            max_reclaim_count=self.max_reclaims,
            retention=self.retention,
            requires=frozenset(self.requires),
            budget_ids=self.budgets,
            quota_policy_id=self.quota,
        )


def published_options(published: TaskPublication) -> TaskOptions:
    """Return the options that a worker has published of a task."""
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
    """Options with changes.

    Raises:
        TypeError: an unknown option; the message lists the known ones.
    """
    known = attrs.fields_dict(TaskOptions)
    unknown = sorted(changes.keys() - known.keys())
    if unknown:
        raise TypeError(f"unknown option {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    return attrs.evolve(options, **changes)
