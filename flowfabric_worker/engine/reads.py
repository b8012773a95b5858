"""reads: what is stored, decoded strictly. A damaged record raises `corruption` and names the field."""

from __future__ import annotations

from collections.abc import Iterator

from flowfabric_worker.engine.core import EngineCore
from flowfabric_worker.engine.ids import ExecutionId, check_lane
from flowfabric_worker.engine.limits import MAX_PAGE_SIZE
from flowfabric_worker.engine.partitions import parse_partition_key
from flowfabric_worker.engine.records import Record, summary_of
from flowfabric_worker.engine.stores.base import Reply
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
from flowfabric_worker.engine.types.states import LifecyclePhase, OwnershipState, PublicState
from flowfabric_worker.engine.wire import read_optional
from flowfabric_worker.engine.workers import Workers, page_size

# How many records a filtered listing reads before it returns what it has: every call has a bound.
_MOST_WALKED = 10 * MAX_PAGE_SIZE

_COUNTERS = (*PublicState, "paused")


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

    def resolve_execution_flow_id(self, execution_id: ExecutionId) -> str | None:
        record = self._record(execution_id, ("flow",))
        return record.text("flow") if record else None

    def get_execution_result(self, execution_id: ExecutionId) -> bytes | None:
        record = self._record(execution_id, ("state", "result"))
        if record is None or record.state().public_state is not PublicState.COMPLETED:
            return None
        return read_optional(record.raw("result"))

    def list_executions(
        self,
        partition: str | None = None,
        cursor: ExecutionId | None = None,
        limit: int = 100,
        filter: ExecutionFilter | None = None,  # noqa: A002  the name that the operation has
    ) -> ListExecutionsPage:
        count = page_size(limit)
        found: list[ExecutionSummary] = []
        last = cursor
        if count:
            for summary in self._walk(partition, cursor):
                if summary is None:
                    return ListExecutionsPage(executions=tuple(found), next_cursor=last)
                if _matches(summary, filter):
                    if len(found) == count:
                        return ListExecutionsPage(executions=tuple(found), next_cursor=found[-1].execution_id)
                    found.append(summary)
                last = summary.execution_id
        return ListExecutionsPage(executions=tuple(found), next_cursor=None)

    def _walk(self, partition: str | None, cursor: ExecutionId | None) -> Iterator[ExecutionSummary | None]:
        """The executions behind a cursor, partition after partition; None where the bound of one call is reached."""
        first = cursor.partition if cursor else 0
        partitions = range(first, self.partitions) if partition is None else [parse_partition_key(partition)]
        walked = 0
        for number in partitions:
            after = cursor.uuid if cursor and cursor.partition == number else ""
            while True:
                rows = self.call(
                    "list_executions",
                    number,
                    [self._packed_namespace, after, MAX_PAGE_SIZE, *Record.SUMMARY_FIELDS],
                )
                for uuid, values in rows:
                    yield summary_of(ExecutionId(number, uuid.decode()), values)
                walked += len(rows)
                if len(rows) < MAX_PAGE_SIZE:
                    break
                if walked >= _MOST_WALKED:
                    yield None
                    return
                after = rows[-1][0].decode()

    def list_expired_leases(
        self, partition: str | None = None, cursor: ExecutionId | None = None, limit: int = 100
    ) -> ListExpiredLeasesPage:
        found: list[ExpiredLease] = []
        page = self.list_executions(partition, cursor, limit, ExecutionFilter(state=PublicState.ACTIVE))
        now = self.server_time()
        for summary in page.executions:
            record = self._record(summary.execution_id)
            state = record.state() if record else None
            if record is None or state is None or state.lifecycle_phase is not LifecyclePhase.ACTIVE:
                continue
            lease = record.lease()
            if lease is not None and (
                state.ownership_state is not OwnershipState.LEASED or lease.expires_at_ms <= now
            ):
                found.append(
                    ExpiredLease(
                        execution_id=summary.execution_id,
                        worker_instance_id=lease.worker_instance_id,
                        lease_epoch=lease.lease_epoch,
                        expired_at_ms=lease.expires_at_ms,
                    )
                )
        return ListExpiredLeasesPage(leases=tuple(found), next_cursor=page.next_cursor)

    def list_lanes(self, cursor: str | None = None, limit: int = 100) -> ListLanesPage:
        count = page_size(limit)
        if not count:
            return ListLanesPage(lanes=(), next_cursor=None)
        after = check_lane(cursor) if cursor else ""
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
            [execution_id.uuid, self.packed_lane(work_class.lane), work_class.encode()],
        )
        workers = self._living_workers() if place is not None else []
        code, text = record.explain(now=now, paused=paused is not None, place=place, held=held, workers=workers)
        return Explanation(
            execution_id=execution_id, public_state=record.state().public_state, code=code, text=text
        )

    def _living_workers(self) -> list[tuple[frozenset[str], frozenset[str], frozenset[str]]]:
        """Lanes, tasks and capabilities of each worker that is alive."""
        living = []
        cursor = None
        while True:
            page = self.list_workers(cursor, MAX_PAGE_SIZE)
            living += [
                (frozenset(worker.lanes), frozenset(worker.tasks), frozenset(worker.capabilities))
                for worker in page.workers
                if worker.alive
            ]
            cursor = page.next_cursor
            if cursor is None:
                return living

    def server_time(self) -> int:
        return int(self.call("server_time", 0, [])[0])

    def ping(self) -> None:
        self.persist(self.store.ping)

    def backend_label(self) -> str:
        return self.store.label

    def _record(self, execution_id: ExecutionId, fields: tuple[str, ...] | None = None) -> Record | None:
        wanted = fields or Record.FIELDS
        values = self.call("read_executions", execution_id.partition, [len(wanted), *wanted, execution_id.uuid])[0]
        return Record(execution_id, dict(zip(wanted, values, strict=True))) if values else None


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


def _add_lane(known: LaneInfo | None, name: str, values: Reply) -> LaneInfo:
    """A lane with the counters of one more partition."""
    depths = {
        state: int(value or 0) + (known.depths[state] if known else 0)
        for state, value in zip(PublicState, values, strict=False)
    }
    paused = values[-1]
    return LaneInfo(
        lane=name,
        depths=depths,
        paused_since_ms=int(paused) if paused is not None else known.paused_since_ms if known else None,
    )
