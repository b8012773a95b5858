"""The contract of the engine: every operation and its promises, in one file per area.

Every operation is one atomic step, which happens whole or not at all, and a refused call leaves no trace. Every
operation may be sent again after a lost reply, and returns the same answer. Only the store's clock decides about time.
Every operation may raise `TransportError`; the docstrings name the other errors.
"""

from __future__ import annotations

from flowfabric_worker.engine.backend.admin import AdminBackend
from flowfabric_worker.engine.backend.attempts import AttemptsBackend
from flowfabric_worker.engine.backend.budgets import BudgetsBackend
from flowfabric_worker.engine.backend.claiming import ClaimingBackend
from flowfabric_worker.engine.backend.damage import DamageBackend
from flowfabric_worker.engine.backend.feed import FeedBackend
from flowfabric_worker.engine.backend.flows import FlowsBackend
from flowfabric_worker.engine.backend.maintenance import MaintenanceBackend
from flowfabric_worker.engine.backend.quotas import QuotasBackend
from flowfabric_worker.engine.backend.reads import ReadsBackend
from flowfabric_worker.engine.backend.schedules import SchedulesBackend
from flowfabric_worker.engine.backend.streams import StreamsBackend
from flowfabric_worker.engine.backend.submission import SubmissionBackend
from flowfabric_worker.engine.backend.suspension import SuspensionBackend
from flowfabric_worker.engine.backend.workers import WorkersBackend
from flowfabric_worker.engine.types.maintenance import BackendCapabilities


class EngineBackend(
    SubmissionBackend,
    ClaimingBackend,
    AttemptsBackend,
    SuspensionBackend,
    StreamsBackend,
    FlowsBackend,
    BudgetsBackend,
    QuotasBackend,
    SchedulesBackend,
    AdminBackend,
    WorkersBackend,
    ReadsBackend,
    DamageBackend,
    FeedBackend,
    MaintenanceBackend,
):
    """The operations of an engine; a subclass overrides those that it offers, and the others raise `UnavailableError`.

    Operations that take a handle check in this order: the execution exists (`execution_not_found`); the call does not
    repeat the one that ended this lease; the execution is active (`execution_not_active`, with its outcome); the lease
    is not revoked (`lease_revoked`), has not expired (`lease_expired`), and holds the execution (`stale_lease`).
    Operations on many items return an answer for each of them, which may be an error in place of a result.
    """

    def capabilities(self) -> BackendCapabilities:
        """Return which operations this engine implements."""
        operations = [name for name in dir(EngineBackend) if not name.startswith("_")]
        own = {name for name in operations if getattr(type(self), name) is not getattr(EngineBackend, name)}
        return BackendCapabilities(
            label=self.backend_label(), operations=frozenset(own | {"capabilities", "backend_label"})
        )


__all__ = ["EngineBackend"]
