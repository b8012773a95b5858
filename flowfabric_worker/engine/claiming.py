"""Claiming: how work is handed out under a lease."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import attrs

from flowfabric_worker.engine.admissions import Admissions
from flowfabric_worker.engine.claim_replies import Decoding, asked_by_claim, decode_end, owed_by_claim
from flowfabric_worker.engine.class_cache import ClassCache, Lane, lane_arguments
from flowfabric_worker.engine.errors import EngineError, TransportError, ValidationError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import check_lane, check_name, refuse_reserved
from flowfabric_worker.engine.limits import (
    MAX_BATCH_BYTES,
    MAX_BATCH_ITEMS,
    MAX_CALLS_REMEMBERED,
    MAX_LANES_PER_CLAIM,
    MAX_LEASE_MS,
)
from flowfabric_worker.engine.listener import FALLBACK
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Argument, Call, Reply
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.claiming import Claimed, ClaimPolicy, ClaimRequest, LaneRequest
from flowfabric_worker.engine.wire import pack
from flowfabric_worker.engine.work_waiters import WaitingWorker, WaitingWorkers

log = logging.getLogger(__name__)

# In how many seconds a partition that cannot be reached is tried again.
_LOOK_AGAIN = 0.5
# How often one claim calls a partition whose classes change, or whose first entries cannot be handed out.
MOST_LOOKS = 20


@attrs.frozen(kw_only=True)
class _Terms:
    """A claim request with everything that does not change from call to call."""

    request: ClaimRequest
    claim_id: str
    holder: bytes
    instance: bytes
    worker: WaitingWorker | None
    wait: float
    lease_ms: int


@attrs.define
class _Taken:
    """What a claim has got so far.

    Attributes:
        items: the executions.
        size: the bytes of their payloads and journals.
    """

    items: list[Claimed] = attrs.field(factory=list)
    size: int = 0

    def add(self, items: Sequence[Claimed]) -> None:
        self.items += items
        for each in items:
            self.size += len(each.payload or b"")
            if each.journal:
                self.size += sum(map(len, each.journal.values()))


class Claiming(Decoding, ClassCache, Admissions):
    """The operations of the area claiming, without reservations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._claims = itertools.count()

    def _begin(self) -> None:
        super()._begin()
        self._waiting = WaitingWorkers(self.waiter)
        # Claims whose replies were lost, by worker instance and partition. The next claim there asks what they got, for
        # as long as their leases may hold.
        self._unanswered: dict[tuple[str, int], tuple[tuple[str, ...], float]] = {}

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
        if terms.worker is None:
            return self._sweep(terms, self._partitions_in_turn(), 0)
        try:
            return self._claim_or_wait(terms, terms.worker)
        finally:
            self._waiting.leave(terms.worker)

    def forward_wakeup(self, request: ClaimRequest) -> None:
        """Pass a wake-up on, for a woken worker that has no capacity."""
        check_record(request, ClaimRequest)
        for partition in range(self.partitions):
            for batch in self.lane_batches(self.matching_lanes(partition, request).lanes):
                self.call("forward_wakeup", partition, lane_arguments(batch))

    def stop_waiting(self, worker_instance_id: str) -> None:
        """Stop a worker's waiting, also in a claim that is under way; it gets no more wake-ups."""
        for worker in self._waiting.pop(check_name(worker_instance_id, "worker_instance_id")):
            self.call_each("stop_waiting", range(self.partitions), [worker.waiter.name])

    def _terms(self, request: ClaimRequest) -> _Terms:
        policy = check_record(check_record(request, ClaimRequest).policy, ClaimPolicy)
        _check_count(request.limit, "A claim's limit", 1)
        refuse_reserved(request.capabilities)
        if not 1 <= len(request.lanes) <= MAX_LANES_PER_CLAIM:
            raise ValidationError(
                "invalid_input", f"A claim names 1 to {MAX_LANES_PER_CLAIM} lanes, not {len(request.lanes)}."
            )
        for lane in request.lanes:
            check_lane(check_record(lane, LaneRequest).lane)
            if lane.limit is not None:
                _check_count(lane.limit, "A lane's limit", 0)
        self.refuse_repeats((lane.lane for lane in request.lanes), "The lane")
        waits = policy.max_wait is not None
        wait_ms = 0 if policy.max_wait is None else milliseconds(policy.max_wait, "max_wait")
        holder, instance = self._holder(policy.worker_id, policy.worker_instance_id, waits=waits)
        claim_id, lease = check_uuid(request.claim_id, "claim_id"), lease_ms(policy.lease)
        return _Terms(
            request=request,
            claim_id=claim_id,
            holder=holder,
            instance=instance,
            worker=self._waiting.enter(policy.worker_instance_id) if waits else None,
            wait=wait_ms / 1000,
            lease_ms=lease,
        )

    def _holder(self, worker_id: str, instance: str, *, waits: bool) -> tuple[bytes, bytes]:
        """Return how a record names a worker, and under which name its claims are remembered."""
        check_name(worker_id, "worker_id")
        check_name(instance, "worker_instance_id")
        if waits:
            self.partitions  # noqa: B018  the store is set up before it is listened to
        # Only a process that listens can be told that a lease was lost.
        topic = self.listener.topic if waits or self._listener is not None else ""
        return pack((worker_id, instance, topic)), pack((self.namespace, instance))

    def _partitions_in_turn(self) -> list[int]:
        """Return all partitions; each claim begins with the next one."""
        count = self.partitions
        first = next(self._claims) % count
        return [*range(first, count), *range(first)]

    def _claim_or_wait(self, terms: _Terms, worker: WaitingWorker) -> list[Claimed]:
        """Claim until there is work, the waiting is stopped, or the time is over.

        A worker looks where it was woken, where it is not registered, and elsewhere when it is time: what it left
        registered with its last claim goes on.
        """
        deadline = time.monotonic() + terms.wait
        if not worker.waits_for(terms.request):
            self._leave(worker)
            worker.request = terms.request
        woken = worker.waiter.wait(0)
        while not worker.waiter.stopped:
            remaining = max(0.0, deadline - time.monotonic())
            if woken is None or not remaining:
                worker.looks.clear()
            everywhere = self._partitions_in_turn()
            first = [partition for partition in everywhere if woken and partition in woken]
            partitions = [*first, *(each for each in worker.due(everywhere) if each not in first)]
            claimed = self._sweep(terms, partitions, min(remaining, FALLBACK))
            if claimed or not remaining:
                if len(claimed) >= terms.request.limit:
                    self._leave(worker)
                return claimed
            woken = worker.waiter.wait(max(0.0, min(deadline, worker.next_look()) - time.monotonic()))
            if not woken:
                # The listener tells this process of lost leases.
                self.listener.revive()
        if not self.is_closed:
            self._leave(worker)
        return []

    def _sweep(self, terms: _Terms, partitions: Sequence[int], wait: float) -> list[Claimed]:
        """Claim from one partition after the other up to the limit; register a waiter where there is nothing.

        Partitions that cannot be reached or have a damaged key are left out, and tried again soon. Their error is
        raised if no other is left, or if it concerns the whole store.
        """
        taken = _Taken()
        looks = terms.worker.looks if terms.worker is not None else {}
        away: list[TransportError] = []
        for partition in partitions:
            if len(taken.items) >= terms.request.limit:
                break
            looks.pop(partition, None)
            seconds = 0.0 if taken.items else wait
            try:
                found = self._found_again(terms, partition, terms.request.limit - len(taken.items))
                if found:
                    taken.add(found)
                    continue
                items, due, is_cut = self._claim_from(terms, partition, taken.items, seconds)
            except TransportError as error:
                away.append(error)
                # What was claimed elsewhere is returned; the error comes again with the next claim.
                is_of_partition = error.retryable or error.code == "key_damaged"
                if not taken.items and (len(away) == self.partitions or not is_of_partition):
                    raise
                looks[partition] = time.monotonic() + _LOOK_AGAIN
                continue
            if seconds and not items:
                looks[partition] = time.monotonic() + min(seconds, due)
            taken.add(items)
            while is_cut:
                is_cut = self._claim_more(terms, partition, taken)
        return taken.items

    def _found_again(self, terms: _Terms, partition: int, limit: int) -> list[Claimed]:
        """Return what claims with lost replies got in a partition, as far as this claim asks for it.

        The rest is handed back, because those claims may have been for other lanes or tasks.
        """
        key = terms.request.policy.worker_instance_id, partition
        lost, until = self._unanswered.pop(key, ((), 0.0))
        kept: list[Claimed] = []
        while lost:
            before = attrs.evolve(terms, claim_id=lost[0])
            try:
                items = self._call_claim(before, partition, [terms.lease_ms, 0, 1, ""], [])[3]
                if items:
                    self.pay_now(partition)
            except TransportError:
                self._unanswered[key] = (*self._unanswered.get(key, ((), 0.0))[0], *lost), until
                raise
            lost = lost[1:]
            got = self._decode(partition, items, before)
            wanted = [each for each in got if _asks_for(terms.request, each)][: limit - len(kept)]
            taken = {each.execution_id for each in wanted}
            unwanted = [each.handle for each in got if each.execution_id not in taken]
            kept += wanted
            # What cannot be handed back now is ready again when its lease expires.
            self.call_items("release_many", [(partition, (h.execution_id.uuid, h.fence, "")) for h in unwanted])
        return kept

    def _note_unanswered(self, terms: _Terms, partition: int) -> None:
        """Remember a claim whose reply was lost, and forget those whose leases have expired.

        A caller that gave the claim an id repeats the claim itself.
        """
        moment = time.monotonic()
        for key, (_, until) in list(self._unanswered.items()):
            if until <= moment:
                self._unanswered.pop(key, None)
        if terms.request.claim_id is None:
            key = terms.request.policy.worker_instance_id, partition
            lost = (*self._unanswered.get(key, ((), 0.0))[0], terms.claim_id)[-MAX_CALLS_REMEMBERED:]
            self._unanswered[key] = lost, moment + terms.lease_ms / 1000 + CALL_TIMEOUT

    def _leave(self, worker: WaitingWorker) -> None:
        """Deregister a worker everywhere; a wake-up that was sent meanwhile is passed on to the next worker."""
        if not worker.looks or worker.request is None:
            return
        calls = []
        for partition in worker.looks:
            try:
                lanes = lane_arguments(self.matching_lanes(partition, worker.request).lanes)
            except TransportError as error:
                log.debug("A worker could not be deregistered in partition %s: %s", partition, error)
                continue
            calls.append(Call("stop_waiting", partition, [worker.waiter.name, *lanes]))
        worker.looks.clear()
        # Errors are ignored, because what was claimed must be returned, and a registration expires by itself.
        self.call_many(calls)

    def _claim_from(
        self, terms: _Terms, partition: int, claimed: Sequence[Claimed], wait: float
    ) -> tuple[list[Claimed], float, bool]:
        """Claim from one partition what may still be taken.

        Returns what was claimed; in how many seconds the next entry is due there, 0 if no waiter is registered; and
        whether the call could not carry all.
        """
        for look in itertools.count(1):
            matching_lanes = self.matching_lanes(partition, terms.request, claimed)
            lanes = matching_lanes.lanes
            if look == MOST_LOOKS:
                # Classes changed faster than they were read, so those that are known are used.
                lanes, wait = [attrs.evolve(lane, revision=b"") for lane in lanes], 0.0
            stale: set[bytes] = set()
            next_due, again = FALLBACK, False
            wanted = terms.request.limit - len(claimed)
            most = wanted if terms.request.claim_id is not None else min(wanted, self.lease_items)
            for batch, wait_ms, limit in self._calls_for(lanes, wait, most):
                numbers: list[Argument] = [terms.lease_ms, wait_ms, limit, matching_lanes.set_name]
                try:
                    reply = self._call_claim(terms, partition, numbers, batch)
                except TransportError:
                    self._note_unanswered(terms, partition)
                    raise
                now, due, behind, items, more, repeated, shared, *further = reply
                self.is_shared = bool(shared)
                if further:
                    self._tell_ended(terms.request, partition, further[0])
                if repeated and not items and terms.request.claim_id is None:
                    # The call was repeated after the leases that it got had expired, so another claim is made.
                    terms, again = attrs.evolve(terms, claim_id=str(uuid4())), True
                    break
                if items:
                    # All of them may be damaged, so the next look is at once.
                    is_cut = more == b"1" or len(items) == most < wanted or bool(asked_by_claim(reply))
                    return self._decode(partition, items, terms), 0.0, is_cut
                if due is not None:
                    next_due = min(next_due, max(0.0, (due - now) / 1000))
                stale.update(behind)
                # What it paid may have opened a gate.
                again = again or more == b"1" or bool(owed_by_claim(reply))
            if look >= MOST_LOOKS or not (stale or again):
                break
            self.forget_lanes(partition, stale)
        return [], 0.0 if look >= MOST_LOOKS else next_due, False

    def _tell_ended(self, request: ClaimRequest, partition: int, rows: Reply) -> None:
        """Tell the caller of a claim what the claim ended instead of handing it out."""
        if request.on_ended is None:
            return
        for row in rows:
            ended = decode_end(partition, row, self.namespace)
            if ended is not None and (request.tasks is None or ended.task in request.tasks):
                request.on_ended(ended)

    def _claim_more(self, terms: _Terms, partition: int, taken: _Taken) -> bool:
        """Claim more after a call that could not carry all, as another claim; return True if more may be left."""
        request = terms.request
        full = len(taken.items) >= request.limit or taken.size > MAX_BATCH_BYTES // 2
        if full or request.claim_id is not None:
            return False
        again = attrs.evolve(terms, claim_id=str(uuid4()))
        try:
            items, _, is_cut = self._claim_from(again, partition, taken.items, 0.0)
        except EngineError as error:
            # What was claimed before is returned; the error comes again with the next claim.
            log.debug("A claim ended early: %s", error)
            return False
        taken.add(items)
        return is_cut

    def _calls_for(self, lanes: Sequence[Lane], wait: float, limit: int) -> Iterator[tuple[list[Lane], int, int]]:
        """Yield the calls of a claim in one partition: the lanes, how long to wait in ms, and the limit of each."""
        lane_batches = list(self.lane_batches(lanes))
        wait_ms = int(wait * 1000)
        for batch in lane_batches:
            yield batch, wait_ms if len(lane_batches) == 1 else 0, limit
        if wait_ms and len(lane_batches) > 1:
            # A waiter waits for all classes, so one more call names them all and claims nothing.
            yield list(lanes), wait_ms, 0

    def _call_claim(self, terms: _Terms, partition: int, numbers: Sequence[Argument], lanes: Sequence[Lane]) -> Reply:
        """Call `claim_many`, pass the quotas of other partitions, and pay what the call owes."""

        def send(admissions: bytes) -> Reply:
            reply = self.call("claim_many", partition, self._claim_arguments(terms, numbers, lanes, admissions))
            if owed := owed_by_claim(reply):
                self.pay_all_now(partition, owed)
            elif admissions and reply[5]:
                # The reply that said what the call owes was lost.
                self.pay_now(partition)
            return reply

        return self.passing(partition, terms.claim_id, send, lambda reply: () if reply[3] else asked_by_claim(reply))

    def _claim_arguments(
        self, terms: _Terms, numbers: Sequence[Argument], lanes: Sequence[Lane], admissions: bytes = b""
    ) -> list[Argument]:
        name = terms.worker.waiter.name if terms.worker else ""
        counted = "1" if self.store.counts_listeners else ""
        head: list[Argument] = [terms.claim_id, terms.holder + admissions, terms.instance, name, *numbers, counted]
        return [*head, *lane_arguments(lanes)]

    def _claimed_before(self, terms: _Terms) -> list[Claimed] | None:
        """Return what is still leased of an earlier call with the caller's claim id, or None if the claim is new."""
        arguments = self._claim_arguments(terms, [terms.lease_ms, 0, 1, ""], [])
        replies = self.call_each("claim_many", range(self.partitions), arguments)
        if not any(reply[5] for reply in replies):
            return None
        for partition in (number for number, reply in enumerate(replies) if reply[3]):
            # The caller may have died before it settled this claim.
            self.pay_now(partition)
        return [each for partition, reply in enumerate(replies) for each in self._decode(partition, reply[3], terms)]

    def _decode(self, partition: int, items: Reply, terms: _Terms) -> list[Claimed]:
        instance = terms.request.policy.worker_instance_id
        claimed = self.decode_items(partition, items, terms.claim_id, instance, terms.lease_ms)
        for each in claimed if self.partitions > 1 else ():
            self.note_quota(partition, each.policy.quota_policy_id)
        return claimed


def _asks_for(request: ClaimRequest, claimed: Claimed) -> bool:
    """Return True if a request asks for work like this execution."""
    return (
        any(lane.lane == claimed.handle.lane and lane.limit != 0 for lane in request.lanes)
        and (request.tasks is None or claimed.task in request.tasks)
        and request.capabilities.issuperset(claimed.policy.requires)
    )


def _check_count(value: object, what: str, least: int) -> None:
    """Check that a value is a whole number from `least` to the most items of a call."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_BATCH_ITEMS:
        raise ValidationError("invalid_input", f"{what} is {least} to {MAX_BATCH_ITEMS}, not {value!r:.100}.")


def check_uuid(value: str | None, what: str) -> str:
    """Return the caller's UUID in canonical spelling, or a new one.

    Raises:
        ValidationError: `invalid_input`, not a UUID; the message names `what`.
    """
    if value is None:
        return str(uuid4())
    try:
        return str(UUID(value))
    except (ValueError, AttributeError, TypeError):
        raise ValidationError("invalid_input", f"{what} must be a UUID, not {value!r:.100}.") from None


def lease_ms(lease: timedelta) -> int:
    """Return the time of a lease in ms, which is 1 ms to 24 h.

    Raises:
        ValidationError: `invalid_input`.
    """
    value = milliseconds(lease, "lease", least=1)
    if value > MAX_LEASE_MS:
        raise ValidationError("invalid_input", f"A lease is at most {MAX_LEASE_MS} ms; ask for less.")
    return value
