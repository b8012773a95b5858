"""The errors of the engine: one tree, one table.

    FlowFabricError              the root of every error of this package, also of codecs and results
    EngineError
    ├── NotFoundError            what was named does not exist; `entity` says what it is
    ├── ValidationError          the call itself is wrong; sending it again cannot help
    ├── ContentionError          somebody else was first; trying again is sensible
    ├── ConflictError            it contradicts what is stored, for good
    ├── StateError               not possible in the present state; a lost lease is one of these
    ├── UnavailableError         this engine does not offer the operation; `op` names it
    ├── ResourceExhaustedError   a limit is reached; room may come later
    ├── EngineTimeoutError       a wait ended before what it waited for came
    └── TransportError           the store could not be reached or did not answer; `backend` names it

Every code that a stored function or this package can give has one row in `CODES`: its class, whether the same
call may succeed later, the names of the details that come with it, and a sentence that says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs


class FlowFabricError(Exception):
    """The root of every error that this package raises for a reason of its own: engine, codec and result errors."""


class EngineError(FlowFabricError):
    """The root of every error that the engine raises.

    Attributes:
        code: snake_case word that names the error; stable.
        retryable: whether the same call may succeed when it is sent again later.
        details: what the error speaks of: ids, limits, outcomes.
    """

    default_code: ClassVar[str] = "engine_error"

    def __init__(self, code: str | None = None, message: str = "", **details: Any) -> None:
        self.code = code or self.default_code
        row = CODES.get(self.code)
        self.retryable = row.retryable if row else False
        self.details: Mapping[str, Any] = details
        super().__init__(message or (row.sentence if row else self.code))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.code, str(self), dict(self.details), dict(self.__dict__))


class NotFoundError(EngineError):
    """What was named does not exist (any more). `entity` says what it is."""

    default_code = "not_found"

    def __init__(self, code: str | None = None, message: str = "", **details: Any) -> None:
        super().__init__(code, message, **details)
        self.entity = self.code.removesuffix("_not_found")


class ValidationError(EngineError):
    """The call itself is wrong; sending it again cannot help."""

    default_code = "invalid_input"


class ContentionError(EngineError):
    """Somebody else was first; trying again is sensible."""

    default_code = "contention"


class ConflictError(EngineError):
    """The call contradicts what is stored, for good."""

    default_code = "conflict"


class StateError(EngineError):
    """Not possible in the present state. A lost lease is one of these, and is never worth a retry."""

    default_code = "invalid_state"


class UnavailableError(EngineError):
    """This engine does not offer the operation `op`."""

    default_code = "unavailable"

    def __init__(self, op: str, message: str = "", code: str | None = None, **details: Any) -> None:
        super().__init__(
            code, message or f"This engine does not offer '{op}'; capabilities() lists what it does.", **details
        )
        self.op = op


class ResourceExhaustedError(EngineError):
    """A limit is reached; room may come later."""

    default_code = "resource_exhausted"


class EngineTimeoutError(EngineError):
    """A wait ended before what it waited for came."""

    default_code = "timeout"


class TransportError(EngineError):
    """The store could not be reached, or did not answer in a way that tells what happened.

    `backend` names the store, and `__cause__` is the driver's own error.
    """

    default_code = "transport"

    def __init__(self, code: str | None = None, message: str = "", *, backend: str = "unknown", **details: Any) -> None:
        super().__init__(code, message, **details)
        self.backend = backend


@attrs.frozen
class Row:
    """One line of the table of codes."""

    error: type[EngineError]
    retryable: bool
    sentence: str
    details: tuple[str, ...] = ()


_ID = ("execution_id",)

CODES: dict[str, Row] = {
    # what is not there
    "not_found": Row(NotFoundError, False, "It does not exist."),
    "execution_not_found": Row(
        NotFoundError, False, "There is no such execution: the id is wrong, or its retention is over.", _ID
    ),
    "flow_not_found": Row(NotFoundError, False, "There is no such flow.", ("flow_id",)),
    "lane_not_found": Row(NotFoundError, False, "There is no such lane: it exists from its first use.", ("lane",)),
    "budget_not_found": Row(NotFoundError, False, "There is no such budget: create it first.", ("budget_id",)),
    "quota_policy_not_found": Row(
        NotFoundError, False, "There is no such quota policy: create it first.", ("quota_policy_id",)
    ),
    "waitpoint_not_found": Row(NotFoundError, False, "There is no such waitpoint.", ("waitpoint_id",)),
    "edge_not_found": Row(NotFoundError, False, "The flow has no such edge: stage it first.", ("edge_id",)),
    "worker_not_found": Row(
        NotFoundError, False, "No worker of that instance id is registered: register it first.", ("worker_instance_id",)
    ),
    "task_not_found": Row(NotFoundError, False, "No worker has published a task of that name.", ("task",)),
    "schedule_not_found": Row(
        NotFoundError, False, "There is no such schedule: it exists once a worker that has it runs.", ("schedule",)
    ),
    # what is wrong with the call
    "ambiguous_task": Row(ValidationError, False, "Several tasks have that name: give the whole name.", ("task",)),
    "invalid_input": Row(ValidationError, False, "An argument is not valid."),
    "invalid_execution_id": Row(ValidationError, False, "That is not an execution id."),
    "invalid_partition_key": Row(ValidationError, False, "That is not a partition key."),
    "partition_mismatch": Row(
        ValidationError, False, "The execution id lies in another partition than its key or flow."
    ),
    "duplicate_in_call": Row(ValidationError, False, "An id or key may stand once in a call."),
    "invalid_capabilities": Row(ValidationError, False, "A capability is not valid."),
    "invalid_policy": Row(ValidationError, False, "The policy is not valid."),
    "invalid_tag_key": Row(ValidationError, False, "A tag's key is not valid."),
    "invalid_cursor": Row(ValidationError, False, "That cursor is not one that this engine gave."),
    "invalid_url": Row(ValidationError, False, "That is not the URL of a store."),
    "payload_too_large": Row(
        ValidationError, False, "The payload is over the limit; store it elsewhere and pass its address."
    ),
    "journal_full": Row(ValidationError, False, "The execution's journal of steps is full.", ("execution_id", "limit")),
    "stream_full": Row(
        ValidationError,
        False,
        "The attempt's stream holds as many durable frames as it may; nothing that stands is lost. Append fewer "
        "or smaller ones, or live ones.",
        ("execution_id", "limit", "what"),
    ),
    "handle_from_other_backend": Row(ValidationError, False, "That handle belongs to another kind of store."),
    "corruption": Row(ValidationError, False, "A stored record is damaged.", ("execution_id", "field")),
    "clock_not_settable": Row(
        ValidationError, False, "The clock can be set only in a store that was prepared for tests."
    ),
    "invalid_condition": Row(ValidationError, False, "The resume condition is not valid."),
    "invalid_token": Row(ValidationError, False, "The token does not open that waitpoint."),
    "invalid_waitpoint_for_execution": Row(
        ValidationError, False, "The waitpoint is not one of this execution's.", ("waitpoint_id",)
    ),
    "signal_limit_exceeded": Row(
        ValidationError, False, "The execution accepts no more signals.", ("execution_id", "limit")
    ),
    "lane_mismatch": Row(ValidationError, False, "The execution lies in another lane.", ("execution_id", "lane")),
    "invalid_kid": Row(ValidationError, False, "The secret's kid is not valid."),
    "invalid_secret": Row(ValidationError, False, "The secret is not valid."),
    "invalid_patch": Row(ValidationError, False, "The summary frame is not a valid merge patch."),
    "invalid_graph": Row(ValidationError, False, "The graph is not valid."),
    # who was faster
    "contention": Row(ContentionError, True, "Somebody else was first."),
    "execution_not_leaseable": Row(
        ContentionError, True, "The execution cannot be claimed now.", ("execution_id", "state")
    ),
    "not_a_resumed_execution": Row(
        ContentionError, True, "The execution has no interrupted attempt to go on with.", _ID
    ),
    "invalid_claim_grant": Row(ContentionError, True, "No such reservation is held for this worker.", _ID),
    "claim_grant_expired": Row(ContentionError, True, "The reservation lapsed; ask for another one.", _ID),
    "execution_not_eligible": Row(
        ContentionError, True, "The execution is not waiting to run.", ("execution_id", "state")
    ),
    "stale_graph_revision": Row(
        ContentionError, True, "The flow has changed: read its revision again.", ("flow_id", "graph_revision")
    ),
    "stale_summary_version": Row(
        ContentionError, True, "The summary was changed meanwhile: merge into the present one.", _ID
    ),
    "tick_not_due": Row(
        ContentionError, True, "The tick lies in the future of the store's clock.", ("schedule", "tick_ms")
    ),
    # what contradicts the store
    "configuration_mismatch": Row(
        ConflictError, False, "The store was set up differently.", ("what", "stored", "given")
    ),
    "conflict": Row(ConflictError, False, "It contradicts what is stored."),
    "instance_of_other_worker": Row(
        ConflictError,
        False,
        "The worker instance belongs to another worker id: give each process an instance id.",
        ("worker_instance_id", "worker_id"),
    ),
    "key_conflict": Row(
        ConflictError,
        False,
        "The key stands for another request: use another one, or on_conflict='return' to get its run.",
        ("execution_id", "key"),
    ),
    "frame_conflict": Row(
        ConflictError,
        False,
        "Another frame stands under that seq, or a later one does: number frames in their order.",
        ("execution_id", "seq"),
    ),
    "rotation_conflict": Row(ConflictError, False, "That kid names another secret: choose a new kid.", ("kid",)),
    "self_referencing_edge": Row(ConflictError, False, "An edge cannot lead back to its own execution.", _ID),
    "cycle_detected": Row(ConflictError, False, "The edge would close a cycle.", ("edge_id",)),
    "dependency_already_exists": Row(ConflictError, False, "Another edge has that id.", ("edge_id",)),
    "edge_group_policy_fixed": Row(
        ConflictError, False, "The group's policy is fixed: set it before its first edge.", _ID
    ),
    "edge_group_fired": Row(ConflictError, False, "The group has fired; no edge can be added to it.", _ID),
    "execution_already_in_flow": Row(
        ConflictError, False, "The execution is a member of another flow.", ("execution_id", "flow_id")
    ),
    # what the state forbids
    "invalid_state": Row(StateError, False, "Not possible in the present state."),
    "execution_not_active": Row(
        StateError,
        False,
        "The execution is not running under this lease any more; its outcome stands.",
        ("execution_id", "outcome", "lease_epoch", "phase", "attempt_id"),
    ),
    "lease_expired": Row(StateError, False, "The lease ran out; another worker goes on with the execution.", _ID),
    "lease_revoked": Row(
        StateError, False, "The lease was taken away; another worker goes on with the execution.", _ID
    ),
    "stale_lease": Row(StateError, False, "Another lease holds the execution now.", _ID),
    "execution_not_terminal": Row(StateError, False, "The execution has not ended yet.", ("execution_id", "state")),
    "max_replays_exhausted": Row(StateError, False, "The execution was replayed as often as its policy allows.", _ID),
    "already_suspended": Row(StateError, False, "The execution is suspended already.", _ID),
    "execution_not_suspended": Row(StateError, False, "The execution is not suspended.", _ID),
    "waitpoint_not_pending": Row(
        StateError, False, "The waitpoint is in use or closed: create another one.", ("waitpoint_id",)
    ),
    "pending_waitpoint_expired": Row(
        StateError, False, "The waitpoint expired before it was used: create another one.", ("waitpoint_id",)
    ),
    "waitpoint_closed": Row(
        StateError,
        False,
        "The waitpoint takes no more signals; what closed it stands.",
        ("waitpoint_id", "why", "decision", "decided_by"),
    ),
    "flow_already_terminal": Row(StateError, False, "The flow has ended.", ("flow_id", "state")),
    "execution_not_in_flow": Row(
        StateError, False, "The execution is not a member of the flow: add it first.", ("execution_id", "flow_id")
    ),
    "worker_dead": Row(
        StateError, False, "The worker was marked dead; it must register again.", ("worker_instance_id",)
    ),
    # what this engine lacks
    "unavailable": Row(UnavailableError, False, "This engine does not offer the operation."),
    "embedded_unavailable": Row(UnavailableError, False, "The embedded store cannot run here."),
    "store_not_supported": Row(UnavailableError, False, "The store cannot be used."),
    # what is full
    "resource_exhausted": Row(ResourceExhaustedError, True, "A limit is reached."),
    "batch_full": Row(ResourceExhaustedError, True, "The call was full before this item; send it again."),
    "too_many_classes": Row(
        ResourceExhaustedError, True, "The lane holds work of too many kinds; use more lanes.", ("lane", "limit")
    ),
    "too_many_tasks": Row(
        ResourceExhaustedError,
        True,
        "Too many tasks are published; those that no worker has any more end in a week.",
        ("limit",),
    ),
    "too_many_waitpoints": Row(
        ResourceExhaustedError,
        True,
        "The execution has too many open waitpoints; wait for some of them first.",
        ("execution_id", "limit"),
    ),
    "too_many_secrets": Row(
        ResourceExhaustedError,
        True,
        "Too many secrets are within their grace; rotate again when the first of them is over.",
        ("limit",),
    ),
    "too_many_tails": Row(
        ResourceExhaustedError, True, "Too many tails of this engine are waiting; end some.", ("limit",)
    ),
    "store_full": Row(ResourceExhaustedError, True, "The store has no memory left for new work."),
    # what took too long
    "timeout": Row(EngineTimeoutError, True, "It did not happen in time."),
    # what lies between us and the store
    "transport": Row(TransportError, True, "The store could not be reached."),
    "store_timeout": Row(TransportError, True, "The store did not answer in time."),
    "store_busy": Row(TransportError, True, "The store is loading or failing over."),
    "authentication_failed": Row(TransportError, False, "The store refused the user or the password."),
    "tls_failed": Row(TransportError, False, "The store and this client do not accept each other's TLS."),
    "permission_denied": Row(TransportError, False, "The store's user lacks a right that is needed."),
    "function_missing": Row(TransportError, False, "The function library is not loaded in the store."),
    "function_failed": Row(TransportError, False, "A stored function failed; this is a bug, please report it."),
    "engine_closed": Row(
        TransportError, False, "The engine was closed while the caller waited; open another one, and wait again.", _ID
    ),
    "protocol": Row(TransportError, False, "The store answered something that cannot be understood."),
    "cursor_expired": Row(
        StateError, False, "What lay behind that cursor was trimmed; begin anew without a cursor.", ("cursor",)
    ),
}


def error_from_code(code: str, details: Sequence[Any] = (), message: str = "", **context: Any) -> EngineError:
    """Return the exception for a code of the table; `details` fill the names that the row gives them.

    A code without a row is a defect of this package: it becomes a `TransportError` that says so.
    """
    row = CODES.get(code)
    if row is None:
        return TransportError("protocol", f"The store answered the unknown code {code!r}.", **context)
    named = dict(zip(row.details, details, strict=False))
    named.update(context)
    if not message:
        message = row.sentence
        spoken = {name: value for name, value in named.items() if value not in ("", None)}
        if spoken:
            message += " (" + ", ".join(f"{name}={value}" for name, value in spoken.items()) + ")"
    if row.error is UnavailableError:
        return UnavailableError(str(named.pop("op", code)), message, code, **named)
    return row.error(code, message, **named)


def _restore(
    kind: type[EngineError], code: str, message: str, details: dict[str, Any], state: dict[str, Any]
) -> EngineError:
    """Rebuild a pickled error; what crosses a process keeps its code and its sentence."""
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    error.details = details
    error.code = code
    return error
