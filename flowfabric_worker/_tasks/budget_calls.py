"""The calls of a client on budgets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

from flowfabric_worker.engine.errors import NotFoundError
from flowfabric_worker.engine.ids import BudgetId
from flowfabric_worker.engine.limits import MAX_PAGE_SIZE
from flowfabric_worker.engine.types.budgets import (
    BudgetDefinition,
    BudgetDimension,
    BudgetStatus,
    CreateBudgetArgs,
    OnHardLimit,
)
from flowfabric_worker.engine.types.checks import as_dict, word
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.listing import rows_of

if TYPE_CHECKING:
    from flowfabric_worker.engine.engine import Engine

_NONE: Mapping[str, int] = MappingProxyType({})


def budget_definition(
    limits: Mapping[str, int], soft: Mapping[str, int], every: timedelta | None, on_hard_limit: str
) -> BudgetDefinition:
    """Return the definition of a budget from how users write it."""
    hard, soft = as_dict(limits), as_dict(soft)
    dimensions = [
        BudgetDimension(name=name, hard_limit=hard.get(name), soft_limit=soft.get(name))
        for name in dict.fromkeys((*hard, *soft))
    ]
    dimensions.sort(key=lambda dimension: dimension.name)
    action = word(OnHardLimit, on_hard_limit, "on_hard_limit")
    return BudgetDefinition(dimensions=dimensions, reset_interval=every, on_hard_limit=action)


class BudgetCalls:
    """What a client does with budgets."""

    engine: Engine

    def budgets(self) -> Iterator[BudgetStatus | DamagedRow]:
        """Yield the budgets in the order of their names, with what they count."""

        def read(cursor: str | None) -> tuple[Sequence[BudgetStatus | DamagedRow], str | None]:
            page = self.engine.list_budgets(cursor, MAX_PAGE_SIZE)
            return page.budgets, page.next_cursor

        return rows_of(read)

    def budget(self, name: str) -> BudgetStatus | None:
        """Return a budget with what it counts; None if it does not exist."""
        try:
            return self.engine.get_budget_status(BudgetId(name))
        except NotFoundError:
            return None

    def create_budget(
        self,
        name: str,
        limits: Mapping[str, int],
        *,
        soft: Mapping[str, int] = _NONE,
        every: timedelta | None = None,
        on_hard_limit: str = OnHardLimit.BLOCK,
    ) -> bool:
        """Create a budget; return False if the same one exists.

        Args:
            name: its name, which tasks give in `budgets=`.
            limits: the hard limits by dimension, such as `{"tokens": 100_000}`.
            soft: the soft limits by dimension; the use that passes one is told in the log, by a hook and in its stream.
            every: how often the counters are set to zero; None for never.
            on_hard_limit: what a handler that would pass a limit does: "block", "suspend" or "fail". New work waits at
                the limit in any case.

        Raises:
            ConflictError: `conflict`, a budget of that name has other limits.
        """
        definition = budget_definition(limits, soft, every, on_hard_limit)
        return self.engine.create_budget(CreateBudgetArgs(budget_id=BudgetId(name), definition=definition)).created

    def update_budget(
        self,
        name: str,
        limits: Mapping[str, int],
        *,
        soft: Mapping[str, int] = _NONE,
        every: timedelta | None = None,
        on_hard_limit: str = OnHardLimit.BLOCK,
    ) -> BudgetStatus:
        """Replace the limits of a budget; return what it is now. Its counters are kept, and work it held back goes on.

        Raises:
            NotFoundError: `budget_not_found`.
        """
        return self.engine.update_budget(BudgetId(name), budget_definition(limits, soft, every, on_hard_limit))

    def reset_budget(self, name: str) -> BudgetStatus:
        """Set the counters of a budget to zero; return what it is now.

        Raises:
            NotFoundError: `budget_not_found`.
        """
        self.engine.reset_budget(BudgetId(name))
        return self.engine.get_budget_status(BudgetId(name))

    def remove_budget(self, name: str) -> None:
        """Remove a budget that no execution names.

        Raises:
            NotFoundError: `budget_not_found`.
            ConflictError: `budget_in_use`.
        """
        self.engine.delete_budget(BudgetId(name))
