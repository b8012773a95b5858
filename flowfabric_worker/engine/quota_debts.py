"""What quotas and executions of different partitions owe to each other, and how it is paid."""

from __future__ import annotations

import time
from collections.abc import Sequence

from flowfabric_worker.engine.core import EngineCore, as_error
from flowfabric_worker.engine.errors import EngineError, TransportError
from flowfabric_worker.engine.ids import check_name
from flowfabric_worker.engine.partitions import partition_of_quota
from flowfabric_worker.engine.stores.base import Argument, Reply
from flowfabric_worker.engine.wire import unpack_text

# What a partition pays back to a quota, by what it answers.
_THEN = {b"idle": b"pass", b"gone": b"left"}

# For how many seconds another partition is waited for. An admission is usable for one; a later answer admits nothing.
_TIMEOUT = 1.0
# For how many seconds it is left alone after it could not be reached. Each time in a row doubles that, up to the most.
_LEFT_ALONE, _MOST_LEFT_ALONE = 5.0, 20.0


class QuotaDebts(EngineCore):
    """Pay the debts that are about quotas, which a stored function wrote down in the step that caused them."""

    def _begin(self) -> None:
        super()._begin()
        # The partitions that could not be reached: until when each is left alone, and for how long that is.
        self._away: dict[int, tuple[float, float]] = {}

    def call_elsewhere(self, function: str, partition: int, arguments: Sequence[Argument]) -> Reply:
        """Make a call that another partition causes, and that is made again later if it fails.

        It is repeated once if the connection is lost. A partition that cannot be reached, or does not answer in time,
        is left alone for a while, because the work of the calling partition must not wait for it.
        """
        until, pause = self._away.get(self.check_partition(partition), (0.0, 0.0))
        if until > time.monotonic():
            raise TransportError(backend=self.store.label)
        try:
            reply = self._sent_twice(function, partition, arguments)
        except TransportError:
            pause = min(2 * pause or _LEFT_ALONE, _MOST_LEFT_ALONE)
            self._away[partition] = time.monotonic() + pause, pause
            raise
        self._away.pop(partition, None)
        answer = as_error(reply, partition)
        if isinstance(answer, EngineError):
            raise answer
        return answer

    def _sent_twice(self, function: str, partition: int, arguments: Sequence[Argument]) -> Reply:
        """Send a call, and once more if its reply is lost for another reason than time."""
        with self.under_way:
            try:
                return self.store.call(function, partition, arguments, _TIMEOUT)
            except TransportError as error:
                if error.code == "store_timeout":
                    raise
            return self.store.call(function, partition, arguments, _TIMEOUT)

    def home_of_quota(self, quota: object) -> int:
        """Return the partition of a quota policy."""
        return partition_of_quota(self.namespace, check_name(quota, "quota_policy_id"), self.partitions)

    def is_reached(self, home: int, partition: int) -> bool:
        """Return True if what is called in a partition reaches the quotas of another one."""
        return home == partition or self.store.spans_partitions

    def home_of_address(self, quota: bytes) -> int:
        """Return the partition of a quota policy from its address, pack{namespace, id}."""
        namespace, name = unpack_text(quota)
        return partition_of_quota(namespace, name, self.partitions)

    def pay_quota(self, what: bytes, quota: bytes, about: bytes, home: int, other: int) -> Sequence[bytes]:
        """Pay one debt that is about a quota; return what the quota's partition owes by that.

        Args:
            what: `held`, `left`, `news`, `check` or `lapse`, see `ff.payments` in `prelude_admissions.lua`.
            quota: the address of the quota.
            about: what the debt says.
            home: the partition of the quota.
            other: the partition of the executions.
        """
        if what in (b"news", b"check"):
            word = self.call_elsewhere("pay", other, [what, quota, about, str(other)])[0]
            if word not in _THEN:
                return ()
            # Nothing there waits for the quota, so another partition may; or a holder is gone.
            what = _THEN[word]
        owed: Sequence[bytes] = self.call_elsewhere("pay", home, [what, quota, about, str(other)])[1]
        return owed
