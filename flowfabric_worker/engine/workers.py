"""The operations on registered workers and published tasks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from flowfabric_worker.engine.attempts import cut
from flowfabric_worker.engine.batches import Item
from flowfabric_worker.engine.connection import new_call_id
from flowfabric_worker.engine.core import EngineCore
from flowfabric_worker.engine.errors import EngineError, ValidationError
from flowfabric_worker.engine.ids import check_capabilities, check_lane, check_name, refuse_reserved
from flowfabric_worker.engine.limits import MAX_MESSAGE_BYTES, MAX_REGISTRATION_BYTES
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.pages import page_size, read_cursor, read_rows
from flowfabric_worker.engine.stores.base import Call, Reply
from flowfabric_worker.engine.submission import check_headers, check_tags, clamp_priority
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.workers import (
    ListTasksPage,
    ListWorkersPage,
    RegisterWorkerArgs,
    RegisterWorkerResult,
    TaskInfo,
    TaskPublication,
    WorkerInfo,
)
from flowfabric_worker.engine.wire import (
    WorkClass,
    decode_policy,
    encode_policy,
    pack,
    pack_texts,
    unpack,
    unpack_text,
    unpack_texts,
)

# The partition of the registry, because workers belong to no partition.
_REGISTRY = 0


class Workers(EngineCore):
    """The operations of the area workers."""

    def register_worker(self, args: RegisterWorkerArgs) -> RegisterWorkerResult:
        worker = self._worker(check_record(args, RegisterWorkerArgs).worker_instance_id)
        about = _about(args)
        alive_ms = milliseconds(args.alive_for, "alive_for", least=1)
        reply = self.call("register_worker", _REGISTRY, [worker, about, alive_ms, new_call_id()])
        return RegisterWorkerResult(refreshed=reply[0] == b"refreshed")

    def heartbeat_worker(self, worker_instance_id: str, alive_for: timedelta = timedelta(seconds=60)) -> int:
        alive_ms = milliseconds(alive_for, "alive_for", least=1)
        return int(self.call("heartbeat_worker", _REGISTRY, [self._worker(worker_instance_id), alive_ms])[1])

    def mark_worker_dead(self, worker_instance_id: str, reason: str = "") -> bool:
        why = cut(reason, MAX_MESSAGE_BYTES) or b"marked dead"
        arguments: Item = [self._worker(worker_instance_id), why, new_call_id()]
        marked = bool(self.call("mark_worker_dead", _REGISTRY, arguments)[0] == b"marked")
        if marked and self.partitions > 1:
            # Ignore errors of the other partitions, which only need the reason for claims that find the worker's work.
            others = [partition for partition in range(self.partitions) if partition != _REGISTRY]
            self.call_many([Call("note_death", partition, arguments) for partition in others])
        return marked

    def list_workers(self, cursor: str | None = None, limit: int = 100) -> ListWorkersPage:
        count = page_size(limit)
        if not count:
            return ListWorkersPage(workers=(), next_cursor=None)
        first = b"" if cursor is None else read_cursor(lambda: self._worker(cursor), "a worker's instance id")
        rows = list(
            read_rows(
                lambda after, most: self.call("list_workers", _REGISTRY, [self._packed_namespace, after, most]),
                first,
                count + 1,
            )
        )
        names = [row[0][len(self._packed_namespace) :].decode() for row in rows[:count]]
        workers = tuple(_row(name, row) for name, row in zip(names, rows, strict=False))
        return ListWorkersPage(workers=workers, next_cursor=names[-1] if len(rows) > count else None)

    def publish_tasks(self, tasks: Sequence[TaskPublication], keep: timedelta = timedelta(days=7)) -> None:
        if not isinstance(tasks, Sequence):
            raise ValidationError("invalid_input", f"Pass a sequence of tasks, not {type(tasks).__name__}.")
        keep_ms = milliseconds(keep, "keep", least=1)
        items: list[tuple[int, Item]] = [
            (_REGISTRY, [self._task(check_record(task, TaskPublication).name), _published(task), keep_ms])
            for task in tasks
        ]
        self.refuse_repeats((task.name for task in tasks), "The task")
        for answer in self.call_items("publish_tasks", items) if items else ():
            if isinstance(answer, EngineError):
                raise answer

    def list_tasks(self, cursor: str | None = None, limit: int = 100, name: str | None = None) -> ListTasksPage:
        count = page_size(limit)
        if not count:
            return ListTasksPage(tasks=(), next_cursor=None)
        if name is None:
            return self._tasks_page(self._packed_namespace, cursor, count)
        task = self._task(name)
        exact = self._tasks_between(b"[" + task, b"[" + task, 1)
        if exact.tasks or "." in name:
            return exact
        return self._tasks_page(task.partition(b"\n")[0] + b"\n", cursor, count)

    def _tasks_page(self, prefix: bytes, cursor: str | None, count: int) -> ListTasksPage:
        """Return a page of the tasks whose addresses begin with `prefix`."""
        start = b"[" + prefix
        if cursor is not None:
            start = b"(" + read_cursor(lambda: self._task(cursor), "a task's name")
        return self._tasks_between(start, b"(" + prefix + b"\xff", count)

    def _tasks_between(self, start: bytes, end: bytes, count: int) -> ListTasksPage:
        def page(after: bytes, most: int) -> Reply:
            return self.call("list_tasks", _REGISTRY, [b"(" + after if after else start, end, most])

        rows = list(read_rows(page, b"", count + 1))
        names = [row[0].rpartition(b"\n")[2].decode() for row in rows[:count]]
        read = (_task_row(name, row) for name, row in zip(names, rows, strict=False))
        return ListTasksPage(
            tasks=tuple(row for row in read if row is not None),
            next_cursor=names[-1] if len(rows) > count else None,
        )

    def _task(self, name: str) -> bytes:
        """Return the address of a task, which puts tasks with the same bare name next to each other."""
        checked = check_name(name, "task")
        return self._packed_namespace + f"{checked.rpartition('.')[2]}\n{checked}".encode()

    def _worker(self, instance: str) -> bytes:
        return self._packed_namespace + check_name(instance, "worker_instance_id").encode()


def _about(args: RegisterWorkerArgs) -> bytes:
    """Encode the description of a worker."""
    capabilities = check_capabilities(args.capabilities)
    refuse_reserved(capabilities)
    about = pack(
        (
            check_name(args.worker_id, "worker_id"),
            pack(check_lane(lane) for lane in args.lanes),
            pack(capabilities),
            pack(check_name(task, "task") for task in args.tasks),
            str(args.threads),
            check_name(args.host, "host") if args.host != "" else "",
            str(args.pid),
        )
    )
    if len(about) > MAX_REGISTRATION_BYTES:
        raise ValidationError(
            "invalid_input", f"A worker's registration has at most {MAX_REGISTRATION_BYTES} bytes, not {len(about)}."
        )
    return about


def _row(instance: str, row: Reply) -> WorkerInfo | DamagedRow:
    try:
        return _worker_info(instance, row)
    except ValueError as error:
        return DamagedRow(instance, f"worker: {error}")


def _worker_info(instance: str, row: Reply) -> WorkerInfo:
    _, expires, died, since, about, is_alive = row
    worker_id, lanes, capabilities, tasks, threads, host, pid = unpack(about)[:7]
    return WorkerInfo(
        worker_id=worker_id.decode(),
        worker_instance_id=instance,
        lanes=tuple(unpack_text(lanes)),
        capabilities=tuple(unpack_text(capabilities)),
        tasks=tuple(unpack_text(tasks)),
        threads=int(threads),
        host=host.decode(),
        pid=int(pid),
        registered_at_ms=int(since),
        expires_at_ms=int(expires),
        alive=bool(is_alive),
        death_reason=died.decode(),
    )


def _published(task: TaskPublication) -> bytes:
    """Encode the description of a task."""
    check_record(task.policy, ExecutionPolicy)
    refuse_reserved(task.policy.requires)
    published = pack(
        (
            check_lane(task.lane),
            check_name(task.codec, "codec") if task.codec != "" else "",
            str(clamp_priority(task.priority)),
            "" if task.delay is None else str(milliseconds(task.delay, "delay")),
            pack_texts(check_tags(task.tags)),
            pack_texts(check_headers(task.headers)),
            encode_policy(task.policy),
            pack(check_capabilities(task.policy.requires)),
            pack(check_name(budget, "budget") for budget in task.policy.budget_ids),
            check_name(task.policy.quota_policy_id, "quota") if task.policy.quota_policy_id is not None else "",
        )
    )
    if len(published) > MAX_REGISTRATION_BYTES:
        raise ValidationError(
            "invalid_input",
            f"The options of the task {task.name!r} have {len(published)} bytes; at most {MAX_REGISTRATION_BYTES} can "
            "be published.",
        )
    return published


def _task_row(name: str, row: Reply) -> TaskInfo | DamagedRow | None:
    """Decode a published task; return None if it has expired."""
    try:
        _, expires, published, about, current = row
        return _task_info(name, int(expires), int(published), about) if current else None
    except (ValueError, ArithmeticError, ValidationError) as error:
        return DamagedRow(name, f"task: {error}")


def _task_info(name: str, expires: int, published: int, about: bytes) -> TaskInfo:
    # Ignore further parts, which a newer release wrote.
    lane, codec, priority, delay, tags, headers, policy, capabilities, budgets, quota = unpack(about)[:10]
    work_class = WorkClass(
        namespace="",
        lane=lane.decode(),
        task=name,
        capabilities=tuple(unpack_text(capabilities)),
        budgets=tuple(unpack_text(budgets)),
        quota=quota.decode(),
    )
    return TaskInfo(
        name=name,
        lane=work_class.lane,
        codec=codec.decode(),
        priority=int(priority),
        delay=timedelta(milliseconds=int(delay)) if delay else None,
        tags=unpack_texts(tags),
        headers=unpack_texts(headers),
        policy=decode_policy(policy, work_class),
        published_at_ms=published,
        expires_at_ms=expires,
    )
