"""The calls of a client on quota policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from flowfabric_worker._tasks.limits import read_rate
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import QuotaPolicyId
from flowfabric_worker.engine.limits import MAX_PAGE_SIZE
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.quotas import CreateQuotaPolicyArgs, QuotaPolicy, QuotaPolicyStatus, SlotHold
from flowfabric_worker.listing import rows_of

if TYPE_CHECKING:
    from flowfabric_worker.engine.engine import Engine


def quota_policy(rate: str | None, concurrency: int | None, hold: str) -> QuotaPolicy:
    """Return a quota policy from how users write it.

    Raises:
        ValidationError: `invalid_input`, a value is not valid, or nothing is limited.
    """
    if rate is None and concurrency is None:
        raise ValidationError("invalid_input", "A quota limits a rate, a concurrency, or both: give one of them.")
    most, window = (None, timedelta(minutes=1)) if rate is None else read_rate(rate)
    return QuotaPolicy(window=window, max_requests_per_window=most, max_concurrent=concurrency, hold=hold)


class QuotaCalls:
    """What a client does with quota policies."""

    engine: Engine

    def quotas(self) -> Iterator[QuotaPolicyStatus | DamagedRow]:
        """Yield the quota policies in the order of their names, with what they count."""

        def read(cursor: str | None) -> tuple[Sequence[QuotaPolicyStatus | DamagedRow], str | None]:
            page = self.engine.list_quotas(cursor, MAX_PAGE_SIZE)
            return page.policies, page.next_cursor

        return rows_of(read)

    def quota(self, name: str) -> QuotaPolicyStatus | None:
        """Return a quota policy with what it counts; None if it does not exist."""
        return self.engine.read_quota_policy(QuotaPolicyId(name))

    def create_quota(
        self, name: str, *, rate: str | None = None, concurrency: int | None = None, hold: str = SlotHold.LEASE
    ) -> bool:
        """Create a quota policy; return False if the same one exists.

        Args:
            name: its name, which tasks give as `quota=`.
            rate: how many attempts may begin in a sliding window, such as `10/m` or `100/30s`.
            concurrency: how many executions may run at once.
            hold: "lease" to hold a slot while the execution is leased, "run" to hold it until the execution has ended.

        Raises:
            ConflictError: `conflict`, a policy of that name has other limits.
        """
        policy = quota_policy(rate, concurrency, hold)
        args = CreateQuotaPolicyArgs(quota_policy_id=QuotaPolicyId(name), policy=policy)
        return self.engine.create_quota_policy(args).created

    def update_quota(
        self, name: str, *, rate: str | None = None, concurrency: int | None = None, hold: str = SlotHold.LEASE
    ) -> QuotaPolicyStatus:
        """Replace the limits of a quota policy; return what it is now. Slots that are held stay held.

        Raises:
            NotFoundError: `quota_policy_not_found`.
        """
        return self.engine.update_quota_policy(QuotaPolicyId(name), quota_policy(rate, concurrency, hold))

    def reset_quota(self, name: str) -> QuotaPolicyStatus:
        """Forget the attempts in the window of a quota policy; return what it is now.

        Raises:
            NotFoundError: `quota_policy_not_found`.
        """
        return self.engine.reset_quota_policy(QuotaPolicyId(name))

    def remove_quota(self, name: str) -> None:
        """Remove a quota policy that no execution needs.

        Raises:
            NotFoundError: `quota_policy_not_found`.
            ConflictError: `quota_policy_in_use`.
        """
        self.engine.delete_quota_policy(QuotaPolicyId(name))
