"""The arguments and results of the area quotas: how many runs may start in a window, and run at once."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum

import attrs
from attrs.validators import optional

from flowfabric_worker.engine.ids import ExecutionId, QuotaPolicyId
from flowfabric_worker.engine.types import checks
from flowfabric_worker.engine.types.damage import DamagedRow


@attrs.frozen(kw_only=True)
class QuotaPolicy:
    """What a quota allows; None is no limit.

    Attributes:
        window: the length of the sliding window, on the store's clock.
        max_requests_per_window: attempts that may start within it.
        max_concurrent: runs at once.
    """

    window: timedelta = attrs.field(default=timedelta(minutes=1), validator=checks.duration())
    max_requests_per_window: int | None = attrs.field(default=None, validator=optional(checks.integer(1)))
    max_concurrent: int | None = attrs.field(default=None, validator=optional(checks.integer(1)))


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
        admitted_in_window: attempts that started within the window.
        running: slots that are held now.
    """

    quota_policy_id: QuotaPolicyId
    namespace: str
    policy: QuotaPolicy
    admitted_in_window: int
    running: int
    created_at_ms: int


@attrs.frozen(kw_only=True)
class ListQuotasPage:
    """A page of quota policies by id; `next_cursor` is None on the last one."""

    policies: tuple[QuotaPolicyStatus | DamagedRow, ...]
    next_cursor: str | None


@attrs.frozen(kw_only=True)
class CheckAdmissionArgs:
    """An execution that asks to run under a quota policy."""

    quota_policy_id: QuotaPolicyId = attrs.field(validator=checks.name)
    execution_id: ExecutionId


class AdmissionOutcome(StrEnum):
    """Whether a run is admitted, and if not, which limit forbids it."""

    ADMITTED = "admitted"
    ALREADY_ADMITTED = "already_admitted"
    RATE_EXCEEDED = "rate_exceeded"
    CONCURRENCY_EXCEEDED = "concurrency_exceeded"


@attrs.frozen(kw_only=True)
class CheckAdmissionResult:
    """The reply to a request to run; after RATE_EXCEEDED, ask again in `retry_after_ms`."""

    outcome: AdmissionOutcome
    retry_after_ms: int | None = None
