"""The arguments and results of the area quotas: how many attempts may begin in a window, and run at once."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum

import attrs
from attrs.validators import optional

from flowfabric_worker.engine.ids import ExecutionId, QuotaPolicyId
from flowfabric_worker.engine.limits import MAX_QUOTA
from flowfabric_worker.engine.types import checks
from flowfabric_worker.engine.types.damage import DamagedRow


class AdmissionOutcome(StrEnum):
    """Whether a run is admitted, and if not, which limit forbids it."""

    ADMITTED = "admitted"
    ALREADY_ADMITTED = "already_admitted"
    RATE_EXCEEDED = "rate_exceeded"
    CONCURRENCY_EXCEEDED = "concurrency_exceeded"


class SlotHold(StrEnum):
    """How long an execution holds its slot of a quota.

    Attributes:
        LEASE: while it is leased; a suspended or delayed execution frees its slot, and takes one again to continue.
        RUN: from its first claim until it has ended, over suspensions, delays, retries and lost leases. The quota
            admits the run once, so a further attempt of it does not wait for the window, and does not count in it.
    """

    LEASE = "lease"
    RUN = "run"


def _as_hold(value: object) -> SlotHold:
    return checks.word(SlotHold, value, "QuotaPolicy.hold")


@attrs.frozen(kw_only=True)
class QuotaPolicy:
    """What a quota allows; None is no limit.

    Attributes:
        window: the length of the sliding window, on the store's clock.
        max_requests_per_window: attempts that may begin within it; an attempt that is resumed counts once. With
            `SlotHold.RUN`, the runs that may begin within it.
        max_concurrent: executions that hold a slot at once.
        hold: how long each of them holds it.
    """

    window: timedelta = attrs.field(default=timedelta(minutes=1), validator=checks.duration(1))
    max_requests_per_window: int | None = attrs.field(default=None, validator=optional(checks.integer(1, MAX_QUOTA)))
    max_concurrent: int | None = attrs.field(default=None, validator=optional(checks.integer(1, MAX_QUOTA)))
    hold: SlotHold = attrs.field(default=SlotHold.LEASE, converter=_as_hold)


@attrs.frozen(kw_only=True)
class CreateQuotaPolicyArgs:
    """A quota policy to create, in the engine's namespace."""

    quota_policy_id: QuotaPolicyId = attrs.field(validator=checks.name)
    policy: QuotaPolicy


@attrs.frozen(kw_only=True)
class CreateQuotaPolicyResult:
    """A quota policy that exists now; `created` is False when the same one existed before."""

    quota_policy_id: QuotaPolicyId
    created: bool


@attrs.frozen(kw_only=True)
class QuotaPolicyStatus:
    """A quota policy and what it counts at one moment.

    Attributes:
        admitted_in_window: attempts that began within the window; 0 if the policy does not limit them.
        running: slots that are held now.
        closed_by: the limit that refuses the next execution, or None.
        opens_at_ms: when the window admits the next one, if that limit is the rate.
    """

    quota_policy_id: QuotaPolicyId
    namespace: str
    policy: QuotaPolicy
    admitted_in_window: int
    running: int
    created_at_ms: int
    closed_by: AdmissionOutcome | None = None
    opens_at_ms: int | None = None


@attrs.frozen(kw_only=True)
class ListQuotasPage:
    """A page of quota policies by id; `next_cursor` is None on the last one."""

    policies: tuple[QuotaPolicyStatus | DamagedRow, ...]
    next_cursor: str | None


@attrs.frozen(kw_only=True)
class CheckAdmissionArgs:
    """An execution that asks to run under a quota policy.

    Attributes:
        lease: for how long its slot is kept if no run begins; a run holds the slot on.
    """

    quota_policy_id: QuotaPolicyId = attrs.field(validator=checks.name)
    execution_id: ExecutionId
    lease: timedelta = attrs.field(default=timedelta(seconds=30), validator=checks.duration(1))


@attrs.frozen(kw_only=True)
class CheckAdmissionResult:
    """The reply to a request to run; after RATE_EXCEEDED, ask again in `retry_after_ms`."""

    outcome: AdmissionOutcome
    retry_after_ms: int | None = None
