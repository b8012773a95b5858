"""The classes that hold work: which there are, and which of them a worker fits.

A partition keeps a registry of its classes under a revision. It is read once per revision, and matched here, so what a
worker may not take costs the store nothing.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from flowfabric_worker.engine.core import EngineCore
from flowfabric_worker.engine.ids import check_lane
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS, MAX_CLASSES_PER_CLAIM
from flowfabric_worker.engine.stores.base import Argument
from flowfabric_worker.engine.types.claiming import Claimed, ClaimRequest
from flowfabric_worker.engine.wire import DAMAGE, WorkClass, decode_class


@attrs.define
class _Known:
    """The classes of a partition that hold work, as far as they were read, under one revision.

    Attributes:
        last: what a claim asked for, and what it fitted; the next one mostly asks for the same.
    """

    revision: int
    lanes: dict[str, list[tuple[bytes, WorkClass]]] = attrs.field(factory=dict)
    last: tuple[object, list[Lane]] = (None, [])


@attrs.frozen(kw_only=True)
class Lane:
    """A lane as a stored function gets it: its address, how many may be taken from it, and from which classes."""

    address: bytes
    limit: int
    classes: Sequence[bytes] = ()


class Classes(EngineCore):
    """What claims know of the registries of all partitions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known: dict[int, _Known] = {}
        self._turns = itertools.count()

    def fitting(self, partition: int, request: ClaimRequest, claimed: Sequence[Claimed] = ()) -> tuple[int, list[Lane]]:
        """The lanes that a claim still has room for, with the classes that the worker fits, and their revision."""
        known = self._read(partition, request)
        if not claimed:
            asked = (request.lanes, request.capabilities, request.tasks)
            before, lanes = known.last
            if before != asked:
                lanes = self._fitting(known, request, Counter())
                known.last = asked, lanes
            return known.revision, lanes
        return known.revision, self._fitting(known, request, Counter(each.handle.lane for each in claimed))

    def _fitting(self, known: _Known, request: ClaimRequest, taken: Counter[str]) -> list[Lane]:
        lanes = [
            Lane(
                address=self.packed_lane(lane.lane),
                limit=MAX_BATCH_ITEMS if lane.limit is None else lane.limit - taken[lane.lane],
                classes=[
                    data for data, each in known.lanes[lane.lane] if each.fits(request.capabilities, request.tasks)
                ],
            )
            for lane in request.lanes
        ]
        return [lane for lane in lanes if lane.limit > 0]

    def portions(self, lanes: Sequence[Lane]) -> Iterator[list[Argument]]:
        """Lanes as the arguments of as many calls as they need: at most 64 classes a call, each time others first."""
        if sum(len(lane.classes) for lane in lanes) <= MAX_CLASSES_PER_CLAIM:
            yield lane_arguments(lanes)
            return
        for lane in lanes:
            turn = next(self._turns) * MAX_CLASSES_PER_CLAIM % max(1, len(lane.classes))
            rotated = [*lane.classes[turn:], *lane.classes[:turn]]
            for first in range(0, len(rotated), MAX_CLASSES_PER_CLAIM):
                yield lane_arguments([attrs.evolve(lane, classes=rotated[first : first + MAX_CLASSES_PER_CLAIM])])

    def forget_classes(self, partition: int) -> None:
        """What is known of a partition is out of date."""
        self._known.pop(partition, None)

    def _read(self, partition: int, request: ClaimRequest) -> _Known:
        """The classes of the lanes that a claim asks for, read once per revision."""
        known = self._known.get(partition)
        wanted = [lane.lane for lane in request.lanes if known is None or lane.lane not in known.lanes]
        if known is None or wanted:
            addresses = [self.packed_lane(check_lane(lane)) for lane in wanted]
            revision, *lists = self.call("list_classes", partition, addresses)
            if known is None or known.revision != revision:
                known = _Known(revision)
                if len(wanted) < len(request.lanes):
                    self._known[partition] = known
                    return self._read(partition, request)
            for lane, classes in zip(wanted, lists, strict=True):
                known.lanes[lane] = [pair for data in classes for pair in _readable(data)]
            self._known[partition] = known
        return known


def _readable(data: bytes) -> Iterator[tuple[bytes, WorkClass]]:
    """Yield a class of the registry, stored and decoded; nothing if it is damaged: no work is found by it."""
    try:
        yield data, decode_class(data)
    except DAMAGE:
        return


def lane_arguments(lanes: Iterable[Lane]) -> list[Argument]:
    """Lanes as the arguments of a stored function."""
    arguments: list[Argument] = []
    for lane in lanes:
        arguments += [lane.address, lane.limit, len(lane.classes), *lane.classes]
    return arguments
