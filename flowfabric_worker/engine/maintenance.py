"""The operations that set up a store, handle what is due, and close the engine."""

from __future__ import annotations

import contextlib
import functools
from datetime import datetime, timedelta

from flowfabric_worker.engine.budget_debts import BudgetDebts
from flowfabric_worker.engine.connection import new_call_id
from flowfabric_worker.engine.errors import ConflictError, EngineError, EngineTimeoutError, ValidationError
from flowfabric_worker.engine.lane_pauses import LanePauses
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS, MAX_CALL_ITEMS
from flowfabric_worker.engine.moments import epoch_ms, milliseconds
from flowfabric_worker.engine.types.maintenance import MaintenanceResult, PrepareResult
from flowfabric_worker.engine.waitpoint_secrets import FIRST_SECRET_VARIABLE, secret_of_environment
from flowfabric_worker.engine.wording import read_mistyped


class Maintenance(LanePauses, BudgetDebts):
    """The operations of the area maintenance."""

    def prepare(self, *, testing: bool = False) -> PrepareResult:
        store = self.store
        info = self.call_with_retries(store.info)
        loaded = self.call_with_retries(store.install)
        created, stored_testing = self.set_up(testing=testing)
        return PrepareResult(
            created=created,
            loaded=loaded,
            partitions=self.partitions,
            testing=stored_testing,
            product=info.product,
            version=info.version,
            warnings=(*info.warnings, *self._warnings()),
            servers=info.servers,
        )

    def _warnings(self) -> tuple[str, ...]:
        """Return warnings for operators about damaged keys, and the secret that signs waitpoint tokens."""
        told = [read_mistyped(text.decode("utf-8", "replace")) for text in self.mistyped]
        damaged = tuple(each[1] for each in told if each is not None)
        named = secret_of_environment()
        if named is None or named.value == self.secret_rings[0].signing.value:
            return damaged
        return (
            *damaged,
            f"${FIRST_SECRET_VARIABLE} differs from the stored secret that signs waitpoint tokens, which is used. "
            "Rotate the secret to change it.",
        )

    def prune_libraries(self) -> tuple[str, ...]:
        names = self.call_with_retries(self.store.other_releases)
        for name in names:
            self.call_with_retries(functools.partial(self.store.remove_release, name))
        return names

    def erase(self) -> None:
        _, testing = self.set_up(testing=True)
        if not testing:
            raise ConflictError(
                "configuration_mismatch",
                "Only a store that was prepared for tests can be erased.",
                what="testing",
                stored=False,
                given=True,
            )
        # Erase partition 0 last, because only it knows the number of partitions.
        for partition in reversed(range(self.partitions)):
            while self.call("erase", partition, [MAX_CALL_ITEMS])[0] == b"more":
                pass

    def run_upkeep(self, limit: int = 200) -> MaintenanceResult:
        if type(limit) is not int or not 1 <= limit <= MAX_BATCH_ITEMS:
            raise ValidationError("invalid_input", f"The limit must be 1 to {MAX_BATCH_ITEMS} entries, not {limit!r}.")
        replies = self.call_each("run_upkeep", range(self.partitions), [limit, new_call_id()])
        for partition, (_, _, _, following, owed) in enumerate(replies):
            # The next call tries again what fails; meanwhile it must not hide what is due.
            for lane, turn, since in following:
                with contextlib.suppress(EngineError):
                    self.follow(lane, turn, since)
            with contextlib.suppress(EngineError):
                self.pay_all(partition, owed)
        remaining = [max(0, due - now) for _, now, due, *_ in replies if due is not None]
        next_due = min(remaining, default=None)
        handled = sum(reply[0] for reply in replies)
        return MaintenanceResult(handled=handled, more=next_due == 0, next_due_in_ms=next_due)

    def set_clock(self, moment: datetime | None) -> None:
        value = "" if moment is None else str(epoch_ms(moment, "the clock"))
        self.call_each("set_clock", range(self.partitions), [value])

    def shutdown_prepare(self, grace: timedelta = timedelta()) -> None:
        grace_ms = milliseconds(grace, "grace")
        left = self.under_way.wait(grace_ms / 1000)
        self.close()
        if left:
            raise EngineTimeoutError(
                message=f"{left} calls had not ended after {grace}; it is unknown whether they took effect."
            )
