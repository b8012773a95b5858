"""The arguments and results of the area attempts."""

from __future__ import annotations

from datetime import timedelta

import attrs

from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.types.policies import FailureClass


@attrs.frozen(kw_only=True)
class LeaseRenewal:
    """A renewed lease; the moment is in ms of the store's clock."""

    expires_at_ms: int
    lease_epoch: int


@attrs.frozen(kw_only=True)
class FailureReason:
    """Why an attempt failed.

    Attributes:
        message: one line; longer than 2 KiB it is cut.
        detail: such as a traceback; longer than 16 KiB it is cut.
    """

    message: str
    detail: bytes = attrs.field(default=b"", repr=False)


@attrs.frozen(kw_only=True)
class Failure:
    """A failed attempt, for `fail_many`.

    Attributes:
        retry_after: the delay before the next attempt, in place of the policy's backoff.
    """

    handle: Handle
    reason: FailureReason
    classification: FailureClass
    retry_after: timedelta | None = None


@attrs.frozen(kw_only=True)
class Completion:
    """A successful end, for `complete_many`. The payloads None and `b""` differ."""

    handle: Handle
    payload: bytes | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class RetryScheduled:
    """The execution is tried again at this moment, in ms of the store's clock."""

    delay_until_ms: int


@attrs.frozen(kw_only=True)
class TerminalFailed:
    """The execution ended as failed."""


@attrs.frozen(kw_only=True)
class TerminalCancelled:
    """The execution ended as cancelled, because the failure was of that class."""


FailOutcome = RetryScheduled | TerminalFailed | TerminalCancelled


@attrs.frozen(kw_only=True)
class StepRecord:
    """The result of a step that stands.

    Attributes:
        value: the result that was recorded first under the name.
        first: whether this call recorded it.
    """

    value: bytes = attrs.field(repr=False)
    first: bool
