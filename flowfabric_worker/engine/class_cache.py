"""The classes that hold work, and which of them match a worker.

A partition keeps a registry of its classes, with a revision per lane. The classes of a lane are read once per revision
and matched here, so work that a worker may not claim costs the store nothing.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from flowfabric_worker.engine.core import EngineCore
from flowfabric_worker.engine.ids import check_lane
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS, MAX_CALL_ROWS, MAX_CLASSES_PER_CLAIM
from flowfabric_worker.engine.stores.base import Argument
from flowfabric_worker.engine.types.claiming import Claimed, ClaimRequest
from flowfabric_worker.engine.wire import DAMAGE, WorkClass, decode_class

# The most requests whose match is cached; there are several per worker, which names its lanes in changing order.
_REMEMBERED = 64


@attrs.frozen
class _KnownLane:
    """The classes of a lane that hold work, at one revision."""

    revision: bytes
    classes: Sequence[tuple[bytes, WorkClass]]


@attrs.frozen(kw_only=True)
class Lane:
    """A lane as a stored function reads it.

    Attributes:
        address: pack{namespace, lane}.
        limit: how many executions may be claimed from it.
        classes: the classes to claim from.
        revision: the revision of the lane's classes from which these were chosen; empty for any.
    """

    address: bytes
    limit: int
    classes: Sequence[bytes] = ()
    revision: bytes = b""


@attrs.frozen
class MatchingLanes:
    """The lanes of a claim, each with the classes that match the worker.

    Attributes:
        set_name: a name that is the same for all claims for the same classes of the same lanes, in any order.
    """

    lanes: Sequence[Lane]
    set_name: str


@attrs.define
class _Known:
    """What is known of a partition: its lanes, and the matches of earlier requests."""

    lanes: dict[str, _KnownLane] = attrs.field(factory=dict)
    matches: dict[object, MatchingLanes] = attrs.field(factory=dict)


class ClassCache(EngineCore):
    """The cached registries of all partitions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known: dict[int, _Known] = {}
        self._turns = itertools.count()

    def matching_lanes(self, partition: int, request: ClaimRequest, claimed: Sequence[Claimed] = ()) -> MatchingLanes:
        """Return the lanes that a claim may still take from, with the classes that match the worker."""
        known = self._known.setdefault(partition, _Known())
        if claimed and any(lane.limit is not None for lane in request.lanes):
            taken = Counter(each.handle.lane for each in claimed)
            return _match(self._lanes(self._read(partition, known, request), request, taken))
        asked = (request.lanes, request.capabilities, request.tasks)
        match = known.matches.get(asked)
        if match is None:
            if len(known.matches) >= _REMEMBERED:
                known.matches.clear()
            match = _match(self._lanes(self._read(partition, known, request), request, Counter()))
            known.matches[asked] = match
        return match

    def _lanes(self, known: Mapping[str, _KnownLane], request: ClaimRequest, taken: Counter[str]) -> list[Lane]:
        lanes = [
            Lane(
                address=self.packed_lane(lane.lane),
                limit=MAX_BATCH_ITEMS if lane.limit is None else lane.limit - taken[lane.lane],
                revision=known[lane.lane].revision,
                classes=[
                    data for data, each in known[lane.lane].classes if each.fits(request.capabilities, request.tasks)
                ],
            )
            for lane in request.lanes
        ]
        return [lane for lane in lanes if lane.limit > 0]

    def lane_batches(self, lanes: Sequence[Lane]) -> Iterator[list[Lane]]:
        """Yield lanes in batches of at most 64 classes, one batch per call. A lane with more classes rotates them."""
        if sum(len(lane.classes) for lane in lanes) <= MAX_CLASSES_PER_CLAIM:
            yield list(lanes)
            return
        batch: list[Lane] = []
        space = MAX_CLASSES_PER_CLAIM
        for lane in lanes:
            turn = 0
            if len(lane.classes) > MAX_CLASSES_PER_CLAIM:
                turn = next(self._turns) * MAX_CLASSES_PER_CLAIM % len(lane.classes)
            classes = [*lane.classes[turn:], *lane.classes[:turn]]
            while True:
                batch.append(attrs.evolve(lane, classes=classes[:space]))
                taken, classes = len(classes[:space]), classes[space:]
                space -= taken
                if not classes:
                    break
                yield batch
                batch, space = [], MAX_CLASSES_PER_CLAIM
        yield batch

    def forget_lanes(self, partition: int, addresses: Iterable[bytes]) -> None:
        """Forget the classes of lanes whose revision has changed."""
        known = self._known.get(partition)
        if known is not None:
            known.matches.clear()
            stale = set(addresses)
            for lane in [lane for lane in known.lanes if self.packed_lane(lane) in stale]:
                known.lanes.pop(lane, None)

    def _read(self, partition: int, known: _Known, request: ClaimRequest) -> Mapping[str, _KnownLane]:
        """Return the lanes of a request; read those that are not known."""
        names: list[str] = [check_lane(lane.lane) for lane in request.lanes]
        # Get each lane only once, because another thread may forget it at the same time.
        lanes = {name: found for name in names if (found := known.lanes.get(name)) is not None}
        for lane, (revision, classes) in self._read_classes(partition, [n for n in names if n not in lanes]).items():
            readable = [pair for data in classes for pair in _readable(data)]
            lanes[lane] = known.lanes[lane] = _KnownLane(revision, readable)
        return lanes

    def _read_classes(self, partition: int, names: Iterable[str]) -> dict[str, tuple[bytes, list[bytes]]]:
        """Return revision and classes of each lane, read in calls of bounded length."""
        found: dict[str, tuple[bytes, list[bytes]]] = {}
        places = dict.fromkeys(names, b"")
        while places:
            arguments = [argument for lane, after in places.items() for argument in (self.packed_lane(lane), after)]
            for lane, row in zip(list(places), self.call("list_classes", partition, arguments), strict=True):
                # Read a lane without a row again: it did not fit into the work budget of the call.
                if row:
                    # Keep the first revision: if classes are added meanwhile, the next claim notices the new one.
                    found.setdefault(lane, (row[0], []))[1].extend(row[1])
                    if len(row[1]) < MAX_CALL_ROWS:
                        del places[lane]
                    else:
                        places[lane] = row[1][-1]
        return found


def _readable(data: bytes) -> Iterator[tuple[bytes, WorkClass]]:
    """Yield a class of the registry in its stored and its decoded form, unless it is damaged."""
    try:
        yield data, decode_class(data)
    except DAMAGE:
        return


def _match(lanes: Sequence[Lane]) -> MatchingLanes:
    digest = hashlib.blake2b(digest_size=16)
    for lane in sorted(lanes, key=lambda lane: lane.address):
        for text in (lane.address, b"", *sorted(lane.classes), b""):
            digest.update(b"%d:%b" % (len(text), text))
    return MatchingLanes(lanes, digest.hexdigest())


def lane_arguments(lanes: Iterable[Lane]) -> list[Argument]:
    """Return lanes as the arguments of a stored function (ff.lanes_of reads them)."""
    arguments: list[Argument] = []
    for lane in lanes:
        arguments += [lane.address, lane.limit, lane.revision, len(lane.classes), *lane.classes]
    return arguments
