"""The children of a running execution: what `spawn` returns, and how `gather` decides about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, Generic, ParamSpec, Protocol, Self, TypeVar

import attrs

from flowfabric_worker._flows.nodes import Node
from flowfabric_worker.codec import DecodingError, TaskCodec
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.feed import ExecutionOutcome
from flowfabric_worker.engine.types.states import TerminalOutcome
from flowfabric_worker.engine.types.submission import CreateExecutionArgs
from flowfabric_worker.engine.wire import DAMAGE, pack, unpack

P = ParamSpec("P")
R = TypeVar("R")


@attrs.frozen(kw_only=True)
class ChildRequest:
    """A child to create.

    Attributes:
        creation: the arguments of the engine's call.
        detached: True for a child that is not cancelled with its parent.
        codec: decodes its result.
    """

    creation: CreateExecutionArgs
    detached: bool
    codec: TaskCodec


class Spawnable(Protocol[P, R]):
    """A task, or a task with options."""

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Any: ...

    def node(self, *args: Any, **kwargs: Any) -> Node[R]: ...

    def child_request(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ChildRequest: ...


class Child(Generic[R]):
    """A child of the execution whose handler spawned it; `gather` waits for its result.

    Attributes:
        name: the name under which it was spawned.
        id: the execution's id.
    """

    __slots__ = ("_codec", "id", "name")

    def __init__(self, name: str, execution_id: ExecutionId, codec: TaskCodec) -> None:
        self.name = name
        self.id = execution_id
        self._codec = codec

    def __repr__(self) -> str:
        return f"<Child {self.name!r}: {self.id}>"

    def result_of(self, outcome: ExecutionOutcome) -> R:
        """Return the result of the child from its outcome, which is a success.

        Raises:
            DecodingError: the result is not of the annotated type.
        """
        result: R = self._codec.named(outcome.codec).decode_result(outcome.result)
        return result


@attrs.frozen(kw_only=True)
class GatherEnd:
    """The end of a `gather`, which later runs of the handler find again.

    Attributes:
        succeeded: the names of the children that had succeeded.
        failed: the names of those that had ended in another way.
    """

    succeeded: frozenset[str]
    failed: frozenset[str]

    @classmethod
    def of(cls, outcomes: Mapping[str, ExecutionOutcome | None], *, settle: bool) -> Self | None:
        """Return the end of a gather; None while it has to wait.

        Args:
            outcomes: how each child has ended; None for one that has not.
            settle: True if the gather waits until all have ended, in whatever way.
        """
        ended = {name: outcome.outcome for name, outcome in outcomes.items() if outcome is not None}
        succeeded = frozenset(name for name, outcome in ended.items() if outcome is TerminalOutcome.SUCCESS)
        failed = ended.keys() - succeeded
        if len(ended) == len(outcomes) or (failed and not settle):
            return cls(succeeded=succeeded, failed=frozenset(failed))
        return None

    def encode(self) -> bytes:
        return pack((pack(sorted(self.succeeded)), pack(sorted(self.failed))))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode a record of the journal.

        Raises:
            DecodingError: the record is damaged.
        """
        try:
            succeeded, failed = (frozenset(each.decode() for each in unpack(part)) for part in unpack(data))
        except DAMAGE as damage:
            raise DecodingError(f"The record of a gather is damaged: {damage}.") from damage
        return cls(succeeded=succeeded, failed=failed)


class GatherNames:
    """Name the gathers of one run of a handler; those of the same children are counted."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def name_of(self, names: Sequence[str], *, settle: bool) -> str:
        """Return the name under which the end of the next gather of these children is remembered."""
        name = f"{'settle' if settle else 'gather'} {sha256(pack(names)).hexdigest()[:_DIGITS]}"
        count = self._counts[name] = self._counts.get(name, 0) + 1
        return f"{name} {count}"


_DIGITS: Final = 24
