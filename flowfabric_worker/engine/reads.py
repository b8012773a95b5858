"""The operations that read; decoding is strict, and a damaged record raises `corruption`, which names the field."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import attrs

from flowfabric_worker.engine.batches import Item
from flowfabric_worker.engine.errors import StateError, TransportError, ValidationError
from flowfabric_worker.engine.gates import explain_elsewhere, explain_gate
from flowfabric_worker.engine.ids import ExecutionId, FlowId, check_execution_id, check_lane
from flowfabric_worker.engine.limits import MAX_CALL_ROWS, MAX_PAGE_SIZE
from flowfabric_worker.engine.pages import is_text, page_size, read_cursor, read_rows
from flowfabric_worker.engine.quota_debts import QuotaDebts
from flowfabric_worker.engine.records import Record, summary_of
from flowfabric_worker.engine.stores.base import Argument, Reply
from flowfabric_worker.engine.suspension_replies import OpenSuspension, damage_told
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.reads import (
    INDEXED_STATES,
    ExecutionFilter,
    ExecutionInfo,
    ExecutionSnapshot,
    ExecutionSummary,
    ExpiredLease,
    Explanation,
    LaneInfo,
    ListExecutionsPage,
    ListExpiredLeasesPage,
    ListLanesPage,
)
from flowfabric_worker.engine.types.states import AttemptState, OwnershipState, PublicState, StateVector
from flowfabric_worker.engine.types.workers import WorkerInfo
from flowfabric_worker.engine.workers import Workers

# The most executions that a filtered listing scans before it returns a page that is not full.
_MOST_WALKED = 10 * MAX_PAGE_SIZE

_COUNTERS = (*PublicState, "paused")
_LEASE_FIELDS = ("state", "fence", "holder", "expires")


class Reads(Workers, QuotaDebts):
    """The operations of the area reads."""

    def describe_execution(self, execution_id: ExecutionId) -> ExecutionSnapshot | None:
        record, suspension = self._read_execution(execution_id)
        if record is None:
            return None
        with damage_told(record.execution_id):
            waitpoint = suspension.first_waitpoint() if suspension else None
        return record.snapshot(waitpoint)

    def read_execution_info(self, execution_id: ExecutionId) -> ExecutionInfo | None:
        record, suspension = self._read_execution(execution_id)
        if record is None:
            return None
        with damage_told(record.execution_id):
            waits_for = suspension.info() if suspension else None
        return record.info(waits_for)

    def read_execution_state(self, execution_id: ExecutionId) -> PublicState | None:
        # The class says which gates may hold the execution back.
        record = self._record(execution_id, ("state", "class"))
        return record.state().public_state if record else None

    def resolve_execution_flow_id(self, execution_id: ExecutionId) -> FlowId | None:
        record = self._record(execution_id, ("flow",))
        flow = record.text("flow") if record else None
        return FlowId(flow) if flow else None

    def get_execution_result(self, execution_id: ExecutionId) -> bytes | None:
        record = self._record(execution_id, ("state", "result"))
        if record is None or record.state().public_state is not PublicState.COMPLETED:
            return None
        return record.result()

    def list_executions(
        self,
        partition: str | None = None,
        cursor: ExecutionId | None = None,
        limit: int = 100,
        filter: ExecutionFilter | None = None,  # noqa: A002  the name that the operation has
    ) -> ListExecutionsPage:
        count = page_size(limit)
        wanted = ExecutionFilter() if filter is None else check_record(filter, ExecutionFilter)
        walk = _Walk(wanted=wanted, limit=count, last=cursor)
        for number in self.partitions_behind(partition, cursor) if count else ():
            after = cursor.uuid.encode() if cursor and cursor.partition_number == number else b""
            while True:
                more, looked, last, *rows = self.call(
                    "list_executions", number, [*self._listing(walk, after), *Record.SUMMARY_FIELDS]
                )
                walk.note(int(looked), ExecutionId(number, last.decode()) if last and is_text(last) else None)
                if not walk.add(number, rows):
                    return walk.page(walk.found[-1].execution_id)
                if more == b"0":
                    break
                if walk.looked_at >= _MOST_WALKED:
                    return walk.page(walk.last)
                after = last
        return walk.page(None)

    def _listing(self, walk: _Walk, after: bytes) -> list[Argument]:
        """Return the arguments of the call that continues a walk, without the fields."""
        lane, state = walk.wanted.lane, walk.wanted.state
        return [
            self._packed_namespace,
            after,
            walk.rows_wanted(),
            b"" if lane is None else self.packed_lane(lane),
            state if state in INDEXED_STATES else "",
        ]

    def list_expired_leases(
        self, partition: str | None = None, cursor: ExecutionId | None = None, limit: int = 100
    ) -> ListExpiredLeasesPage:
        page = self.list_executions(partition, cursor, limit, ExecutionFilter(state=PublicState.ACTIVE))
        now = self.server_time()
        active = [row.execution_id for row in page.executions]
        found = [_expired_lease(record, now) for record in self._records(active, _LEASE_FIELDS)]
        return ListExpiredLeasesPage(
            leases=tuple(lease for lease in found if lease is not None), next_cursor=page.next_cursor
        )

    def list_lanes(self, cursor: str | None = None, limit: int = 100) -> ListLanesPage:
        count = page_size(limit)
        if not count:
            return ListLanesPage(lanes=(), next_cursor=None)
        first = b"" if cursor is None else read_cursor(lambda: check_lane(cursor), "a lane").encode()
        merged: dict[str, LaneInfo] = {}
        for partition in range(self.partitions):
            for lane, values in self._lanes_of(partition, first, count + 1):
                name = lane.decode()
                merged[name] = _add_lane(merged.get(name), name, values)
        names = sorted(merged)
        page = tuple(merged[name] for name in names[:count])
        return ListLanesPage(lanes=page, next_cursor=page[-1].lane if len(names) > count else None)

    def _lanes_of(self, partition: int, first: bytes, count: int) -> Iterator[Reply]:
        return read_rows(
            lambda after, most: self.call("list_lanes", partition, [self._packed_namespace, after, most, *_COUNTERS]),
            first,
            count,
        )

    def explain_execution(self, execution_id: ExecutionId) -> Explanation | None:
        record, suspension = self._read_execution(execution_id)
        if record is None:
            return None
        execution_id = record.execution_id
        if suspension:
            with damage_told(execution_id):
                return suspension.explanation(execution_id)
        state = record.state()
        if state.public_state is PublicState.WAITING_CHILDREN:
            text = _explain_waiting(state, record.text("flow"))
            return Explanation(
                execution_id=execution_id, public_state=state.public_state, code="waiting_children", text=text
            )
        work_class = record.work_class()
        partition = execution_id.partition_number
        about: Item = [execution_id.uuid, self.packed_lane(work_class.lane), record.raw("class") or b""]
        now, paused, place, held, closed = self.call("explain_execution", partition, about)
        workers = self._living_workers() if place is not None else []
        gate = self._explain_gate(partition, about, closed, now) if closed else None
        code, text = record.explain(
            now=now, paused=paused is not None, place=place, held=held, workers=workers, gate=gate
        )
        return Explanation(execution_id=execution_id, public_state=state.public_state, code=code, text=text)

    def _explain_gate(self, partition: int, about: Item, closed: Reply, now: int) -> str:
        """Explain which gate holds an execution back. What holds the slots of a quota is known in its own partition."""
        home = self.home_of_address(closed[0][1:]) if closed[0][:1] == b"q" else partition
        if self.is_reached(home, partition):
            return explain_gate(partition, closed, now)
        with contextlib.suppress(TransportError):
            now_there, _, _, _, closed_there = self.call("explain_execution", home, about)
            if closed_there and closed_there[0] == closed[0]:
                return explain_gate(home, self._with_leases(closed_there), now_there)
        return explain_elsewhere(closed, now)

    def _with_leases(self, closed: Reply) -> Reply:
        """Fill in when the leases of holders expire that are in other partitions than their quota."""
        for at in range(5, len(closed) - 2, 3):
            uuid, _, partition = closed[at : at + 3]
            if partition:
                rows = self.call("read_executions", int(partition), [self._packed_namespace, 1, "expires", uuid])
                closed[at + 1] = (rows[0] and rows[0][0]) or b""
        return closed

    def _living_workers(self) -> list[tuple[frozenset[str], frozenset[str], frozenset[str]]]:
        """Return the lanes, tasks and capabilities of each worker that is alive."""
        living = []
        cursor = None
        while True:
            page = self.list_workers(cursor, MAX_PAGE_SIZE)
            living += [
                (frozenset(worker.lanes), frozenset(worker.tasks), frozenset(worker.capabilities))
                for worker in page.workers
                if isinstance(worker, WorkerInfo) and worker.alive
            ]
            cursor = page.next_cursor
            if cursor is None:
                return living

    def server_time(self) -> int:
        return int(self.call("server_time", 0, [])[0])

    def ping(self) -> None:
        self.call_with_retries(self.store.ping)

    def backend_label(self) -> str:
        return self.store.label

    def _read_execution(self, execution_id: ExecutionId) -> tuple[Record | None, OpenSuspension | None]:
        """Return the whole record of an execution, and the suspension that it is in, as they are at one moment."""
        target = check_execution_id(execution_id)
        arguments: Item = [target.uuid, self._packed_namespace, *Record.FIELDS]
        reply = self.call("read_execution", target.partition_number, arguments)
        if not reply:
            return None, None
        values, suspension = reply
        record = Record(target, Record.FIELDS, values)
        if not suspension and record.state().public_state is PublicState.SUSPENDED:
            raise record.corruption("suspension", "is missing")
        return record, OpenSuspension(suspension) if suspension else None

    def _record(self, execution_id: ExecutionId, fields: tuple[str, ...]) -> Record | None:
        return next(self._records([check_execution_id(execution_id)], fields), None)

    def _records(self, execution_ids: Sequence[ExecutionId], fields: tuple[str, ...]) -> Iterator[Record]:
        """Yield the records of the executions that exist, read in bounded calls; the ids must be in partition order."""
        head: Item = [self._packed_namespace, len(fields), *fields]
        for partition, group in itertools.groupby(execution_ids, key=lambda each: each.partition_number):
            while ids := list(itertools.islice(group, MAX_CALL_ROWS)):
                rows = self.call("read_executions", partition, [*head, *(each.uuid for each in ids)])
                for each, values in zip(ids, rows, strict=True):
                    if values != []:
                        yield Record(each, fields, values)


def _explain_waiting(state: StateVector, flow: str | None) -> str:
    """Explain that an execution waits for others: for its children after it began, for its parents before."""
    if state.attempt_state is AttemptState.ATTEMPT_INTERRUPTED:
        return "It waits for its children."
    return f"It waits until its upstream executions in the flow {flow} have ended; list_edges names them."


def _expired_lease(record: Record, now: int) -> ExpiredLease | None:
    """Return the expired or revoked lease of an execution, or None if its lease is valid.

    A damaged record is skipped, because list_executions shows it.
    """
    try:
        lease, ownership = record.lease(), record.state().ownership_state
    except (ValidationError, StateError):
        return None
    if lease is None or (ownership is OwnershipState.LEASED and lease.expires_at_ms > now):
        return None
    return ExpiredLease(
        execution_id=record.execution_id,
        worker_instance_id=lease.worker_instance_id,
        lease_epoch=lease.lease_epoch,
        expired_at_ms=lease.expires_at_ms,
    )


@attrs.define(kw_only=True)
class _Walk:
    """A listing that continues from call to call until its page is full.

    Attributes:
        last: the last execution that was looked at.
    """

    wanted: ExecutionFilter
    limit: int
    last: ExecutionId | None
    found: list[ExecutionSummary] = attrs.field(factory=list)
    looked_at: int = 0

    def rows_wanted(self) -> int:
        """Return how many executions the next call scans: one more than the page lacks, to see if others follow."""
        one_index = not self.wanted.unindexed() and not (self.wanted.lane and self.wanted.state)
        return min(self.limit - len(self.found) + 1, MAX_CALL_ROWS) if one_index else MAX_CALL_ROWS

    def add(self, partition: int, rows: Sequence[Reply]) -> bool:
        """Add the rows that match; return False if the page is full before all of them are added."""
        for uuid, values in rows:
            if not is_text(uuid):
                continue
            summary = summary_of(ExecutionId(partition, uuid.decode()), values)
            if _matches(summary, self.wanted):
                if len(self.found) == self.limit:
                    return False
                self.found.append(summary)
        return True

    def note(self, looked: int, last: ExecutionId | None) -> None:
        """Count the scanned executions, and remember the last one."""
        self.looked_at += looked
        self.last = last or self.last

    def page(self, next_cursor: ExecutionId | None) -> ListExecutionsPage:
        return ListExecutionsPage(
            executions=tuple(self.found),
            next_cursor=next_cursor,
            looked_at=self.looked_at,
            unindexed=self.wanted.unindexed(),
        )


def _matches(summary: ExecutionSummary, wanted: ExecutionFilter) -> bool:
    # A damaged row matches every filter, because its fields are unknown.
    if summary.corruption is not None:
        return True
    return (
        wanted.lane in (None, summary.lane)
        # The state that a newer release gave an execution is unknown here, so it matches too.
        and (summary.public_state is None or wanted.state in (None, summary.public_state))
        and wanted.task in (None, summary.task)
        and wanted.tags.items() <= summary.tags.items()
    )


def _add_lane(known: LaneInfo | None, name: str, values: Reply) -> LaneInfo:
    """Return a lane with the counters of one more partition; damaged ones count as 0, and the lane says so."""
    damaged: list[str] = []

    def count(what: str, value: bytes | None) -> int | None:
        with contextlib.suppress(ValueError):
            return None if value is None else int(value)
        damaged.append(what)
        return None

    *counters, paused = map(count, _COUNTERS, values)
    depths = {
        state: (value or 0) + (known.depths[state] if known else 0)
        for state, value in zip(PublicState, counters, strict=True)
    }
    corruption = known.corruption if known else None
    if damaged:
        corruption = f"Its counters of what is {', '.join(damaged)} are damaged."
    if paused is None and known is not None:
        paused = known.paused_since_ms
    return LaneInfo(lane=name, depths=depths, paused_since_ms=paused, corruption=corruption)
