"""How all partitions come to agree whether a lane is paused."""

from __future__ import annotations

from flowfabric_worker.engine.core import EngineCore

FIRST_PARTITION = 0
"""The partition that decides whether a lane is paused."""


class LanePauses(EngineCore):
    """Pass on what the first partition decided of a lane."""

    def follow(self, lane: bytes, turn: bytes, since: bytes) -> None:
        """Pause or resume a lane in all partitions but the first, as that one decided.

        It may be repeated, and maintenance does so if it was not finished. A partition ignores a turn that is older
        than the turn that it has followed.

        Args:
            lane: pack{namespace, lane}.
            turn: the turn of the decision.
            since: since when the lane is paused, in ms; empty if it is not.
        """
        if self.partitions > 1:
            self.call_each("follow_lane", range(1, self.partitions), [lane, turn, since])
            self.call("end_following", FIRST_PARTITION, [lane, turn])
