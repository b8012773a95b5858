"""The feed of all ends of executions in order, and waiting for a single end."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import timedelta

from flowfabric_worker.engine.batches import Item
from flowfabric_worker.engine.core import EngineCore
from flowfabric_worker.engine.errors import (
    EngineError,
    EngineTimeoutError,
    NotFoundError,
    TransportError,
    ValidationError,
)
from flowfabric_worker.engine.ids import ExecutionId, check_execution_id
from flowfabric_worker.engine.limits import MAX_CALL_ITEMS
from flowfabric_worker.engine.listener import FALLBACK
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.records import Record
from flowfabric_worker.engine.stores.base import Call, Reply
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.feed import CompletionEvent, CompletionFilter, ExecutionOutcome
from flowfabric_worker.engine.types.states import TerminalOutcome
from flowfabric_worker.engine.wire import decode_class, unpack_pairs, unpack_texts

_OUTCOME_FIELDS = ("state", "result", "codec", "error", "error_class", "error_detail", "cancel_reason")
_POSITION = re.compile(r"(0|[1-9][0-9]{0,3})=([0-9]{1,16}-[0-9]{1,16})")
_PAGE = 500


class Feed(EngineCore):
    """The operations of the area feed."""

    def wait_for_result(self, execution_id: ExecutionId, timeout: timedelta | None = None) -> ExecutionOutcome:
        seconds = _seconds(timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        outcome = self.read_outcome(execution_id)
        while outcome is None:
            self._await_end(execution_id, deadline)
            # Read the outcome after every wait, because the execution may have ended even if the wait timed out.
            is_closed = self.listener.is_closed
            try:
                outcome = self.read_outcome(execution_id)
            except TransportError:
                if not is_closed:
                    raise
            if outcome is not None:
                break
            if is_closed:
                raise TransportError("engine_closed", backend=self.store.label, execution_id=str(execution_id))
            if deadline is not None and time.monotonic() >= deadline:
                raise EngineTimeoutError(
                    message=f"{execution_id} did not end within {timeout}; it continues. Wait for it again.",
                    execution_id=str(execution_id),
                )
        return outcome

    def _await_end(self, execution_id: ExecutionId, deadline: float | None) -> None:
        """Wait until an execution may have ended, the time is over, or the listener has not looked for a while."""
        listener = self.listener
        event = listener.watch(str(execution_id), self._ended_of)
        try:
            watched: Item = [listener.topic, self._packed_namespace, execution_id.uuid]
            ((status,),) = self.call("watch_executions", execution_id.partition_number, watched)
            while status == b"watched":
                since = time.monotonic()
                remaining = _remaining(deadline)
                # Look here if the listener, which looks for all waiting threads, could not.
                if event.wait(remaining) or remaining < FALLBACK or listener.rechecked_at < since:
                    listener.revive()
                    return
        finally:
            listener.unwatch(str(execution_id), event)

    def read_outcome(self, execution_id: ExecutionId) -> ExecutionOutcome | None:
        """Return how an execution ended, or None if it has not ended.

        Raises:
            NotFoundError: `execution_not_found`.
        """
        execution_id = check_execution_id(execution_id)
        arguments: Item = [self._packed_namespace, len(_OUTCOME_FIELDS), *_OUTCOME_FIELDS, execution_id.uuid]
        values = self.call("read_executions", execution_id.partition_number, arguments)[0]
        if values == []:
            raise NotFoundError("execution_not_found", execution_id=str(execution_id))
        return Record(execution_id, _OUTCOME_FIELDS, values).outcome()

    def _ended_of(self, ids: list[str]) -> Iterator[str]:
        """Yield the watched executions that have ended or do not exist, and keep watching the others in the same step.

        Raises:
            EngineError: a partition did not answer; the executions of the other partitions were yielded before.
        """
        waiting = list(map(ExecutionId.parse, ids))
        while waiting:
            left: list[ExecutionId] = []
            yield from self._watch_each(waiting, left)
            # Each call watches at least one.
            waiting = left

    def _watch_each(self, ids: list[ExecutionId], left: list[ExecutionId]) -> Iterator[str]:
        """Do as `_ended_of`, and add to `left` the executions for which a call had no work budget."""
        by_partition: dict[int, list[ExecutionId]] = {}
        for each in ids:
            by_partition.setdefault(each.partition_number, []).append(each)
        groups = [
            group[first : first + MAX_CALL_ITEMS]
            for group in by_partition.values()
            for first in range(0, len(group), MAX_CALL_ITEMS)
        ]
        head: Item = [self.listener.topic, self._packed_namespace]
        replies = self.store.call_many(
            [
                Call("watch_executions", group[0].partition_number, [*head, *(each.uuid for each in group)])
                for group in groups
            ]
        )
        problem: EngineError | None = None
        for group, reply in zip(groups, replies, strict=True):
            if isinstance(reply, EngineError):
                problem = reply
                continue
            for each, (answer,) in zip(group, reply, strict=True):
                if answer == b"left":
                    left.append(each)
                elif answer != b"watched":
                    yield str(each)
        if problem is not None:
            raise problem

    def subscribe_completions(
        self,
        cursor: str | None = None,
        filter: CompletionFilter | None = None,  # noqa: A002  the name that the operation has
        timeout: timedelta | None = None,
    ) -> Iterator[CompletionEvent]:
        positions = self._positions(cursor)
        wanted = CompletionFilter() if filter is None else check_record(filter, CompletionFilter)
        return self._follow(positions, wanted, _seconds(timeout))

    def feed_cursor(self) -> str:
        """Return a cursor after the newest end, from which a subscription yields only later ends."""
        return _encode_cursor(self._places({}, 0))

    def _follow(
        self, positions: dict[int, str], wanted: CompletionFilter, timeout: float | None
    ) -> Iterator[CompletionEvent]:
        partitions = range(self.partitions)
        positions = self._places(positions, 1)
        waiter = self.waiter()
        counted = "1" if self.store.counts_listeners else ""
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            # Subscribe before registering, so that no wake-up is missed.
            waiter.wait(0)
            while True:
                found = False
                remaining = _remaining(deadline)
                for partition in partitions:
                    arguments: Item = [positions[partition], _PAGE, waiter.name, int(remaining * 1000), counted]
                    for entry in self.call("read_feed", partition, arguments)[1:]:
                        found = True
                        positions[partition] = entry[0].decode()
                        namespace, event = _event(partition, entry, _encode_cursor(positions))
                        if namespace == self.namespace and _passes(event, wanted):
                            yield event
                            deadline = None if timeout is None else time.monotonic() + timeout
                if found:
                    continue
                if remaining <= 0:
                    return
                waiter.wait(remaining)
                if waiter.stopped:
                    return
        finally:
            waiter.stop()

    def _places(self, known: dict[int, str], which: int) -> dict[int, str]:
        """Return a place in each partition: the known one, or after the newest end (0), or before the oldest (1)."""
        return {
            partition: known.get(partition) or self.call("feed_places", partition, [])[which].decode()
            for partition in range(self.partitions)
        }

    def _positions(self, cursor: str | None) -> dict[int, str]:
        positions: dict[int, str] = {}
        if cursor is None or cursor == "":
            return positions
        for match in map(_POSITION.fullmatch, cursor.split(",") if isinstance(cursor, str) else [""]):
            if match is None or int(match[1]) >= self.partitions or int(match[1]) in positions:
                raise ValidationError("invalid_cursor", f"{cursor!a:.200} is not a cursor of this feed.")
            positions[int(match[1])] = match[2]
        # Begin at the oldest end in a partition that the cursor does not name.
        for partition in range(self.partitions):
            positions.setdefault(partition, "0-0")
        # Refuse an expired cursor now, and not when the first event is read.
        for partition, entry in positions.items():
            self.call("read_feed", partition, [entry, 1, "", 0, ""])
        return positions


def _encode_cursor(positions: dict[int, str]) -> str:
    return ",".join(f"{partition}={entry}" for partition, entry in sorted(positions.items()))


def _remaining(deadline: float | None) -> float:
    return FALLBACK if deadline is None else max(0.0, min(FALLBACK, deadline - time.monotonic()))


def _passes(event: CompletionEvent, wanted: CompletionFilter) -> bool:
    return (
        (not wanted.lanes or event.lane in wanted.lanes)
        and (not wanted.tasks or event.task in wanted.tasks)
        and wanted.tags.items() <= event.tags.items()
    )


def _seconds(timeout: timedelta | None) -> float | None:
    return None if timeout is None else milliseconds(timeout, "timeout") / 1000


def _event(partition: int, entry: Reply, cursor: str) -> tuple[str, CompletionEvent]:
    """Return the namespace and the event of a feed entry."""
    try:
        fields = unpack_pairs(entry[1:])
        work_class = decode_class(fields["class"])
        event = CompletionEvent(
            cursor=cursor,
            execution_id=ExecutionId(partition, fields["execution"].decode()),
            outcome=TerminalOutcome(fields["outcome"].decode()),
            lane=work_class.lane,
            task=work_class.task,
            tags=unpack_texts(fields.get("tags")),
            produced_at_ms=int(fields.get("ended") or entry[0].split(b"-")[0]),
        )
    except (ValueError, LookupError) as error:
        raise ValidationError(
            "corruption",
            f"The feed's entry {cursor} is damaged ({error}); subscribe again with this cursor to skip it.",
            cursor=cursor,
        ) from None
    return work_class.namespace, event
