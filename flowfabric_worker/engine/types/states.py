"""The state of an execution: six stored dimensions, and the public state that follows from them."""

from __future__ import annotations

import functools
import re
from enum import StrEnum

import attrs


class LifecyclePhase(StrEnum):
    """The phase of an execution."""

    SUBMITTED = "submitted"
    RUNNABLE = "runnable"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    TERMINAL = "terminal"


class OwnershipState(StrEnum):
    """Whether a lease holds an execution. The last two occur only while it is active."""

    UNOWNED = "unowned"
    LEASED = "leased"
    LEASE_EXPIRED_RECLAIMABLE = "lease_expired_reclaimable"
    LEASE_REVOKED = "lease_revoked"


class EligibilityState(StrEnum):
    """Whether an execution may be claimed."""

    ELIGIBLE_NOW = "eligible_now"
    NOT_ELIGIBLE_UNTIL_TIME = "not_eligible_until_time"
    BLOCKED_BY_DEPENDENCIES = "blocked_by_dependencies"
    BLOCKED_BY_BUDGET = "blocked_by_budget"
    BLOCKED_BY_QUOTA = "blocked_by_quota"
    BLOCKED_BY_ROUTE = "blocked_by_route"
    BLOCKED_BY_LANE_STATE = "blocked_by_lane_state"
    BLOCKED_BY_OPERATOR = "blocked_by_operator"
    NOT_APPLICABLE = "not_applicable"


class BlockingReason(StrEnum):
    """Why an execution is not running."""

    NONE = "none"
    WAITING_FOR_WORKER = "waiting_for_worker"
    WAITING_FOR_RETRY_BACKOFF = "waiting_for_retry_backoff"
    WAITING_FOR_RESUME_DELAY = "waiting_for_resume_delay"
    WAITING_FOR_DELAY = "waiting_for_delay"
    WAITING_FOR_SIGNAL = "waiting_for_signal"
    WAITING_FOR_APPROVAL = "waiting_for_approval"
    WAITING_FOR_CALLBACK = "waiting_for_callback"
    WAITING_FOR_TOOL_RESULT = "waiting_for_tool_result"
    WAITING_FOR_CHILDREN = "waiting_for_children"
    WAITING_FOR_BUDGET = "waiting_for_budget"
    WAITING_FOR_QUOTA = "waiting_for_quota"
    WAITING_FOR_CAPABLE_WORKER = "waiting_for_capable_worker"
    WAITING_FOR_LOCALITY_MATCH = "waiting_for_locality_match"
    PAUSED_BY_OPERATOR = "paused_by_operator"
    PAUSED_BY_POLICY = "paused_by_policy"
    PAUSED_BY_FLOW_CANCEL = "paused_by_flow_cancel"


class TerminalOutcome(StrEnum):
    """How an execution ended."""

    NONE = "none"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SKIPPED = "skipped"


class AttemptState(StrEnum):
    """The state of an execution's present attempt."""

    NONE = "none"
    PENDING_FIRST_ATTEMPT = "pending_first_attempt"
    RUNNING_ATTEMPT = "running_attempt"
    ATTEMPT_INTERRUPTED = "attempt_interrupted"
    PENDING_RETRY_ATTEMPT = "pending_retry_attempt"
    PENDING_REPLAY_ATTEMPT = "pending_replay_attempt"
    ATTEMPT_TERMINAL = "attempt_terminal"


class PublicState(StrEnum):
    """The state that users see."""

    WAITING = "waiting"
    DELAYED = "delayed"
    RATE_LIMITED = "rate_limited"
    WAITING_CHILDREN = "waiting_children"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SKIPPED = "skipped"

    @property
    def is_terminal(self) -> bool:
        """Whether an execution in this state has ended."""
        return self in _ENDED.values()


_ENDED = {
    TerminalOutcome.SUCCESS: PublicState.COMPLETED,
    TerminalOutcome.FAILED: PublicState.FAILED,
    TerminalOutcome.CANCELLED: PublicState.CANCELLED,
    TerminalOutcome.EXPIRED: PublicState.EXPIRED,
    TerminalOutcome.SKIPPED: PublicState.SKIPPED,
    TerminalOutcome.NONE: PublicState.FAILED,
}
_RUNNABLE = {
    EligibilityState.NOT_ELIGIBLE_UNTIL_TIME: PublicState.DELAYED,
    EligibilityState.BLOCKED_BY_DEPENDENCIES: PublicState.WAITING_CHILDREN,
    EligibilityState.BLOCKED_BY_BUDGET: PublicState.RATE_LIMITED,
    EligibilityState.BLOCKED_BY_QUOTA: PublicState.RATE_LIMITED,
}


class NewerPhaseError(ValueError):
    """The phase of a stored state is one that this release does not know."""


@attrs.frozen(kw_only=True)
class StateVector:
    """The six dimensions of an execution's state, which change together."""

    lifecycle_phase: LifecyclePhase
    ownership_state: OwnershipState
    eligibility_state: EligibilityState
    blocking_reason: BlockingReason
    terminal_outcome: TerminalOutcome
    attempt_state: AttemptState

    @classmethod
    @functools.lru_cache(maxsize=256)
    def parse(cls, text: str) -> StateVector:
        """Parse a state: six words separated by spaces or, as in a record, six letters.

        Raises:
            NewerPhaseError: six letters, the first of which is a phase that this release does not know.
            ValueError: not six words or letters, or an unknown one; the message names the dimension.
        """
        words = text.split(" ") if " " in text else list(text)
        dimensions = attrs.fields(cls)
        if len(words) != len(dimensions):
            raise ValueError(f"a state has {len(dimensions)} words, not {len(words)}")
        if _STATE_OF_LETTERS.fullmatch(text) and text[0] not in _LETTERS[0]:
            raise NewerPhaseError(f"the phase {text[0]!r} is not known")
        values = {}
        for word, dimension, letters in zip(words, dimensions, _LETTERS, strict=True):
            found = letters.get(word) or next((each for each in letters.values() if each == word), None)
            if found is None:
                raise ValueError(f"{dimension.name} cannot be {word!r}")
            values[dimension.name] = found
        return cls(**values)  # type: ignore[arg-type]  # each value has its dimension's own kind

    def encode(self) -> str:
        """Return the stored form."""
        return "".join(
            next(letter for letter, each in letters.items() if each is word)
            for word, letters in zip(attrs.astuple(self), _LETTERS, strict=True)
        )

    @property
    def public_state(self) -> PublicState:
        """Return the state that users see, which follows from the six dimensions."""
        if self.lifecycle_phase is LifecyclePhase.TERMINAL:
            return _ENDED[self.terminal_outcome]
        if self.lifecycle_phase is LifecyclePhase.SUSPENDED:
            return PublicState.SUSPENDED
        if self.lifecycle_phase is LifecyclePhase.ACTIVE:
            return PublicState.ACTIVE
        return _RUNNABLE.get(self.eligibility_state, PublicState.WAITING)


_STATE_OF_LETTERS = re.compile("[a-z]{6}")


def _letters(kind: type[StrEnum], letters: str) -> dict[str, StrEnum]:
    """Return the words of one dimension by the letters that stand for them in a record."""
    return dict(zip(letters, kind, strict=True))


# lua/prelude_states.lua has the same letters.
_LETTERS: tuple[dict[str, StrEnum], ...] = (
    _letters(LifecyclePhase, "brast"),
    _letters(OwnershipState, "ulxv"),
    _letters(EligibilityState, "etdbqrlon"),
    _letters(BlockingReason, "nwbrdsacthuqklopf"),
    _letters(TerminalOutcome, "nsfcek"),
    _letters(AttemptState, "nfritpz"),
)
