"""reads: what is stored, decoded strictly. A damaged record raises `corruption` and names the field."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from flowfabric_worker.engine.core import EngineCore, Item
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import ExecutionId, FlowId, check_execution_id, check_lane
from flowfabric_worker.engine.limits import MAX_CALL_ROWS, MAX_PAGE_SIZE
from flowfabric_worker.engine.records import Record, summary_of
from flowfabric_worker.engine.stores.base import Reply
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.reads import (
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
from flowfabric_worker.engine.types.states import OwnershipState, PublicState
from flowfabric_worker.engine.types.workers import WorkerInfo
from flowfabric_worker.engine.workers import Workers, page_size

# How many records a filtered listing reads before it returns what it has: every call has a bound.
_MOST_WALKED = 10 * MAX_PAGE_SIZE

_COUNTERS = (*PublicState, "paused")
_LEASE_FIELDS = ("state", "fence", "holder", "expires")


class Reads(Workers, EngineCore):
    """The room `reads`."""

    def describe_execution(self, execution_id: ExecutionId) -> ExecutionSnapshot | None:
        record = self._record(execution_id)
        return record.snapshot() if record else None

    def read_execution_info(self, execution_id: ExecutionId) -> ExecutionInfo | None:
        record = self._record(execution_id)
        return record.info() if record else None

    def read_execution_state(self, execution_id: ExecutionId) -> PublicState | None:
        record = self._record(execution_id, ("state",))
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
        if filter is not None:
            check_record(filter, ExecutionFilter)
        partitions = self.partitions_behind(partition, cursor)
        found: list[ExecutionSummary] = []
        last = cursor
        if count:
            # Without a filter every record that is read is shown: one more tells whether there is a next page.
            chunk = MAX_CALL_ROWS if filter else min(count + 1, MAX_CALL_ROWS)
            for summary in self._walk(partitions, cursor, chunk):
                if summary is None:
                    return ListExecutionsPage(executions=tuple(found), next_cursor=last)
                if _matches(summary, filter):
                    if len(found) == count:
                        return ListExecutionsPage(executions=tuple(found), next_cursor=found[-1].execution_id)
                    found.append(summary)
                last = summary.execution_id
        return ListExecutionsPage(executions=tuple(found), next_cursor=None)

    def _walk(self, partitions: range, cursor: ExecutionId | None, chunk: int) -> Iterator[ExecutionSummary | None]:
        """Yield the executions behind a cursor, partition after partition; None where the bound of one call is
        reached.
        """
        walked = 0
        for number in partitions:
            after = cursor.uuid if cursor and cursor.partition == number else ""
            while True:
                rows = self.call(
                    "list_executions", number, [self._packed_namespace, after, chunk, *Record.SUMMARY_FIELDS]
                )
                for uuid, values in rows:
                    yield summary_of(ExecutionId(number, uuid.decode()), values)
                walked += len(rows)
                if walked >= _MOST_WALKED:
                    yield None
                    return
                if len(rows) < chunk:
                    break
                after = rows[-1][0].decode()

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
        after = "" if cursor is None else _checked_lane_cursor(cursor)
        arguments = [self._packed_namespace, after, count + 1, *_COUNTERS]
        merged: dict[str, LaneInfo] = {}
        for partition in range(self.partitions):
            for lane, values in self.call("list_lanes", partition, arguments):
                name = lane.decode()
                merged[name] = _add_lane(merged.get(name), name, values)
        names = sorted(merged)
        page = tuple(merged[name] for name in names[:count])
        return ListLanesPage(lanes=page, next_cursor=page[-1].lane if len(names) > count else None)

    def explain_execution(self, execution_id: ExecutionId) -> Explanation | None:
        record = self._record(execution_id)
        if record is None:
            return None
        work_class = record.work_class()
        now, paused, place, held = self.call(
            "explain_execution",
            execution_id.partition,
            [execution_id.uuid, self.packed_lane(work_class.lane), record.raw("class") or b""],
        )
        workers = self._living_workers() if place is not None else []
        code, text = record.explain(now=now, paused=paused is not None, place=place, held=held, workers=workers)
        return Explanation(execution_id=execution_id, public_state=record.state().public_state, code=code, text=text)

    def _living_workers(self) -> list[tuple[frozenset[str], frozenset[str], frozenset[str]]]:
        """Lanes, tasks and capabilities of each worker that is alive."""
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

    def _record(self, execution_id: ExecutionId, fields: tuple[str, ...] = Record.FIELDS) -> Record | None:
        check_execution_id(execution_id)
        return next(self._records([execution_id], fields), None)

    def _records(self, execution_ids: Sequence[ExecutionId], fields: tuple[str, ...]) -> Iterator[Record]:
        """Yield those of some executions that exist, read in bounded calls; the ids come in partition order."""
        head: Item = [self._packed_namespace, len(fields), *fields]
        for partition, group in itertools.groupby(execution_ids, key=lambda each: each.partition):
            while ids := list(itertools.islice(group, MAX_CALL_ROWS)):
                rows = self.call("read_executions", partition, [*head, *(each.uuid for each in ids)])
                for each, values in zip(ids, rows, strict=True):
                    if values != []:
                        yield Record(each, fields, values)


def _expired_lease(record: Record, now: int) -> ExpiredLease | None:
    """Return the lease of an execution that nobody holds any more; None if it is held.

    Of a damaged record it is not known, so that one is left to list_executions, which shows it.
    """
    try:
        lease, ownership = record.lease(), record.state().ownership_state
    except ValidationError:
        return None
    if lease is None or (ownership is OwnershipState.LEASED and lease.expires_at_ms > now):
        return None
    return ExpiredLease(
        execution_id=record.execution_id,
        worker_instance_id=lease.worker_instance_id,
        lease_epoch=lease.lease_epoch,
        expired_at_ms=lease.expires_at_ms,
    )


def _matches(summary: ExecutionSummary, wanted: ExecutionFilter | None) -> bool:
    # A damaged row is shown whatever is asked for: nobody should have to guess what it was.
    if wanted is None or summary.corruption is not None:
        return True
    return (
        wanted.lane in (None, summary.lane)
        and wanted.state in (None, summary.public_state)
        and wanted.task in (None, summary.task)
        and wanted.tags.items() <= summary.tags.items()
    )


def _checked_lane_cursor(cursor: str) -> str:
    try:
        return check_lane(cursor)
    except ValidationError as error:
        raise ValidationError("invalid_cursor", f"The cursor of a list of lanes is a lane: {error}") from None


def _add_lane(known: LaneInfo | None, name: str, values: Reply) -> LaneInfo:
    """Return a lane with the counters of one more partition.

    Raises:
        ValidationError: `corruption`, a counter is damaged.
    """
    try:
        *counters, paused = [None if value is None else int(value) for value in values]
    except ValueError as error:
        raise ValidationError(
            "corruption", f"The counters of lane {name!r} are damaged: {error}.", field=name
        ) from None
    depths = {
        state: (value or 0) + (known.depths[state] if known else 0)
        for state, value in zip(PublicState, counters, strict=True)
    }
    if paused is None and known is not None:
        paused = known.paused_since_ms
    return LaneInfo(lane=name, depths=depths, paused_since_ms=paused)
