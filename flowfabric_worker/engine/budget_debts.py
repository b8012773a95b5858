"""What gates and executions of different partitions owe to each other, and how it is paid."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

import attrs

from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.ids import check_name
from flowfabric_worker.engine.limits import MAX_CALL_ITEMS
from flowfabric_worker.engine.partitions import partition_of_names
from flowfabric_worker.engine.quota_debts import QuotaDebts
from flowfabric_worker.engine.wire import DAMAGE, unpack

log = logging.getLogger(__name__)

_OF_QUOTAS = frozenset({b"held", b"left", b"news", b"check", b"lapse"})
_OF_BUDGETS = frozenset({b"end", b"gone", b"go", b"ask", b"tell"})


@attrs.frozen(kw_only=True)
class _Debt:
    """What a partition owes: its kind, the gate's address and partition, the execution, and the payee's partition.

    A debt that is about a quota has in place of the execution what it says.
    """

    what: bytes
    address: bytes
    uuid: bytes
    home: int
    place: int


class BudgetDebts(QuotaDebts):
    """Pay what one partition owes to budgets, quotas or executions of another one.

    A stored function writes down what it owes in the step that causes it. Its caller pays at once, and upkeep pays what
    a process left that died. Each payment may be repeated.
    """

    def _begin(self) -> None:
        super()._begin()
        # The partitions in which executions use budgets or quotas of others, as far as this engine caused it.
        self.owing: set[int] = set()

    def _budget(self, budget_id: object) -> tuple[int, bytes]:
        """Return the partition of a budget, and its address there."""
        name = check_name(budget_id, "a budget's id")
        return self._home(self.namespace, name), self._packed_namespace + name.encode()

    def _home(self, namespace: str, budget_id: str) -> int:
        return partition_of_names((namespace, "budget", budget_id), self.partitions)

    def pay(self, partition: int) -> None:
        """Pay what a partition owes to others, unless there is only one."""
        if self.partitions > 1:
            self.pay_all(partition, self.call("read_owed", partition, [MAX_CALL_ITEMS]))

    def pay_ends(self, partitions: set[int]) -> None:
        """Pay what partitions owe in which leases ended, if this engine used budgets or quotas for executions there."""
        for partition in partitions & self.owing:
            self.pay_now(partition)

    def pay_now(self, partition: int) -> None:
        """Pay what a partition owes as far as that is possible now; upkeep pays the rest."""
        with contextlib.suppress(EngineError):
            self.pay(partition)

    def pay_all_now(self, partition: int, owed: Sequence[bytes]) -> None:
        """Pay what a call has said that its partition owes, as far as that is possible now; upkeep pays the rest."""
        with contextlib.suppress(EngineError):
            self.pay_all(partition, owed)

    def note_quota(self, partition: int, quota: str | None) -> None:
        """Note that what ends in a partition may free slots of a quota, which other partitions have to hear of."""
        if quota is not None and not self.store.spans_partitions:
            self.owing.add(partition)

    def pay_all(self, partition: int, owed: Sequence[bytes]) -> None:
        """Pay what a partition owes.

        Args:
            partition: the partition that owes it.
            owed: as `read_owed` replies.
        """
        paid: list[bytes] = []
        homes: set[int] = set()
        caused: list[tuple[int, Sequence[bytes]]] = []
        for each in owed:
            try:
                debt = self._debt_of(each)
            except DAMAGE as error:
                # It can never be paid, and would stand before the others for ever.
                log.warning("A debt of partition %s is damaged and was dropped: %s", partition, error)
                paid.append(each)
                continue
            if debt is None:
                continue
            # What cannot be paid now must not keep the rest from being paid.
            with contextlib.suppress(EngineError):
                if debt.what in _OF_QUOTAS:
                    caused.append((debt.home, self._pay_one_of_quota(debt)))
                else:
                    homes |= self._pay_one(partition, debt)
                paid.append(each)
        if paid:
            self.call("end_owed", partition, paid)
        for home in homes:
            # The space that an execution left is passed on to those that wait for it.
            self.pay(home)
        for home, debts in caused:
            if debts:
                self.pay_all(home, debts)

    def _debt_of(self, owed: bytes) -> _Debt | None:
        """Decode a debt; return None for one that only a newer release pays.

        Raises:
            ValueError, ValidationError: it is damaged.
        """
        what, address, uuid, of_execution = unpack(owed)[:4]
        if what not in _OF_QUOTAS | _OF_BUDGETS:
            return None
        home = self.home_of_address(address) if what in _OF_QUOTAS else self._home_of_budget(address)
        place = int(of_execution or 0)
        return _Debt(what=what, address=address, uuid=uuid, home=home, place=self.check_partition(place))

    def _pay_one_of_quota(self, debt: _Debt) -> Sequence[bytes]:
        """Pay one debt that is about a quota; return what the quota's partition owes by that."""
        if debt.what == b"lapse":
            # What the claim took may still be owed, and is settled by this.
            self.pay(debt.place)
        return self.pay_quota(debt.what, debt.address, debt.uuid, debt.home, debt.place)

    def _pay_one(self, partition: int, debt: _Debt) -> set[int]:
        """Pay one debt of a partition; return the partition of the budget if that may owe something by now."""
        what, address, uuid, home = debt.what, debt.address, debt.uuid, debt.home
        if what == b"tell":
            self.call_elsewhere("pay", debt.place, [what, address, uuid])
            return set()
        if what == b"go":
            answer = self.call_elsewhere("pay", debt.place, [what, address, uuid])
            if answer[0] != b"idle":
                return set()
            self.call_elsewhere("pay", home, [b"open", address, uuid])
            return {home}
        answer = self.call_elsewhere("pay", home, [what, address, uuid])
        if answer[0] == b"go":
            self.call_elsewhere("pay", partition, [b"go", address, uuid])
        return {home}

    def _home_of_budget(self, address: bytes) -> int:
        """Return the partition of a budget from its address, pack{namespace} and its id."""
        digits, _, rest = address.partition(b":")
        size = int(digits)
        return self._home(rest[:size].decode(), rest[size:].decode())
