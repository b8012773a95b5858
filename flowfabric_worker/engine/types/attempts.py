"""running: arguments and results."""

from __future__ import annotations

from datetime import timedelta

import attrs

from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.types.policies import FailureClass


@attrs.frozen(kw_only=True)
class LeaseRenewal:
    """A renewed lease; the time is ms of the store's clock."""

    expires_at_ms: int
    lease_epoch: int


@attrs.frozen(kw_only=True)
class FailureReason:
    """Why an attempt failed.

    Attributes:
        message: one line, cut at 2 KiB.
        detail: such as a traceback, cut at 16 KiB.
    """

    message: str
    detail: bytes = attrs.field(default=b"", repr=False)


@attrs.frozen(kw_only=True)
class Failure:
    """One failed attempt, for fail_many.

    Attributes:
        retry_after: wait this long instead of what the policy says.
    """

    handle: Handle
    reason: FailureReason
    classification: FailureClass
    retry_after: timedelta | None = None


@attrs.frozen(kw_only=True)
class Completion:
    """One successful end, for complete_many. None and `b""` differ."""

    handle: Handle
    payload: bytes | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class RetryScheduled:
    """The execution is tried again at this ms of the store's clock."""

    delay_until_ms: int


@attrs.frozen(kw_only=True)
class TerminalFailed:
    """The execution ended failed."""


@attrs.frozen(kw_only=True)
class TerminalCancelled:
    """The execution ended cancelled: the failure was of that class."""


FailOutcome = RetryScheduled | TerminalFailed | TerminalCancelled


@attrs.frozen(kw_only=True)
class StepRecord:
    """A step's result that stands.

    Attributes:
        value: the first one that was recorded under the name.
        first: whether this call recorded it.
    """

    value: bytes = attrs.field(repr=False)
    first: bool
