"""The operations of the area attempts, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

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


class AttemptTransaction(ABC):
    """A transaction in the store's database, in which a handler writes and its execution completes.

    Attributes:
        connection: the driver's connection, for the handler.
    """

    connection: Any

    @abstractmethod
    def complete(self, handle: Handle, payload: bytes | None = None) -> None:
        """End the execution as completed, and commit what the handler wrote with it.

        Args:
            handle: the lease.
            payload: the result.

        Raises:
            StateError, NotFoundError: the lease is lost; nothing was written.
            ValidationError: `payload_too_large`; or `invalid_input`, the handler has ended the transaction by itself,
                or left a failed one.
            TransportError: it is not known whether the transaction was committed.
            Exception: the driver's; the database refused to commit, and nothing was written.
        """

    @abstractmethod
    def roll_back(self) -> bool:
        """Undo what the handler wrote, and close the connection; return False if the connection was lost before."""


class AttemptsBackend:
    """The operations of a lease holder on its execution.

    Each operation may raise the errors of a lost lease: `execution_not_found`, `execution_not_active`, `lease_revoked`,
    `lease_expired` and `stale_lease`. An operation on many handles returns them in place of a result.
    """

    def renew(self, handle: Handle) -> LeaseRenewal:
        """Extend a lease to its full time from now; an expired lease stays lost.

        Args:
            handle: the lease.

        Returns:
            When the lease expires, in ms of the store's clock.
        """
        raise UnavailableError("renew")

    def renew_many(self, handles: Sequence[Handle]) -> list[LeaseRenewal | EngineError]:
        """Extend many leases in one round trip.

        Args:
            handles: the leases, each once.

        Returns:
            For each handle its renewal, or the error.

        Raises:
            ValidationError: `duplicate_in_call`; no lease was renewed.
        """
        raise UnavailableError("renew_many")

    def progress(self, handle: Handle, percent: int | None = None, message: str | None = None) -> None:
        """Record the progress of the handler.

        Args:
            handle: the lease.
            percent: 0 to 100; None to keep the present value.
            message: a text for operators; None to keep the present one.

        Raises:
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("progress")

    def complete(self, handle: Handle, payload: bytes | None = None) -> None:
        """End an execution with success.

        Args:
            handle: the lease.
            payload: the result; None and `b""` differ.

        Raises:
            ValidationError: `payload_too_large`.
        """
        raise UnavailableError("complete")

    def begin_transaction(self) -> AttemptTransaction:
        """Begin a transaction in the store's database, which can complete an execution together with rows of the user.

        Raises:
            ValidationError: `invalid_input`, the store is not on Postgres.
            TransportError: the store cannot be reached.
        """
        raise UnavailableError("begin_transaction")

    def complete_many(self, completions: Sequence[Completion]) -> list[EngineError | None]:
        """End many executions with success in one round trip.

        Args:
            completions: the leases and results, each lease once.

        Returns:
            For each completion None, or the error, such as `payload_too_large`.

        Raises:
            ValidationError: `duplicate_in_call`; no execution was completed.
        """
        raise UnavailableError("complete_many")

    def fail(
        self,
        handle: Handle,
        reason: FailureReason,
        classification: FailureClass,
        retry_after: timedelta | None = None,
    ) -> FailOutcome:
        """End an attempt as failed; the execution's policy decides whether it is retried.

        Args:
            handle: the lease.
            reason: a message, and details as bytes.
            classification: the class of the failure. A permanent failure is never retried; a cancelled one ends the
                execution as cancelled.
            retry_after: the delay before the next attempt, in place of the policy's backoff.

        Returns:
            `RetryScheduled`, `TerminalFailed` or `TerminalCancelled`.

        Raises:
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("fail")

    def fail_many(self, failures: Sequence[Failure]) -> list[FailOutcome | EngineError]:
        """End many attempts as failed in one round trip.

        Args:
            failures: the arguments of `fail`, each lease once.

        Returns:
            For each failure what `fail` returns, or the error, such as `invalid_input`.

        Raises:
            ValidationError: `duplicate_in_call`; no attempt was ended.
        """
        raise UnavailableError("fail_many")

    def cancel(self, handle: Handle, reason: str = "") -> None:
        """End an execution as cancelled by its holder.

        Args:
            handle: the lease.
            reason: why, for operators.
        """
        raise UnavailableError("cancel")

    def release(self, handle: Handle, delay: timedelta | None = None) -> None:
        """Release a claim; the execution keeps its place and its attempt, and no retry is used.

        Args:
            handle: the lease.
            delay: how long until the execution is ready; None for at once.

        Raises:
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("release")

    def release_many(
        self,
        handles: Sequence[Handle],
        delay: timedelta | None = None,
        *,
        if_wanted: bool = False,
        lost: str | None = None,
    ) -> list[bool | TerminalFailed | EngineError]:
        """Release many claims in one round trip; at most one of `delay`, `if_wanted` and `lost` may be given.

        Args:
            handles: the leases, each once.
            delay: how long until the executions are ready; None for at once.
            if_wanted: release only the claims that another worker waits for.
            lost: why the attempts are lost, such as "killed by SIGKILL". Each attempt ends and counts as a reclaim; an
                execution that has used up its reclaims ends as failed.

        Returns:
            For each claim True if it was released; False if no worker waits for it and the caller still holds it;
            `TerminalFailed` if the execution ended; or the error.

        Raises:
            ValidationError: `invalid_input`, `duplicate_in_call`; no claim was released.
        """
        raise UnavailableError("release_many")

    def delay(self, handle: Handle, delay_until: datetime | timedelta) -> None:
        """End a lease, and let the attempt continue later; no retry is used.

        Args:
            handle: the lease.
            delay_until: the moment at which the execution is ready, or the time until then.

        Raises:
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("delay")

    def wait_children(
        self, handle: Handle, need: int | None = None, names: Sequence[str] | None = None, settle: bool = False
    ) -> None:
        """End a lease, and let the attempt continue when enough children succeeded, or can succeed no more.

        It continues at once if that is so already, as without children.

        Args:
            handle: the lease.
            need: how many of the children must succeed; None for all of them.
            names: the children, at most 1,000, by the names under which they were spawned; None for those that are not
                detached.
            settle: True to continue when `need` of them have ended, in whatever way.

        Raises:
            ValidationError: `invalid_input`; `duplicate_in_call`, a name stands twice.
        """
        raise UnavailableError("wait_children")

    def record_step(self, handle: Handle, name: str, value: bytes) -> StepRecord:
        """Record the result of a step for every later attempt; the first result under a name is kept.

        Args:
            handle: the lease.
            name: the step's name.
            value: the step's result.

        Returns:
            The recorded result, and whether this call recorded it.

        Raises:
            ValidationError: `invalid_input`, `payload_too_large`; `journal_full`, the journal has 1,000 steps or 1 MiB.
        """
        raise UnavailableError("record_step")
