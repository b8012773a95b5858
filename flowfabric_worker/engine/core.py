"""The base of all areas of the engine: how they call stored functions, and check arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from flowfabric_worker.engine.batches import Item, Steps, cut_items, finish, windows
from flowfabric_worker.engine.connection import EngineConnection
from flowfabric_worker.engine.errors import (
    CODES,
    EngineError,
    TransportError,
    ValidationError,
    error_from_code,
)
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId, check_execution_id
from flowfabric_worker.engine.limits import MAX_CALL_ITEMS, MAX_LEASE_ITEMS, SHARED_LEASE_ITEMS
from flowfabric_worker.engine.pages import read_cursor
from flowfabric_worker.engine.partitions import parse_partition_key
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Argument, Call, Reply
from flowfabric_worker.engine.unusable_arguments import guarded
from flowfabric_worker.engine.wire import pack

A = TypeVar("A")
_ENDING_LEASES = frozenset({"complete_many", "fail_many"})


class EngineCore(EngineConnection):
    """The base of the areas: calls of stored functions, and the checks that areas share.

    Attributes:
        is_shared: whether others submit work beside the work of this engine, as the last claim was told.
    """

    is_shared = False

    @property
    def lease_items(self) -> int:
        """How many executions one call claims, completes or fails."""
        return SHARED_LEASE_ITEMS if self.is_shared else MAX_LEASE_ITEMS

    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        """Call a stored function and return its reply, or raise the error that it replies with."""
        self.check_partition(partition)
        answer = as_error(
            self.call_with_retries(lambda: self.store.call(function, partition, arguments, timeout)), partition
        )
        if isinstance(answer, EngineError):
            raise answer
        return answer

    def call_each(self, function: str, partitions: range, arguments: Sequence[Argument]) -> list[Reply]:
        """Call a function in each of some partitions and return the replies.

        A partition that cannot be reached does not keep the others from being called. These are then called at once, so
        that a server which holds several of them is waited for only once more.

        Raises:
            TransportError: that of the first partition that cannot be reached.
        """
        replies: list[Reply] = []
        for place, partition in enumerate(partitions):
            try:
                replies.append(self.call(function, partition, arguments))
            except TransportError:
                self.call_many([Call(function, other, arguments) for other in partitions[place + 1 :]])
                raise
        return replies

    def call_items(
        self, function: str, items: Sequence[tuple[int, Item]], timeout: float = CALL_TIMEOUT
    ) -> list[Reply | EngineError]:
        """Call a stored function that takes many items, and replies to each of them.

        An item is `(partition, arguments)`. Items are sent in bounded batches per partition, one after the other, so
        that other clients are served in between. Items that are answered `batch_full` are sent again in another round,
        as long as each round makes progress.
        """
        if len(items) == 1:
            return [self.call_item(function, *items[0], timeout)]
        return finish(self.item_steps(function, items, timeout))

    def call_encoded(
        self, function: str, args: Iterable[A], encode: Callable[[A], tuple[int, Item]], timeout: float = CALL_TIMEOUT
    ) -> tuple[list[Reply | EngineError], set[int]]:
        """Call a function of `call_items` for what each argument encodes to, whose first part names an execution.

        An argument that cannot be encoded gets its error as its answer, and the others are sent.

        Returns:
            The answers, and the partitions that were called.

        Raises:
            ValidationError: `duplicate_in_call`; nothing was sent.
        """
        items: list[tuple[int, Item]] = []
        answers: list[Reply | EngineError | None] = []
        encoded = guarded(function, encode)
        for each in args:
            try:
                items.append(encoded(each))
                answers.append(None)
            except ValidationError as error:
                answers.append(error)
        self.refuse_repeats((item[0] for _, item in items), "The execution")
        replies = iter(self.call_items(function, items, timeout) if items else ())
        called = {partition for partition, _ in items}
        return [next(replies) if answer is None else answer for answer in answers], called

    def item_steps(
        self, function: str, items: Sequence[tuple[int, Item]], timeout: float = CALL_TIMEOUT
    ) -> Steps[list[Reply | EngineError]]:
        """Do as `call_items`, and yield before calls are sent and while one is under way; return the answers."""
        answers: list[Reply | EngineError | None] = [None] * len(items)
        waiting: Sequence[int] = range(len(items))
        lost: dict[int, TransportError] = {}
        most = full = self.lease_items if function in _ENDING_LEASES else MAX_CALL_ITEMS
        with self.under_way:
            while waiting:
                batches = list(cut_items(items, waiting, most))
                for window in windows(batches, full):
                    # Do not wait again for a partition that was unavailable for the whole time of the retries.
                    together = [batch for batch in window if self.check_partition(items[batch[0]][0]) not in lost]
                    replies = yield from self._send_batches(function, items, together, timeout)
                    for batch, answered in zip(together, replies, strict=True):
                        for index, reply in zip(batch, answered, strict=True):
                            answers[index] = reply
                        if isinstance(answered[0], TransportError):
                            lost[items[batch[0]][0]] = answered[0]
                left = [index for index in waiting if is_put_off(answers[index])]
                if len(left) == len(waiting):
                    break
                most = max(1, min(most, (len(waiting) - len(left)) // len(batches)))
                waiting = left
        return [lost[items[index][0]] if answer is None else answer for index, answer in enumerate(answers)]

    def _send_batches(
        self, function: str, items: Sequence[tuple[int, Item]], batches: Sequence[Sequence[int]], timeout: float
    ) -> Steps[list[Sequence[Reply | EngineError]]]:
        """Send each batch of items as one call; return the replies of each, in the order of its items."""
        calls = [
            Call(function, items[batch[0]][0], [argument for index in batch for argument in items[index][1]])
            for batch in batches
        ]
        yield
        if len(calls) == 1:
            replies = [(yield from self._send(calls[0], timeout))]
        else:
            begun = self.store.begin_many(calls, timeout)
            yield
            replies = self._send_many(calls, timeout, begun)
        return [
            [reply] * len(batch)
            if isinstance(reply, EngineError)
            else [as_error(answer, call.partition) for answer in reply]
            for call, batch, reply in zip(calls, batches, replies, strict=True)
        ]

    def call_item(
        self, function: str, partition: int, item: Item, timeout: float = CALL_TIMEOUT
    ) -> Reply | EngineError:
        """Call a function of `call_items` for one item, without batches."""
        self.check_partition(partition)
        reply = self.call_with_retries(lambda: self.store.call(function, partition, item, timeout))
        return as_error(reply[0], partition)

    def call_many(self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT) -> list[Reply | EngineError]:
        """Call many functions at once, each of them once."""
        with self.under_way:
            return list(self.store.call_many(calls, timeout))

    def _send(self, call: Call, timeout: float) -> Steps[Reply | EngineError]:
        """Send one call, and repeat it for a time while the connection fails."""
        sent = call.function, call.partition, call.arguments, timeout
        begun: list[Callable[[], Reply]] = []
        with contextlib.suppress(TransportError):
            begun.append(self.store.begin(*sent))
        yield
        try:
            return self.call_in_flight(lambda: begun.pop()() if begun else self.store.call(*sent))
        except EngineError as error:
            return error

    def _send_many(
        self, calls: Sequence[Call], timeout: float, begun: Callable[[], list[Reply | EngineError]]
    ) -> list[Reply | EngineError]:
        """Finish many calls that were begun together, and repeat those whose connection failed, for a time."""
        replies: list[Reply | EngineError] = [TransportError()] * len(calls)
        lost = list(range(len(calls)))
        first = [begun]

        def attempt() -> None:
            nonlocal lost
            sent, lost = lost, []
            answers = first.pop()() if first else self.store.call_many([calls[each] for each in sent], timeout)
            for place, reply in zip(sent, answers, strict=True):
                replies[place] = reply
                if isinstance(reply, TransportError) and reply.retryable:
                    lost.append(place)
            if lost:
                problem = replies[lost[0]]
                assert isinstance(problem, EngineError)
                raise problem

        with contextlib.suppress(TransportError):
            self.call_in_flight(attempt)
        return replies

    def check_partition(self, partition: int) -> int:
        """Return the partition if the store has it.

        Raises:
            ValidationError: `partition_mismatch`, `invalid_input`.
        """
        if type(partition) is not int:
            raise ValidationError("invalid_input", f"A partition is an int, not {type(partition).__name__}.")
        if not 0 <= partition < self.partitions:
            raise ValidationError(
                "partition_mismatch",
                f"The store has {self.partitions} partitions; partition {partition} does not exist.",
            )
        return partition

    def partitions_behind(self, partition: str | None, cursor: ExecutionId | None) -> range:
        """Return the partitions that a listing still has to read, beginning with its cursor's.

        Raises:
            ValidationError: `invalid_partition_key`, `partition_mismatch`; `invalid_cursor`, the cursor is not an id,
                or is not in a listed partition.
        """
        count = self.partitions
        partitions = range(count)
        if partition is not None:
            number = self.check_partition(parse_partition_key(partition))
            partitions = range(number, number + 1)
        if cursor is None:
            return partitions
        first = read_cursor(lambda: check_execution_id(cursor), "an execution id").partition_number
        if first not in partitions:
            raise ValidationError("invalid_cursor", f"The cursor {cursor} is not in the partition that is listed.")
        return range(first, partitions.stop)

    # Arguments

    def check_payload(self, payload: bytes | None, what: str) -> None:
        """Check that a payload or a result is bytes or None, within the limit.

        Raises:
            ValidationError: `payload_too_large`, `invalid_input`; the message names `what`.
        """
        if payload is None:
            return
        if not isinstance(payload, bytes):
            raise ValidationError("invalid_input", f"The {what} must be bytes or None, not {type(payload).__name__}.")
        if len(payload) > self.limits.payload_bytes:
            raise ValidationError(
                "payload_too_large",
                f"The {what} has {len(payload)} bytes; at most {self.limits.payload_bytes} are allowed. Store it "
                "elsewhere and pass its address.",
                limit=self.limits.payload_bytes,
            )

    # Handles

    def check_handle(self, handle: Handle) -> Handle:
        """Return the handle if it belongs to this kind of store.

        Raises:
            ValidationError: `handle_from_other_backend`, `invalid_input`.
        """
        if not isinstance(handle, Handle):
            raise ValidationError("invalid_input", f"Pass a Handle, not {type(handle).__name__}.")
        if handle.backend != self.store.label:
            raise ValidationError(
                "handle_from_other_backend",
                f"The handle belongs to a {handle.backend} store; this is a {self.store.label} store.",
            )
        return handle

    def fenced(self, handle: Handle) -> tuple[int, str, str]:
        """Return the partition, the uuid and the fence of a handle, after checking it."""
        self.check_handle(handle)
        uuid, fence = handle.execution_id.uuid, handle.fence
        if not (uuid.isascii() and fence.isascii()):
            raise ValidationError("invalid_input", "The handle is damaged: its ids are not plain text.")
        return handle.execution_id.partition_number, uuid, fence

    @staticmethod
    def refuse_repeats(keys: Iterable[object], what: str) -> None:
        """Refuse a call in which an id or key stands twice.

        Raises:
            ValidationError: `duplicate_in_call`.
        """
        seen = set()
        for key in keys:
            if key in seen:
                raise ValidationError("duplicate_in_call", f"{what} {key} stands twice in one call; give it once.")
            seen.add(key)

    def packed_lane(self, lane: str) -> bytes:
        """Return the address of a lane of this engine's namespace, pack{namespace, lane}."""
        return pack((self.namespace, lane))


def as_error(reply: Reply | bytes, partition: int) -> Reply | EngineError:
    """Return the reply of a partition, or the error that it stands for. A word stands for a list of that word."""
    if isinstance(reply, bytes):
        return [reply]
    if not reply or reply[0] != b"error":
        return reply
    code, *details = (part.decode("utf-8", "replace") if isinstance(part, bytes) else part for part in reply[1:])
    row = CODES.get(code)
    if row is not None and row.details[:1] == ("execution_id",) and details and details[0]:
        # Give the caller the full id: a partition knows executions only by their uuids.
        details[0] = str(ExecutionId(partition, details[0]))
    return error_from_code(code, details)


def is_put_off(answer: object) -> bool:
    """Return True if an item was not handled because its call was full."""
    return isinstance(answer, EngineError) and answer.code == "batch_full"


def execution_id(partition: int, uuid: bytes) -> ExecutionId:
    """Return the id of a stored execution."""
    return ExecutionId(partition, uuid.decode())
