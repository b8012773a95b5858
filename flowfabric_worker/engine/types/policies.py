"""The policy of an execution: retries, timeouts, deadline and retention."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal

import attrs
from attrs.validators import instance_of, optional

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.limits import (
    DEFAULT_MAX_RECLAIMS,
    DEFAULT_MAX_REPLAYS,
    MAX_BUDGETS,
)
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.types.checks import as_capabilities, as_tuple, at_most, duration


class FailureClass(StrEnum):
    """The class of a failure."""

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    INFRA_CRASH = "infra_crash"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


def _count(_: Any, attribute: attrs.Attribute[Any], value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1_000_000:
        raise ValidationError(
            "invalid_policy", f"{attribute.name} must be a whole number from 0 to 1000000, not {value!r}."
        )


def _classes(words: Iterable[str]) -> frozenset[FailureClass]:
    try:
        return frozenset(FailureClass(word) for word in words)
    except ValueError as error:
        raise ValidationError("invalid_policy", f"retryable_categories: {error}.") from None


@attrs.frozen(kw_only=True, cache_hash=True)
class RetryPolicy:
    """How often and after which delay a failed attempt is tried again.

    The n-th retry waits `initial` (fixed), or `initial * multiplier ** (n - 1)`, at most `maximum` (exponential).

    Attributes:
        max_retries: how many retries follow the first attempt.
        backoff: "exponential" or "fixed".
        initial: the first delay.
        maximum: the longest delay of an exponential backoff.
        multiplier: the factor by which the delay grows, at least 1.
        jitter: draw each delay between its half and its whole.
        retryable_categories: the classes of failure that are retried; empty for all but permanent ones.
    """

    max_retries: int = attrs.field(default=3, validator=_count)
    backoff: Literal["exponential", "fixed"] = "exponential"
    initial: timedelta = attrs.field(default=timedelta(seconds=1), validator=duration(0))
    maximum: timedelta = attrs.field(default=timedelta(minutes=1), validator=duration(0))
    multiplier: float = 2.0
    jitter: bool = True
    retryable_categories: frozenset[FailureClass] = attrs.field(default=frozenset(), converter=_classes)

    def __attrs_post_init__(self) -> None:
        if self.backoff not in ("exponential", "fixed"):
            raise ValidationError("invalid_policy", f"backoff must be 'exponential' or 'fixed', not {self.backoff!r}.")
        if type(self.multiplier) not in (float, int) or not 1 <= self.multiplier <= 1000:
            raise ValidationError("invalid_policy", f"multiplier must be 1 to 1000, not {self.multiplier!r}.")
        allowed = {FailureClass.TRANSIENT, FailureClass.TIMEOUT, FailureClass.INFRA_CRASH}
        if not self.retryable_categories <= allowed:
            raise ValidationError(
                "invalid_policy", f"retryable_categories can be {', '.join(sorted(allowed))}: others never retry."
            )

    def delay_ms(self, retry_count: int, draw: float) -> int:
        """Return the delay before the next attempt, in ms.

        Args:
            retry_count: how many retries were made before.
            draw: a number in [0, 1) for the jitter.
        """
        delay = float(milliseconds(self.initial, "initial"))
        if self.backoff == "exponential":
            try:
                grown = delay * float(self.multiplier) ** retry_count
            except OverflowError:
                grown = math.inf if delay else 0.0
            delay = min(grown, float(milliseconds(self.maximum, "maximum")))
        if self.jitter:
            delay = delay / 2 + draw * delay / 2
        return math.floor(delay)


@attrs.frozen(kw_only=True, cache_hash=True)
class ExecutionPolicy:
    """How an execution is run and kept.

    Attributes:
        retry: None for no retries.
        attempt_timeout: how long one attempt may take.
        execution_deadline: how long the execution may take from its creation; then it ends as expired.
        max_reclaim_count: how often work is handed out again after its lease was lost.
        max_replay_count: how often an operator may replay the execution.
        retention: how long the ended execution is kept; None for 24 h.
        dedup_window: how long its idempotency key stands for it, at least until it has ended; None for 24 h.
        frees_key: whether its idempotency key is free again once its first attempt begins.
        requires: the capabilities that a worker must have to claim it.
        budget_ids: the budgets that it spends from, at most 64.
        quota_policy_id: the quota policy under which it is admitted.
    """

    retry: RetryPolicy | None = None
    attempt_timeout: timedelta | None = attrs.field(default=None, validator=optional(duration(1)))
    execution_deadline: timedelta | None = attrs.field(default=None, validator=optional(duration(1)))
    max_reclaim_count: int = attrs.field(default=DEFAULT_MAX_RECLAIMS, validator=_count)
    max_replay_count: int = attrs.field(default=DEFAULT_MAX_REPLAYS, validator=_count)
    retention: timedelta | None = attrs.field(default=None, validator=optional(duration(0)))
    dedup_window: timedelta | None = attrs.field(default=None, validator=optional(duration(1)))
    frees_key: bool = attrs.field(default=False, validator=instance_of(bool))
    requires: frozenset[str] = attrs.field(default=frozenset(), converter=as_capabilities)
    budget_ids: tuple[str, ...] = attrs.field(default=(), converter=as_tuple, validator=at_most(MAX_BUDGETS))
    quota_policy_id: str | None = None
