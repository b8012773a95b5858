"""The arguments and results of the area feed."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.checks import as_dict, as_words
from flowfabric_worker.engine.types.states import TerminalOutcome


@attrs.frozen(kw_only=True)
class CompletionFilter:
    """Which ends to yield: of these lanes, of these tasks, and with these tags; empty for all."""

    lanes: frozenset[str] = attrs.field(default=frozenset(), converter=as_words)
    tasks: frozenset[str] = attrs.field(default=frozenset(), converter=as_words)
    tags: Mapping[str, str] = attrs.field(factory=dict, converter=as_dict)


@attrs.frozen(kw_only=True)
class CompletionEvent:
    """The end of an execution.

    Attributes:
        cursor: continues after this event.
        produced_at_ms: when the execution ended, in ms of the store's clock.
    """

    cursor: str
    execution_id: ExecutionId
    outcome: TerminalOutcome
    lane: str
    task: str
    tags: Mapping[str, str]
    produced_at_ms: int


@attrs.frozen(kw_only=True)
class ExecutionOutcome:
    """How an execution ended, and what it left.

    Attributes:
        result: of a success; None and `b""` differ.
        error: the last failure's message; None after a success.
        detail: what came with it, such as a traceback.
    """

    execution_id: ExecutionId
    outcome: TerminalOutcome
    result: bytes | None = attrs.field(default=None, repr=False)
    codec: str = ""
    error: str | None = None
    error_class: str | None = None
    detail: bytes = attrs.field(default=b"", repr=False)
