"""The operations of the area attempts, with their promises."""

# ruff: noqa: ARG002 - the arguments are named for those who override these methods.

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from flowfabric_worker.engine.errors import EngineError, UnavailableError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.types.attempts import (
    Completion,
    FailOutcome,
    Failure,
    FailureReason,
    LeaseRenewal,
    StepRecord,
    TerminalFailed,
)
from flowfabric_worker.engine.types.policies import FailureClass


class AttemptsBackend:
    """What the holder of a lease does with its execution."""

    def renew(self, handle: Handle) -> LeaseRenewal:
        """Make a lease hold for its full time again, from now. A lease that ran out stays lost."""
        raise UnavailableError("renew")

    def renew_many(self, handles: Sequence[Handle]) -> list[LeaseRenewal | EngineError]:
        """Renew many leases in one round trip."""
        raise UnavailableError("renew_many")

    def progress(self, handle: Handle, percent: int | None = None, message: str | None = None) -> None:
        """Say how far the work is: 0 to 100 percent, and a message. None keeps what was said before."""
        raise UnavailableError("progress")

    def complete(self, handle: Handle, payload: bytes | None = None) -> None:
        """End the execution with success and this result; None and `b""` differ.

        Raises:
            ValidationError: `payload_too_large`.
        """
        raise UnavailableError("complete")

    def complete_many(self, completions: Sequence[Completion]) -> list[EngineError | None]:
        """Complete many executions in one round trip."""
        raise UnavailableError("complete_many")

    def fail(
        self,
        handle: Handle,
        reason: FailureReason,
        classification: FailureClass,
        retry_after: timedelta | None = None,
    ) -> FailOutcome:
        """End the attempt as failed; the execution's policy decides whether it is tried again.

        Permanent failures are never retried, cancelled ones end the execution cancelled. `retry_after` takes the
        place of the policy's backoff.
        """
        raise UnavailableError("fail")

    def fail_many(self, failures: Sequence[Failure]) -> list[FailOutcome | EngineError]:
        """Fail many attempts in one round trip."""
        raise UnavailableError("fail_many")

    def cancel(self, handle: Handle, reason: str = "") -> None:
        """End the execution as cancelled by its holder."""
        raise UnavailableError("cancel")

    def release(self, handle: Handle, delay: timedelta | None = None) -> None:
        """Hand a claim back, ready at once or after a delay: same place, same attempt, no retry used."""
        raise UnavailableError("release")

    def release_many(
        self,
        handles: Sequence[Handle],
        delay: timedelta | None = None,
        *,
        if_wanted: bool = False,
        lost: str | None = None,
    ) -> list[bool | TerminalFailed | EngineError]:
        """Hand many claims back in one round trip.

        Args:
            if_wanted: only those that another worker waits for.
            lost: why the runs are lost, as in "killed by SIGKILL". They count as reclaims then: the attempt is over,
                the next claim begins another one, and an execution that was reclaimed too often ends failed.

        Returns:
            For each claim True if it was handed back; False if no worker waits for it, and the caller still holds it;
            `TerminalFailed` if that ended the execution.
        """
        raise UnavailableError("release_many")

    def delay(self, handle: Handle, delay_until: datetime | timedelta) -> None:
        """Parks the execution until a moment, or for a time; the same attempt goes on, no retry used."""
        raise UnavailableError("delay")

    def wait_children(self, handle: Handle) -> None:
        """Parks the execution until its children ended; ready at once when none is outstanding."""
        raise UnavailableError("wait_children")

    def record_step(self, handle: Handle, name: str, value: bytes) -> StepRecord:
        """Keep a step's result for every later run of the execution; the first one under a name stands.

        Raises:
            ValidationError: `journal_full`, 1,000 steps or 1 MiB.
        """
        raise UnavailableError("record_step")
