"""The operations on schedules, which submit an execution at each tick, once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import attrs

from flowfabric_worker.engine.batches import Item, cut_items, size_of
from flowfabric_worker.engine.connection import new_call_id
from flowfabric_worker.engine.core import as_error, execution_id, is_put_off
from flowfabric_worker.engine.errors import EngineError, TransportError, ValidationError
from flowfabric_worker.engine.ids import check_name
from flowfabric_worker.engine.limits import MAX_BATCH_BYTES, MAX_CALL_ITEMS
from flowfabric_worker.engine.moments import epoch_ms, milliseconds
from flowfabric_worker.engine.pages import page_size, read_cursor, read_rows
from flowfabric_worker.engine.partitions import partition_of_names
from flowfabric_worker.engine.stores.base import Reply
from flowfabric_worker.engine.submission import Submission
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.schedules import (
    MAX_TICKED,
    AlreadyTicked,
    Leadership,
    ListSchedulesPage,
    Paused,
    Registered,
    ScheduleInfo,
    Ticked,
    TickScheduleArgs,
    TickScheduleResult,
)
from flowfabric_worker.engine.types.submission import CreateExecutionArgs
from flowfabric_worker.engine.wire import pack, unpack_text

_SOME_TICK = datetime(2000, 1, 1, tzinfo=UTC)


class Schedules(Submission):
    """The operations of the area schedules."""

    def tick_schedule(self, args: TickScheduleArgs) -> TickScheduleResult:
        (result,) = self.tick_schedules([args])
        if isinstance(result, EngineError):
            raise result
        return result

    def tick_schedules(self, args: Sequence[TickScheduleArgs]) -> list[TickScheduleResult | EngineError]:
        self.refuse_repeats((each.name for each in args if isinstance(each, TickScheduleArgs)), "The schedule")
        results: list[TickScheduleResult | EngineError] = [TransportError()] * len(args)
        items: list[tuple[int, Item]] = []
        for index, each in enumerate(args):
            try:
                items.append(self._ticks(each))
            except EngineError as error:
                # Keep the place of the schedule: its error must not keep the others from ticking.
                items.append((0, ()))
                results[index] = error
        away: dict[int, TransportError] = {}
        waiting: Sequence[int] = [index for index, (_, item) in enumerate(items) if item]
        while waiting:
            self._tick(items, args, waiting, results, away)
            # Send items that were answered `batch_full` again, as long as each round makes progress.
            left = [index for index in waiting if is_put_off(results[index])]
            waiting = left if len(left) < len(waiting) else ()
        return results

    def _tick(
        self,
        items: Sequence[tuple[int, Item]],
        args: Sequence[TickScheduleArgs],
        waiting: Iterable[int],
        results: list[TickScheduleResult | EngineError],
        away: dict[int, TransportError],
    ) -> None:
        """Send some items; note their results, and the partitions that cannot be reached."""
        for partition, indices in self._tick_batches(items, args, waiting):
            arguments = [argument for index in indices for argument in items[index][1]]
            replies: Reply = [away.get(partition)] * len(indices)
            if partition not in away:
                try:
                    replies = self.call("tick_schedules", partition, arguments)
                except TransportError as error:
                    away[partition] = error
                    replies = [error] * len(indices)
            for index, reply in zip(indices, replies, strict=True):
                result = _tick_result(reply, partition)
                if isinstance(result, EngineError):
                    self.forget_unknown(result)
                results[index] = result

    def _tick_batches(
        self, items: Sequence[tuple[int, Item]], args: Sequence[TickScheduleArgs], chosen: Iterable[int]
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield the indices of the items of each call, which has a bounded number of schedules and ticks."""
        for indices in cut_items(items, chosen, MAX_CALL_ITEMS):
            partition = items[indices[0]][0]
            batch: list[int] = []
            work = 0
            for index in indices:
                cost = 1 + len(args[index].ticks)
                if batch and work + cost > MAX_TICKED:
                    yield partition, batch
                    batch, work = [], 0
                batch.append(index)
                work += cost
            yield partition, batch

    def lead_schedules(self, group: str, process: str, duration: timedelta) -> Leadership:
        partition, address = self._place(check_name(group, "a group of schedules"))
        arguments: Item = [address, check_name(process, "a process"), milliseconds(duration, "duration")]
        answer, until, now = self.call("lead_schedules", partition, arguments)
        return Leadership(leads=answer == b"leader", until_ms=int(until), now_ms=int(now))

    def resign_schedules(self, group: str, process: str) -> None:
        partition, address = self._place(check_name(group, "a group of schedules"))
        self.call("resign_schedules", partition, [address, check_name(process, "a process")])

    def pause_schedule(self, name: str) -> bool:
        partition, schedule = self._place(name)
        return bool(self.call("pause_schedule", partition, [schedule, new_call_id()])[0] == b"ok")

    def resume_schedule(self, name: str) -> bool:
        partition, schedule = self._place(name)
        return bool(self.call("resume_schedule", partition, [schedule, new_call_id()])[0] == b"ok")

    def remove_schedule(self, name: str) -> None:
        partition, schedule = self._place(name)
        self.call("remove_schedule", partition, [schedule, new_call_id()])

    def list_schedules(self, cursor: str | None = None, limit: int = 100) -> ListSchedulesPage:
        count = page_size(limit)
        first = b""
        if cursor is not None:
            name = read_cursor(lambda: check_name(cursor, "the cursor"), "a schedule's name")
            first = self._packed_namespace + name.encode()
        if not count:
            return ListSchedulesPage(schedules=(), next_cursor=None)
        rows: dict[str, Reply] = {}
        for partition in range(self.partitions):
            for row in self._schedules_of(partition, first, count + 1):
                rows[row[0][len(self._packed_namespace) :].decode()] = row
        names = sorted(rows)[: count + 1]
        page = tuple(_row(name, rows[name]) for name in names[:count])
        return ListSchedulesPage(schedules=page, next_cursor=names[count - 1] if len(names) > count else None)

    def _schedules_of(self, partition: int, first: bytes, count: int) -> Iterator[Reply]:
        return read_rows(
            lambda after, most: self.call("list_schedules", partition, [self._packed_namespace, after, most]),
            first,
            count,
        )

    def _place(self, name: str) -> tuple[int, bytes]:
        """Return the partition of a schedule, and its address there."""
        partition = partition_of_names((self.namespace, check_name(name, "a schedule's name")), self.partitions)
        return partition, self._packed_namespace + name.encode()

    def _ticks(self, args: TickScheduleArgs) -> tuple[int, Item]:
        """Check the arguments of one schedule, and encode them for the stored function."""
        check_record(args, TickScheduleArgs)
        expected, last = _checked_ticks(args)
        partition, schedule = self._place(args.name)
        following = "" if args.next_tick is None else str(epoch_ms(args.next_tick, "next_tick"))
        about = pack((args.spec, args.creation.task, args.creation.lane))
        creations = self._creations(args, partition)
        head: Item = (schedule, expected, last, following, about, new_call_id(), args.missed, len(args.ticks))
        return partition, [*head, *creations]

    def _creations(self, args: TickScheduleArgs, partition: int) -> Item:
        """Encode the executions of the ticks, in the schedule's partition, for the stored function."""
        # Check a call without ticks as if it had one, so that an invalid execution is refused at once.
        made = [self._made(_creation(args, tick), partition) for tick in args.ticks or (_SOME_TICK,)]
        creations = [argument for item in made for argument in item] if args.ticks else []
        size = size_of(creations)
        if size > MAX_BATCH_BYTES:
            raise ValidationError(
                "payload_too_large",
                f"These ticks have {size} bytes together; at most {MAX_BATCH_BYTES} are allowed. Submit fewer at once.",
                limit=MAX_BATCH_BYTES,
            )
        return creations

    def _made(self, args: CreateExecutionArgs, partition: int) -> Item:
        """Encode an execution that is created in a partition, whatever its quota or key would choose."""
        _, uuid, key = self._identity(check_record(args, CreateExecutionArgs))
        return self.creation(args, partition, uuid, key)[1]


def _checked_ticks(args: TickScheduleArgs) -> tuple[str, str]:
    """Encode the expected last tick and the new one; both are empty if the call has no ticks."""
    new = args.ticks or (() if args.missed_until is None else (args.missed_until,))
    if args.expected is None or not new:
        if args.expected is not None or new or args.missed:
            raise ValidationError("invalid_input", "Give both the expected last tick and new ticks, or neither.")
        return "", ""
    moments = [epoch_ms(args.expected, "expected"), *(epoch_ms(tick, "a tick") for tick in new)]
    if any(earlier >= later for earlier, later in pairwise(moments)):
        raise ValidationError("invalid_input", "Give ticks in order, each once, after the expected last one.")
    return str(moments[0]), str(moments[-1])


def _tick_result(reply: Reply | EngineError, partition: int) -> TickScheduleResult | EngineError:
    answer = reply if isinstance(reply, EngineError) else as_error(reply, partition)
    if isinstance(answer, EngineError):
        return answer
    word, detail = answer
    if word == b"ticked":
        return Ticked(execution_ids=tuple(execution_id(partition, uuid) for uuid in detail))
    if word == b"registered":
        return Registered(last_tick_ms=int(detail))
    return Paused(since_ms=int(detail)) if word == b"paused" else AlreadyTicked(last_tick_ms=int(detail))


def _creation(args: TickScheduleArgs, tick: datetime) -> CreateExecutionArgs:
    tags = args.creation.tags
    if not hasattr(tags, "items"):
        # Leave it to create_executions to refuse such tags.
        return args.creation
    return attrs.evolve(args.creation, tags={**tags, "schedule": args.name, "tick": _iso(tick)})


def _iso(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    text = moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds")
    return text.replace("+00:00", "Z")


def _row(name: str, row: Reply) -> ScheduleInfo | DamagedRow:
    try:
        _, last, submitted, paused, since, following, about, _, missed = row
        spec, task, lane = unpack_text(about)[:3]
        return ScheduleInfo(
            name=name,
            spec=spec,
            task=task,
            lane=lane,
            first_seen_ms=int(since),
            last_tick_ms=int(last),
            submitted_tick_ms=_optional_ms(submitted),
            next_tick_ms=_optional_ms(following),
            paused_since_ms=_optional_ms(paused),
            missed_ticks=int(missed),
        )
    except ValueError as error:
        return DamagedRow(name, f"schedule: {error}")


def _optional_ms(text: bytes) -> int | None:
    return int(text) if text else None
