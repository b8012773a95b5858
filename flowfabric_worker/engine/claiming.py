"""claiming: work is handed out under a lease, reserved, and redeemed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

import attrs

from flowfabric_worker.engine.classes import Classes, lane_arguments
from flowfabric_worker.engine.core import execution_id
from flowfabric_worker.engine.damage import Damage
from flowfabric_worker.engine.errors import (
    TransportError,
    ValidationError,
)
from flowfabric_worker.engine.handle import HANDLE_KINDS, Handle
from flowfabric_worker.engine.ids import ExecutionId, check_lane, check_name
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS, MAX_CALLS_REMEMBERED, MAX_LEASE_MS
from flowfabric_worker.engine.listening import FALLBACK, Waiter
from flowfabric_worker.engine.stores.base import Argument, Call, Reply
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.claiming import (
    Claimed,
    ClaimPolicy,
    ClaimRequest,
    LaneRequest,
)
from flowfabric_worker.engine.types.policies import milliseconds
from flowfabric_worker.engine.wire import (
    DAMAGE,
    decode_class,
    decode_policy,
    pack,
    read_optional,
    unpack_pairs,
    unpack_texts,
)

# In how many seconds a partition that is away is looked at again.
_LOOK_AGAIN = 0.5
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@attrs.frozen(kw_only=True)
class _Terms:
    """A claim request with everything that does not change from call to call."""

    request: ClaimRequest
    claim_id: str
    holder: bytes
    instance: bytes
    waiter: Waiter | None
    wait: float
    lease_ms: int


class Claiming(Damage, Classes):
    """The room `claiming`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._claims = itertools.count()

    def _begin(self) -> None:
        super()._begin()
        self._waiters: dict[str, Waiter] = {}
        # Claims whose answers were lost, by worker instance and partition: the next call there asks what they got.
        self._unanswered: dict[tuple[str, int], tuple[str, ...]] = {}

    # Claims

    def claim(self, lane: str, capabilities: frozenset[str], policy: ClaimPolicy) -> Handle | None:
        request = ClaimRequest(lanes=(LaneRequest(lane=lane),), capabilities=capabilities, policy=policy)
        claimed = self.claim_many(request)
        return claimed[0].handle if claimed else None

    def claim_many(self, request: ClaimRequest) -> list[Claimed]:
        terms = self._terms(request)
        if request.claim_id is not None:
            again = self._claimed_before(terms)
            if again is not None:
                return again
        if terms.waiter is None:
            return self._sweep(terms, self._partitions_in_turn(), 0, {})[0]
        return self._claim_or_wait(terms, terms.waiter)

    def pass_wake(self, request: ClaimRequest) -> None:
        """Hands a wake-up on: this worker has no room for what it was woken for."""
        check_record(request, ClaimRequest)
        for partition in range(self.partitions):
            for portion in self.portions(self.fitting(partition, request)[1]):
                self.call("pass_wake", partition, portion)

    def stop_waiting(self, worker_instance_id: str) -> None:
        """Ends the waiting of a worker that goes, also a claim that is under way; nobody wakes it any more."""
        waiter = self._waiters.pop(check_name(worker_instance_id, "worker_instance_id"), None)
        if waiter is not None:
            waiter.stop()
            for partition in range(self.partitions):
                self.call("stop_waiting", partition, [waiter.name])
            self.listener.forget(waiter)

    def _terms(self, request: ClaimRequest) -> _Terms:
        policy = check_record(check_record(request, ClaimRequest).policy, ClaimPolicy)
        _check_count(request.limit, "A claim's limit", 1)
        if not request.lanes:
            raise ValidationError("invalid_input", "A claim names at least one lane.")
        for lane in request.lanes:
            check_lane(check_record(lane, LaneRequest).lane)
            if lane.limit is not None:
                _check_count(lane.limit, "A lane's limit", 0)
        self.refuse_repeats((lane.lane for lane in request.lanes), "The lane")
        waits = policy.max_wait is not None
        wait_ms = 0 if policy.max_wait is None else milliseconds(policy.max_wait, "max_wait")
        holder, instance = self._holder(policy.worker_id, policy.worker_instance_id, waits=waits)
        return _Terms(
            request=request,
            claim_id=check_uuid(request.claim_id, "claim_id"),
            holder=holder,
            instance=instance,
            waiter=self._waiter(policy.worker_instance_id) if waits else None,
            wait=wait_ms / 1000,
            lease_ms=lease_ms(policy.lease),
        )

    def _holder(self, worker_id: str, instance: str, *, waits: bool) -> tuple[bytes, bytes]:
        """How a worker stands in a record, and how its claims are remembered."""
        check_name(worker_id, "worker_id")
        check_name(instance, "worker_instance_id")
        if waits:
            self.partitions  # noqa: B018  the store is set up before anybody listens on it
        # Only a process that listens can be told that it lost a lease.
        topic = self.listener.topic if waits or self._listener is not None else ""
        return pack((worker_id, instance, topic)), pack((self.namespace, instance))

    def _waiter(self, instance: str) -> Waiter:
        waiter = self._waiters.get(instance)
        if waiter is None:
            waiter = self._waiters.setdefault(instance, self.listener.waiter())
        return waiter

    def _partitions_in_turn(self) -> list[int]:
        """All partitions, each claim beginning with the next one."""
        count = self.partitions
        first = next(self._claims) % count
        return [*range(first, count), *range(first)]

    def _claim_or_wait(self, terms: _Terms, waiter: Waiter) -> list[Claimed]:
        """Claims until there is something, somebody ends the waiting, or the time is over."""
        deadline = time.monotonic() + terms.wait
        partitions = self._partitions_in_turn()
        waits_in: dict[int, list[Argument]] = {}
        while True:
            remaining = max(0.0, deadline - time.monotonic())
            claimed, next_due = self._sweep(terms, partitions, min(remaining, FALLBACK), waits_in)
            remaining = deadline - time.monotonic()
            if claimed or remaining <= 0:
                return claimed
            woken = waiter.wait(min(remaining, next_due, FALLBACK))
            if waiter.stopped:
                if not self.listener.is_closed:
                    self._leave(waiter, waits_in)
                return []
            partitions = [*woken, *(p for p in self._partitions_in_turn() if p not in woken)]

    def _sweep(
        self, terms: _Terms, partitions: Sequence[int], wait: float, waits_in: dict[int, list[Argument]]
    ) -> tuple[list[Claimed], float]:
        """Claims from one partition after the other up to the limit; registers as waiting if it gets nothing.

        `waits_in` is kept up to date: the partitions in which this worker is registered, and what it waits for there.
        Returns what was claimed, and in how many seconds something is due. Partitions that are away are left out,
        and looked at again soon; their error is raised if all are, or if it will not pass.
        """
        claimed: list[Claimed] = []
        next_due = FALLBACK
        away: list[TransportError] = []
        for partition in partitions:
            if len(claimed) >= terms.request.limit:
                break
            try:
                found = self._found_again(terms, partition, terms.request.limit - len(claimed))
                if found:
                    claimed += found
                    waits_in.pop(partition, None)
                    continue
                items, due = self._claim_from(terms, partition, claimed, 0 if claimed else wait)
            except TransportError as error:
                away.append(error)
                # What was claimed elsewhere counts more than an error, which comes again.
                if not claimed and (len(away) == len(partitions) or not error.retryable):
                    raise
                next_due = min(next_due, _LOOK_AGAIN)
                continue
            next_due = min(next_due, due)
            if wait and not items and not claimed:
                waits_in[partition] = lane_arguments(self.fitting(partition, terms.request)[1])
            else:
                waits_in.pop(partition, None)
            claimed += items
        if claimed and waits_in and terms.waiter is not None:
            self._leave(terms.waiter, waits_in)
        return claimed, next_due

    def _found_again(self, terms: _Terms, partition: int, room: int) -> list[Claimed]:
        """Return what claims got in a partition whose answers were lost, as far as this claim asks for it.

        The rest is handed back: another request may have got it, for other lanes or tasks.
        """
        key = terms.request.policy.worker_instance_id, partition
        lost = self._unanswered.pop(key, ())
        kept: list[Claimed] = []
        while lost:
            before = attrs.evolve(terms, claim_id=lost[0])
            try:
                items = self._call_claim(before, partition, (0, 1, 0), [])[3]
            except TransportError:
                self._unanswered[key] = (*self._unanswered.get(key, ()), *lost)
                raise
            lost = lost[1:]
            got = self._decode_items(partition, items, before)
            wanted = [each for each in got if _asks_for(terms.request, each)][: room - len(kept)]
            unwanted = [each.handle for each in got if each not in wanted]
            kept += wanted
            # What cannot be handed back now is free when its lease is over.
            self.call_items("release_many", [(partition, (h.execution_id.uuid, h.fence, "")) for h in unwanted])
        return kept

    def _note_unanswered(self, terms: _Terms, partition: int) -> None:
        """Note a claim whose answer was lost. A caller that gave it an id asks for that answer itself."""
        if terms.request.claim_id is None:
            key = terms.request.policy.worker_instance_id, partition
            self._unanswered[key] = (*self._unanswered.get(key, ()), terms.claim_id)[-MAX_CALLS_REMEMBERED:]

    def _leave(self, waiter: Waiter, waits_in: Mapping[int, Sequence[Argument]]) -> None:
        """Waits in these partitions no more; a wake-up that was sent meanwhile goes on to somebody who does."""
        # What was claimed counts more than a call that fails here: whoever is registered is forgotten in time.
        self.call_many(
            [Call("stop_waiting", partition, [waiter.name, *lanes]) for partition, lanes in waits_in.items()]
        )

    def _claim_from(
        self, terms: _Terms, partition: int, claimed: Sequence[Claimed], wait: float
    ) -> tuple[list[Claimed], float]:
        """Claims from one partition what there is still room for.

        Returns what it got, and in how many seconds something is due there.
        """
        for _ in range(3):
            known, lanes = self.fitting(partition, terms.request, claimed)
            portions = list(self.portions(lanes))
            if wait and len(portions) > 1:
                # Who waits, waits for everything: one more call names all classes.
                portions.append(lane_arguments(lanes))
            next_due = FALLBACK
            stale = False
            for number, portion in enumerate(portions, 1):
                wait_ms = int(wait * 1000) if number == len(portions) else 0
                room = terms.request.limit - len(claimed)
                try:
                    reply = self._call_claim(terms, partition, (wait_ms, room, known), portion)
                except TransportError:
                    self._note_unanswered(terms, partition)
                    raise
                now, due, revision, items, repeated = reply
                if repeated and not items and terms.request.claim_id is None:
                    # It was sent again when the leases that it got had run out: this is another claim.
                    terms = attrs.evolve(terms, claim_id=str(uuid4()))
                    stale = True
                    break
                if items:
                    # All of them may be damaged: look again at once.
                    return self._decode_items(partition, items, terms), 0.0
                if due is not None:
                    next_due = min(next_due, max(0.0, (due - now) / 1000))
                stale = stale or revision != known
            if not stale:
                return [], next_due
            self.forget_classes(partition)
        # New kinds of work came faster than they were read, so nobody is registered as waiting: look again at once.
        return [], 0.0

    def _call_claim(
        self, terms: _Terms, partition: int, numbers: tuple[int, int, int], lanes: Sequence[Argument]
    ) -> Reply:
        waiter = terms.waiter.name if terms.waiter else ""
        head: list[Argument] = [terms.claim_id, terms.holder, terms.instance, waiter, terms.lease_ms, *numbers]
        return self.call("claim_many", partition, [*head, *lanes])

    def _claimed_before(self, terms: _Terms) -> list[Claimed] | None:
        """Return what an earlier call under the caller's claim id still holds; None of a new claim."""
        again: list[Claimed] = []
        known = False
        for partition in range(self.partitions):
            *_, items, repeated = self._call_claim(terms, partition, (0, 1, 0), [])
            known = known or bool(repeated)
            again += self._decode_items(partition, items, terms)
        return again if known else None

    # Decoding

    def _decode_items(self, partition: int, items: Reply, terms: _Terms) -> list[Claimed]:
        """Decode each claimed item by itself; set aside in the store what is damaged."""
        decoded = []
        for item in items:
            try:
                decoded.append(
                    self._decode_claimed(
                        partition, item, terms.claim_id, terms.request.policy.worker_instance_id, terms.lease_ms
                    )
                )
            except DAMAGE as error:
                self.set_aside(execution_id(partition, item[0]), terms.claim_id, error)
        return decoded

    def _decode_claimed(self, partition: int, item: Reply, claim_id: str, instance: str, lease: int) -> Claimed:
        (
            uuid, kind, epoch, attempt_id, attempt, attempt_type, expires, class_data, priority, created, payload,
            codec, policy, tags, deadline, timeout, retries, reclaims, journal, headers,
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
            tags=unpack_texts(tags) if tags else _NOTHING,
            headers=unpack_texts(headers) if headers else _NOTHING,
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


def _asks_for(request: ClaimRequest, claimed: Claimed) -> bool:
    """Return whether a claim could have got this execution."""
    return (
        any(lane.lane == claimed.handle.lane and lane.limit != 0 for lane in request.lanes)
        and (request.tasks is None or claimed.task in request.tasks)
        and request.capabilities.issuperset(claimed.policy.required_capabilities)
    )


def _check_count(value: object, what: str, least: int) -> None:
    """A whole number from `least` to what one call may carry."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_BATCH_ITEMS:
        raise ValidationError("invalid_input", f"{what} is {least} to {MAX_BATCH_ITEMS}, not {value!r:.100}.")


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
