"""What handlers do with budgets: `current().use()`, and `current().reserve()` with its reservations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Self


class Reservation:
    """Amounts of a budget that are reserved until they are settled.

    As a context manager it settles at the end of the block: what was reserved; or nothing, if the block raises.
    """

    def __init__(self, amounts: Mapping[str, int], settle: Callable[[Mapping[str, int]], None]) -> None:
        self._amounts = dict(amounts)
        self._settle = settle
        self._is_settled = False

    def settle(self, **amounts: int) -> None:
        """Count what was used in place of what was reserved, also if it is more; only the first call counts.

        Args:
            amounts: what was used, by dimension.
        """
        if not self._is_settled:
            self._settle(amounts)
            self._is_settled = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.settle(**self._amounts)
        elif issubclass(kind, Exception):
            self.settle(**dict.fromkeys(self._amounts, 0))


class BudgetContext(ABC):
    """The part of a handler's context that uses budgets."""

    @abstractmethod
    def use(self, budget: str | None = None, /, **amounts: int) -> None:
        """Count what the handler used against a budget, once per attempt and place.

        If it would pass a hard limit, nothing is counted, and the handler is left by an exception that is not an
        `Exception`: the execution is blocked or suspended until the budget has space for it, or has failed, as the
        budget says. The use that passes a soft limit is told in the log, by the hook `on_soft_limit` and in the
        stream.

        Args:
            budget: the budget; None for all budgets of the execution.
            amounts: what was used, by dimension, such as `tokens=350`.

        Raises:
            EngineError: the store refused it, such as `budget_not_found`.
        """

    @abstractmethod
    def reserve(
        self, budget: str | None = None, /, *, hold: timedelta = timedelta(minutes=5), **amounts: int
    ) -> Reservation:
        """Reserve amounts of a budget before they are used; settle the reservation with what was used.

        What is reserved counts against the hard limits until it is settled, the time is over, or the execution has
        ended. If it does not fit, the handler is left as by `use`.

        Args:
            budget: the budget; None for all budgets of the execution.
            hold: for how long the amounts are reserved.
            amounts: what may be used, by dimension.

        Raises:
            EngineError: the store refused it, such as `reservation_never_fits`.
        """
