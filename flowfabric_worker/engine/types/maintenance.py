"""upkeep: arguments and results."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class PrepareResult:
    """A store that is ready for use.

    Attributes:
        created: whether this call set it up.
        loaded: whether this call loaded the function library.
        partitions: how many it has.
        testing: whether its clock can be set.
        warnings: what an operator should know.
        servers: how many servers hold its partitions now; each has the functions.
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
    """What upkeep did.

    Attributes:
        handled: entries that were due and are now handled.
        more: whether some are still due.
        next_due_in_ms: when the next one is due, from now; None when nothing is.
    """

    handled: int
    more: bool
    next_due_in_ms: int | None


@attrs.frozen(kw_only=True)
class BackendCapabilities:
    """What an engine offers.

    Attributes:
        label: the kind of store.
        operations: the names of the operations that have a body.
    """

    label: str
    operations: frozenset[str]

    def supports(self, operation: str) -> bool:
        """Return whether an operation can be called."""
        return operation in self.operations
