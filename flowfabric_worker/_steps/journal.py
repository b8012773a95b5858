"""The journal of an execution in the memory of its handler: what was recorded, by name, and how much it takes."""

from __future__ import annotations

from collections.abc import Mapping

from flowfabric_worker._steps.durable_calls import RESERVED
from flowfabric_worker.engine.limits import MAX_JOURNAL_BYTES, MAX_STEPS
from flowfabric_worker.outcomes import DurableCallError


class Journal(dict[str, bytes]):
    """Hold the records of an execution.

    Args:
        recorded: what earlier runs recorded.
    """

    def __init__(self, recorded: Mapping[str, bytes]) -> None:
        super().__init__(recorded)
        # The bytes of all names and values; None before they are counted.
        self._bytes: int | None = None

    def check_fits(self, name: str, value: bytes) -> None:
        """Refuse a record that does not fit into the journal, before it is sent.

        Raises:
            DurableCallError: the journal is full.
        """
        if self._bytes is None:
            self._bytes = sum(_size(*each) for each in self.items())
        if len(self) >= MAX_STEPS or self._bytes + _size(name, value) > MAX_JOURNAL_BYTES:
            raise DurableCallError(
                f"journal_full: the execution has {len(self)} records of {self._bytes} bytes, and "
                f"{name.removeprefix(RESERVED)!r} takes {len(value)} more; {MAX_STEPS} records and {MAX_JOURNAL_BYTES} "
                "bytes are allowed. Make fewer or smaller steps, or submit part of the work as another execution."
            )

    def keep(self, name: str, value: bytes) -> None:
        """Add a record that the store has."""
        if self._bytes is not None and name not in self:
            self._bytes += _size(name, value)
        self[name] = value


def _size(name: str, value: bytes) -> int:
    return len(name.encode()) + len(value)
