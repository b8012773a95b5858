"""claiming: work is handed out under a lease, reserved, and redeemed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

import attrs

from flowfabric_worker.engine.core import EngineCore
from flowfabric_worker.engine.errors import ContentionError, NotFoundError, StateError, ValidationError
from flowfabric_worker.engine.handle import HANDLE_KINDS, Handle
from flowfabric_worker.engine.ids import ExecutionId, check_capabilities, check_lane, check_name
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS, MAX_CLASSES_PER_CLAIM, MAX_GRANT_MS, MAX_LEASE_MS
from flowfabric_worker.engine.listening import FALLBACK, Waiter
from flowfabric_worker.engine.stores.base import Reply
from flowfabric_worker.engine.types.claiming import (
    Claimed,
    ClaimForWorkerArgs,
    ClaimGrant,
    ClaimPolicy,
    ClaimRequest,
    ClaimResumedExecutionArgs,
    LaneRequest,
    ReclaimToken,
)
from flowfabric_worker.engine.types.policies import milliseconds
from flowfabric_worker.engine.wire import (
    WorkClass,
    decode_class,
    decode_policy,
    pack,
    read_optional,
    unpack_pairs,
    unpack_tags,
)

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@attrs.define
class _Classes:
    """The classes of a partition that hold work, as far as they were read, under one revision."""

    revision: int
    lanes: dict[str, list[tuple[bytes, WorkClass]]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class _Terms:
    """A claim request with everything that does not change from call to call."""

    request: ClaimRequest
    claim_id: str
    holder: bytes
    instance: bytes
    waiter: Waiter | None
    lease_ms: int


class Claiming(EngineCore):
    """The room `claiming`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._classes: dict[int, _Classes] = {}
        self._waiters: dict[str, Waiter] = {}
        self._turns = itertools.count()

    # Claims

    def claim(self, lane: str, capabilities: frozenset[str], policy: ClaimPolicy) -> Handle | None:
        request = ClaimRequest(lanes=(LaneRequest(lane=lane),), capabilities=capabilities, policy=policy)
        claimed = self.claim_many(request)
        return claimed[0].handle if claimed else None

    def claim_many(self, request: ClaimRequest) -> list[Claimed]:
        terms = self._terms(request)
        wait = request.policy.max_wait
        if wait is None or terms.waiter is None:
            return self._sweep(terms, self._partitions_in_turn(), 0)[0]
        deadline = time.monotonic() + wait.total_seconds()
        partitions = self._partitions_in_turn()
        while True:
            remaining = max(0.0, deadline - time.monotonic())
            claimed, next_due = self._sweep(terms, partitions, min(remaining, FALLBACK))
            remaining = deadline - time.monotonic()
            if claimed or remaining <= 0:
                return claimed
            woken = terms.waiter.wait(min(remaining, next_due, FALLBACK))
            partitions = [*woken, *(p for p in self._partitions_in_turn() if p not in woken)]

    def pass_wake(self, request: ClaimRequest) -> None:
        """Hands a wake-up on: this worker has no room for what it was woken for."""
        for partition in range(self.partitions):
            for lanes in self._lane_arguments(partition, request):
                self.call("pass_wake", partition, lanes)

    def stop_waiting(self, worker_instance_id: str) -> None:
        """Ends the waiting of a worker that goes; nobody wakes it any more."""
        waiter = self._waiters.pop(worker_instance_id, None)
        if waiter is not None:
            for partition in range(self.partitions):
                self.call("stop_waiting", partition, [waiter.name])
            self.listener.forget(waiter)

    def _terms(self, request: ClaimRequest) -> _Terms:
        policy = request.policy
        if not 1 <= request.limit <= MAX_BATCH_ITEMS:
            raise ValidationError("invalid_input", f"A claim's limit is 1 to {MAX_BATCH_ITEMS}, not {request.limit!r}.")
        if not request.lanes:
            raise ValidationError("invalid_input", "A claim names at least one lane.")
        for lane in request.lanes:
            check_lane(lane.lane)
            if lane.limit is not None and lane.limit < 0:
                raise ValidationError("invalid_input", f"A lane's limit is at least 0, not {lane.limit!r}.")
        self.refuse_repeats((lane.lane for lane in request.lanes), "The lane")
        check_capabilities(request.capabilities)
        if policy.max_wait is not None:
            milliseconds(policy.max_wait, "max_wait")
        holder, instance = self._holder(policy.worker_id, policy.worker_instance_id, waits=policy.max_wait is not None)
        return _Terms(
            request=request,
            claim_id=check_uuid(request.claim_id, "claim_id"),
            holder=holder,
            instance=instance,
            waiter=self._waiter(policy.worker_instance_id) if policy.max_wait is not None else None,
            lease_ms=lease_ms(policy.lease),
        )

    def _holder(self, worker_id: str, instance: str, *, waits: bool) -> tuple[bytes, bytes]:
        """How a worker stands in a record, and how its claims are remembered."""
        check_name(worker_id, "worker_id")
        check_name(instance, "worker_instance_id")
        # Only a process that listens can be told that it lost a lease.
        topic = self.listener.topic if waits or self._listener is not None else ""
        return pack((worker_id, instance, topic)), pack((self.namespace, instance))

    def _waiter(self, instance: str) -> Waiter:
        waiter = self._waiters.get(instance)
        if waiter is None:
            self.partitions  # noqa: B018  the store is set up before anybody listens on it
            waiter = self._waiters.setdefault(instance, self.listener.waiter())
        return waiter

    def _partitions_in_turn(self) -> list[int]:
        """All partitions, each claim beginning with the next one."""
        count = self.partitions
        first = next(self._turns) % count
        return [*range(first, count), *range(first)]

    def _sweep(self, terms: _Terms, partitions: Sequence[int], wait: float) -> tuple[list[Claimed], float]:
        """Claims from one partition after the other until the limit is reached; registers as waiting if it gets nothing.

        Returns what was claimed, and in how many seconds something is due.
        """
        claimed: list[Claimed] = []
        next_due = FALLBACK
        waiting_in: list[int] = []
        for partition in partitions:
            room = terms.request.limit - len(claimed)
            if room <= 0:
                break
            items, due = self._claim_from(terms, partition, room, 0 if claimed else wait)
            next_due = min(next_due, due)
            if items:
                claimed += items
            elif wait and not claimed:
                waiting_in.append(partition)
        if claimed and terms.waiter is not None:
            # Whoever has work does not wait: a wake-up sent to it would be missed by somebody who does.
            for partition in waiting_in:
                self.call("stop_waiting", partition, [terms.waiter.name])
        return claimed, next_due

    def _claim_from(self, terms: _Terms, partition: int, room: int, wait: float) -> tuple[list[Claimed], float]:
        next_due = FALLBACK
        for _ in range(3):
            known = self._known_classes(partition, terms.request).revision
            stale = False
            for lanes in self._lane_arguments(partition, terms.request):
                now, due, revision, items = self.call(
                    "claim_many",
                    partition,
                    [
                        terms.claim_id, terms.holder, terms.instance, terms.waiter.name if terms.waiter else "",
                        terms.lease_ms, int(wait * 1000), room, known, *lanes,
                    ],
                )  # fmt: skip
                if items:
                    return [self._claimed(partition, item, terms) for item in items], 0.0
                if due is not None:
                    next_due = min(next_due, max(0.0, (due - now) / 1000))
                stale = stale or revision != known
            if not stale:
                break
            self._classes.pop(partition, None)
        return [], next_due

    # Classes

    def _known_classes(self, partition: int, request: ClaimRequest) -> _Classes:
        """The classes of the lanes that a claim asks for, read once per revision."""
        known = self._classes.get(partition)
        wanted = [lane.lane for lane in request.lanes if known is None or lane.lane not in known.lanes]
        if known is None or wanted:
            revision, *lists = self.call("list_classes", partition, [self.packed_lane(lane) for lane in wanted])
            if known is None or known.revision != revision:
                known = _Classes(revision)
                if len(wanted) < len(request.lanes):
                    self._classes[partition] = known
                    return self._known_classes(partition, request)
            for lane, classes in zip(wanted, lists, strict=True):
                known.lanes[lane] = [(data, decode_class(data)) for data in classes]
            self._classes[partition] = known
        return known

    def _lane_arguments(self, partition: int, request: ClaimRequest) -> Iterator[list[bytes | int]]:
        """The lanes of a claim with the classes that this worker fits, at most 64 classes a call."""
        known = self._known_classes(partition, request)
        fitting = [
            (lane, [data for data, each in known.lanes[lane.lane] if each.fits(request.capabilities, request.tasks)])
            for lane in request.lanes
        ]
        if sum(len(classes) for _, classes in fitting) <= MAX_CLASSES_PER_CLAIM:
            yield self._arguments(fitting)
            return
        for lane, classes in fitting:
            turn = next(self._turns) * MAX_CLASSES_PER_CLAIM % max(1, len(classes))
            rotated = classes[turn:] + classes[:turn]
            for first in range(0, max(1, len(rotated)), MAX_CLASSES_PER_CLAIM):
                yield self._arguments([(lane, rotated[first : first + MAX_CLASSES_PER_CLAIM])])

    def _arguments(self, lanes: Sequence[tuple[LaneRequest, list[bytes]]]) -> list[bytes | int]:
        arguments: list[bytes | int] = []
        for lane, classes in lanes:
            limit = MAX_BATCH_ITEMS if lane.limit is None else lane.limit
            arguments += [self.packed_lane(lane.lane), limit, len(classes), *classes]
        return arguments

    # Reservations

    def claim_for_worker(self, args: ClaimForWorkerArgs) -> ClaimGrant | None:
        policy = ClaimPolicy(worker_id=args.worker_id, worker_instance_id=args.worker_instance_id)
        request = ClaimRequest(
            lanes=(LaneRequest(lane=check_lane(args.lane)),),
            policy=policy,
            capabilities=frozenset(check_capabilities(args.capabilities)),
            tasks=args.tasks,
        )
        grant_ms = milliseconds(args.grant, "grant", least=1)
        if grant_ms > MAX_GRANT_MS:
            raise ValidationError("invalid_input", f"A grant holds at most {MAX_GRANT_MS} ms.")
        grant_id = check_uuid(args.grant_id, "grant_id")
        _, instance = self._holder(args.worker_id, args.worker_instance_id, waits=False)
        for partition in self._partitions_in_turn():
            head = [grant_id, instance, args.worker_id, grant_ms]
            granted = self._reserve_from(partition, request, head)
            if granted is not None:
                return ClaimGrant(
                    execution_id=ExecutionId(partition, granted[1].decode()),
                    worker_id=args.worker_id,
                    expires_at_ms=int(granted[2]),
                )
        return None

    def _reserve_from(self, partition: int, request: ClaimRequest, head: list[Any]) -> Reply | None:
        for _ in range(3):
            known = self._known_classes(partition, request).revision
            revision = known
            for lanes in self._lane_arguments(partition, request):
                reply = self.call("reserve", partition, [*head, *lanes])
                if reply[0] == b"granted":
                    return reply
                revision = reply[1]
            if revision == known:
                break
            self._classes.pop(partition, None)
        return None

    def claim_resumed_execution(self, args: ClaimResumedExecutionArgs) -> Claimed:
        return self._redeem(
            args.execution_id, args.worker_id, args.worker_instance_id, args.lease, args.claim_id, "resumed"
        )

    def claim_from_reclaim(self, token: ReclaimToken) -> Handle | None:
        try:
            return self._redeem(
                token.grant.execution_id, token.worker_id, token.worker_instance_id, token.lease, token.claim_id, "any"
            ).handle
        except (NotFoundError, StateError):
            return None
        except ContentionError as error:
            if error.code != "execution_not_leaseable":
                raise
            return None

    def _redeem(
        self, target: ExecutionId, worker_id: str, instance: str, lease: timedelta, claim_id: str | None, mode: str
    ) -> Claimed:
        holder, _ = self._holder(worker_id, instance, waits=False)
        minted = check_uuid(claim_id, "claim_id")
        ttl = lease_ms(lease)
        reply = self.call("redeem", target.partition, [target.uuid, minted, holder, worker_id, ttl, mode])
        return self._decode_claimed(target.partition, reply[1], minted, instance, ttl)

    # Decoding

    def _claimed(self, partition: int, item: Reply, terms: _Terms) -> Claimed:
        instance = terms.request.policy.worker_instance_id
        return self._decode_claimed(partition, item, terms.claim_id, instance, terms.lease_ms)

    def _decode_claimed(self, partition: int, item: Reply, claim_id: str, instance: str, lease: int) -> Claimed:
        (
            uuid, kind, epoch, attempt_id, attempt, attempt_type, expires, class_data, priority, created, payload, codec,
            policy, tags, deadline, timeout, retries, reclaims, journal,
        ) = item  # fmt: skip
        work_class = decode_class(class_data)
        return Claimed(
            handle=Handle(
                backend=self.store.label,
                kind=HANDLE_KINDS[kind.decode()],
                execution_id=ExecutionId(partition, uuid.decode()),
                attempt_index=int(attempt),
                attempt_id=attempt_id.decode(),
                lease_id=claim_id,
                lease_epoch=int(epoch),
                lease_ttl_ms=lease,
                lane=work_class.lane,
                worker_instance_id=instance,
            ),
            namespace=work_class.namespace,
            task=work_class.task,
            payload=read_optional(payload),
            codec=codec.decode() if codec else "",
            priority=int(priority),
            tags=unpack_tags(tags) if tags else _NOTHING,
            policy=decode_policy(policy, work_class),
            attempt_type=attempt_type.decode(),
            created_at_ms=int(created),
            lease_expires_at_ms=int(expires),
            deadline_at_ms=int(deadline) if deadline else None,
            timeout_at_ms=int(timeout) if timeout else None,
            retry_count=int(retries),
            reclaim_count=int(reclaims),
            journal=unpack_pairs(journal) if journal else _NOTHING,
        )


def check_uuid(value: str | None, what: str) -> str:
    """The caller's UUID in its canonical spelling, or a new one.

    Raises:
        ValidationError: not a UUID; the message names `what`.
    """
    if value is None:
        return str(uuid4())
    try:
        return str(UUID(value))
    except (ValueError, AttributeError, TypeError):
        raise ValidationError("invalid_input", f"{what} must be a UUID, not {value!r:.100}.") from None


def lease_ms(lease: timedelta) -> int:
    """A lease in ms, 1 ms to 24 h.

    Raises:
        ValidationError: it is not.
    """
    value = milliseconds(lease, "lease", least=1)
    if value > MAX_LEASE_MS:
        raise ValidationError("invalid_input", f"A lease holds at most {MAX_LEASE_MS} ms.")
    return value
