"""The arguments and results of the area maintenance."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class PrepareResult:
    """A store that is ready for use.

    Attributes:
        created: whether this call set it up.
        loaded: whether this call loaded the function library.
        partitions: how many partitions it has.
        testing: whether its clock can be set.
        warnings: messages for operators.
        servers: how many servers hold its partitions; each has the functions.
    """

    created: bool
    loaded: bool
    partitions: int
    testing: bool
    product: str
    version: str
    warnings: tuple[str, ...]
    servers: int = 1


@attrs.frozen(kw_only=True)
class MaintenanceResult:
    """What a call of `run_upkeep` did.

    Attributes:
        handled: how many due entries were handled.
        more: whether more entries are due.
        next_due_in_ms: in how many ms the next entry is due; None if there is none.
    """

    handled: int
    more: bool
    next_due_in_ms: int | None


@attrs.frozen(kw_only=True)
class BackendCapabilities:
    """What an engine offers.

    Attributes:
        label: the kind of store.
        operations: the names of the operations that it implements.
    """

    label: str
    operations: frozenset[str]

    def supports(self, operation: str) -> bool:
        """Return True if the engine implements an operation."""
        return operation in self.operations
