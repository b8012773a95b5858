"""The table of the engine's error codes, and the classes of errors, which `error_classes.py` defines.

Every code that a stored function or this package can raise has one row in `CODES`: its class, whether the same call may
succeed later, the names of its details, and a sentence that says what happened and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowfabric_worker.engine.error_classes import (
    ROWS,
    ConflictError,
    ContentionError,
    EngineError,
    EngineTimeoutError,
    FlowFabricError,
    NotFoundError,
    ResourceExhaustedError,
    Row,
    StateError,
    TransportError,
    UnavailableError,
    ValidationError,
    without_tokens,
)

__all__ = [
    "CODES",
    "ConflictError",
    "ContentionError",
    "EngineError",
    "EngineTimeoutError",
    "FlowFabricError",
    "NotFoundError",
    "ResourceExhaustedError",
    "Row",
    "StateError",
    "TransportError",
    "UnavailableError",
    "ValidationError",
    "error_from_code",
    "without_tokens",
]

_ID = ("execution_id",)
_STATE = ("execution_id", "state")
_LIMIT = ("execution_id", "limit")

CODES: dict[str, Row] = {
    # What does not exist
    "not_found": Row(NotFoundError, False, "The object does not exist; check its id."),
    "execution_not_found": Row(
        NotFoundError, False, "The execution does not exist: check the id, or its retention is over.", _ID
    ),
    "flow_not_found": Row(NotFoundError, False, "The flow does not exist; create it first.", ("flow_id",)),
    "budget_not_found": Row(NotFoundError, False, "The budget does not exist; create it first.", ("budget_id",)),
    "quota_policy_not_found": Row(
        NotFoundError, False, "The quota policy does not exist; create it first.", ("quota_policy_id",)
    ),
    "waitpoint_not_found": Row(
        NotFoundError, False, "The execution has no such waitpoint; list its pending waitpoints.", ("waitpoint_id",)
    ),
    "edge_not_found": Row(NotFoundError, False, "The flow has no such edge; stage it first.", ("edge_id",)),
    "worker_not_found": Row(
        NotFoundError, False, "The worker instance is not registered; register it first.", ("worker_instance_id",)
    ),
    "task_not_found": Row(
        NotFoundError, False, "No worker has published that task; check the name, or start a worker.", ("task",)
    ),
    "schedule_not_found": Row(
        NotFoundError, False, "The schedule does not exist; start a worker with it.", ("schedule",)
    ),
    "step_not_found": Row(
        NotFoundError, False, "The execution has recorded no such step; check the name.", ("execution_id", "step")
    ),
    # What is wrong with the call
    "ambiguous_task": Row(ValidationError, False, "Several tasks have that name; give the full name.", ("task",)),
    "ambiguous_waitpoint": Row(
        ValidationError, False, "The execution takes signals at several waitpoints; name one.", ("execution_id",)
    ),
    "invalid_input": Row(ValidationError, False, "An argument is not valid; correct it."),
    "invalid_execution_id": Row(ValidationError, False, "The text is not an execution id; write it as {fp:N}:<uuid>."),
    "invalid_partition_key": Row(ValidationError, False, "The text is not a partition key; write it as {fp:N}."),
    "partition_mismatch": Row(
        ValidationError, False, "The id belongs to another partition than its key or flow; leave it out."
    ),
    "duplicate_in_call": Row(ValidationError, False, "An id or key stands twice in one call; give it once."),
    "invalid_capabilities": Row(ValidationError, False, "A capability is not valid; correct it."),
    "invalid_policy": Row(ValidationError, False, "The policy is not valid; correct it."),
    "invalid_tag_key": Row(ValidationError, False, "The key of a tag is not valid; correct it."),
    "too_many_dimensions": Row(
        ValidationError, False, "A budget counts in a bounded number of dimensions; use fewer.", ("budget_id", "limit")
    ),
    "reservation_never_fits": Row(
        ValidationError,
        False,
        "The budget can never reserve so much; reserve less, or raise its hard limit.",
        ("budget_id", "dimension", "amount", "limit"),
    ),
    "invalid_cursor": Row(ValidationError, False, "The cursor is not one of this listing; begin again without one."),
    "invalid_url": Row(ValidationError, False, "The store's URL is not valid; correct it."),
    "payload_too_large": Row(
        ValidationError, False, "The payload is larger than the limit; store it elsewhere and pass its address."
    ),
    "journal_full": Row(
        ValidationError, False, "The execution's journal is full; record fewer or smaller steps.", _LIMIT
    ),
    "stream_full": Row(
        ValidationError,
        False,
        "The attempt's stream of durable frames is full; append fewer or smaller ones.",
        ("execution_id", "limit", "what"),
    ),
    "handle_from_other_backend": Row(
        ValidationError, False, "The handle belongs to another kind of store; use the engine that issued it."
    ),
    "corruption": Row(
        ValidationError, False, "A stored record is damaged; see list_damaged, and purge it.", ("execution_id", "field")
    ),
    "clock_not_settable": Row(
        ValidationError, False, "The clock can be set only in a store that was prepared with testing=True."
    ),
    "invalid_condition": Row(ValidationError, False, "The resume condition is not valid; correct it."),
    "invalid_token": Row(
        ValidationError, False, "The token is not valid for this waitpoint; use the token that was issued with it."
    ),
    "invalid_waitpoint_for_execution": Row(
        ValidationError, False, "The waitpoint belongs to another execution; name one of this one.", ("waitpoint_id",)
    ),
    "signal_limit_exceeded": Row(
        ValidationError, False, "The execution accepts no more signals; resume or cancel it.", _LIMIT
    ),
    "lane_mismatch": Row(
        ValidationError, False, "The execution is in another lane; name its lane, or none.", ("execution_id", "lane")
    ),
    "invalid_kid": Row(ValidationError, False, "The kid of a secret is not valid; correct it."),
    "invalid_secret": Row(ValidationError, False, "The secret is not valid; use 1 to 1024 bytes."),
    "invalid_patch": Row(ValidationError, False, "The summary frame is not a valid JSON merge patch; correct it."),
    "invalid_graph": Row(ValidationError, False, "The graph is not valid; correct its keys and edges."),
    # Lost races
    "contention": Row(ContentionError, True, "Another call was first; try again."),
    "execution_not_leaseable": Row(
        ContentionError, True, "The execution cannot be claimed in its state; claim another one.", _STATE
    ),
    "not_a_resumed_execution": Row(
        ContentionError, True, "The execution was not interrupted; redeem it with claim_from_reclaim.", _ID
    ),
    "invalid_claim_grant": Row(
        ContentionError, True, "The execution is not reserved for this worker; reserve it.", _ID
    ),
    "claim_grant_expired": Row(ContentionError, True, "The reservation has expired; ask for another one.", _ID),
    "execution_not_eligible": Row(
        ContentionError, True, "The execution is not waiting to run; read its state.", _STATE
    ),
    "stale_graph_revision": Row(
        ContentionError, True, "The flow has changed; read its revision and try again.", ("flow_id", "graph_revision")
    ),
    "stale_summary_version": Row(
        ContentionError, True, "The summary was changed by another call; merge the patch into the present one.", _ID
    ),
    "tick_not_due": Row(
        ContentionError, True, "The tick is in the future; submit it when it is due.", ("schedule", "tick_ms")
    ),
    # What contradicts the store
    "configuration_mismatch": Row(
        ConflictError, False, "The store was set up differently; use its settings.", ("what", "stored", "given")
    ),
    "budget_in_use": Row(
        ConflictError, False, "Executions that have not ended name the budget; wait for them.", ("budget_id",)
    ),
    "conflict": Row(ConflictError, False, "The call contradicts what is stored; read it and decide.", ("id",)),
    "instance_of_other_worker": Row(
        ConflictError,
        False,
        "The worker instance belongs to another worker id; give each process its own instance id.",
        ("worker_instance_id", "worker_id"),
    ),
    "key_conflict": Row(
        ConflictError,
        False,
        "The key stands for another request; use another key, or on_conflict='return' to get its run.",
        ("execution_id", "key"),
    ),
    "frame_conflict": Row(
        ConflictError,
        False,
        "Another frame has that seq, or a later one exists; number them in order.",
        ("execution_id", "seq"),
    ),
    "rotation_conflict": Row(ConflictError, False, "The kid belongs to another secret; choose a new kid.", ("kid",)),
    "document_mismatch": Row(
        ConflictError,
        False,
        "The waitpoint shows another document; make the document in a step.",
        ("waitpoint_key",),
    ),
    "self_referencing_edge": Row(ConflictError, False, "An edge cannot lead back to its own execution.", _ID),
    "cycle_detected": Row(ConflictError, False, "The edge would close a cycle; leave it out.", ("edge_id",)),
    "dependency_already_exists": Row(ConflictError, False, "Another edge has that id; choose another.", ("edge_id",)),
    "edge_group_policy_fixed": Row(
        ConflictError, False, "The group's policy is fixed; set it before its first edge.", _ID
    ),
    "edge_group_fired": Row(
        ConflictError, False, "The group has fired and takes no more edges; add edges before their executions end.", _ID
    ),
    "execution_already_in_flow": Row(
        ConflictError, False, "The execution is in another flow; create another one.", ("execution_id", "flow_id")
    ),
    "quota_policy_in_use": Row(
        ConflictError,
        False,
        "Executions that have not ended name the quota policy; end them first.",
        ("quota_policy_id",),
    ),
    "admitted_elsewhere": Row(
        ConflictError,
        False,
        "The execution has a slot of another quota policy; release that one first.",
        ("execution_id", "quota_policy_id"),
    ),
    # What the state forbids
    "invalid_state": Row(StateError, False, "The operation is not possible in the present state; read the state."),
    "execution_not_active": Row(
        StateError,
        False,
        "The execution is no longer running under this lease, and its outcome stands; stop working on it.",
        ("execution_id", "outcome", "lease_epoch", "phase", "attempt_id"),
    ),
    "lease_expired": Row(
        StateError, False, "The lease has expired, and another worker may claim the execution; stop working on it.", _ID
    ),
    "lease_revoked": Row(
        StateError, False, "The lease was revoked, and another worker may claim the execution; stop working on it.", _ID
    ),
    "stale_lease": Row(StateError, False, "Another lease holds the execution; stop working on it.", _ID),
    "execution_not_terminal": Row(
        StateError, False, "The execution has not ended; wait for its end, or cancel it.", _STATE
    ),
    "max_replays_exhausted": Row(
        StateError, False, "The execution was replayed as often as allowed; submit a new one.", _ID
    ),
    "already_suspended": Row(StateError, False, "The execution is already suspended; wait until it is resumed.", _ID),
    "execution_not_suspended": Row(StateError, False, "The execution is not suspended, so it cannot be resumed.", _ID),
    "written_by_newer_release": Row(
        StateError, False, "A newer release put the execution into a state of its kind; use that release for it.", _ID
    ),
    "waitpoint_not_pending": Row(
        StateError, False, "The waitpoint is in use or closed; create another one.", ("waitpoint_id",)
    ),
    "pending_waitpoint_expired": Row(
        StateError, False, "The waitpoint expired before a suspension used it; create another one.", ("waitpoint_id",)
    ),
    "waitpoint_closed": Row(
        StateError,
        False,
        "The waitpoint is closed and takes no more signals; what closed it stands.",
        ("waitpoint_id", "why", "decision", "decided_by"),
    ),
    "reservation_settled": Row(
        StateError, False, "The reservation was settled; reserve under another key.", ("budget_id", "key")
    ),
    "flow_already_terminal": Row(StateError, False, "The flow has ended; create another one.", ("flow_id", "state")),
    "flow_sealed": Row(StateError, False, "The flow is sealed and does not grow; create another one.", ("flow_id",)),
    "flow_not_terminal": Row(
        StateError, False, "The flow has not ended; wait for its end, or cancel it.", ("flow_id", "state")
    ),
    "execution_not_in_flow": Row(
        StateError, False, "The execution is not a member of the flow; add it first.", ("execution_id", "flow_id")
    ),
    "worker_dead": Row(
        StateError, False, "The worker instance was marked dead; register it again.", ("worker_instance_id",)
    ),
    # What this engine lacks
    "unavailable": Row(UnavailableError, False, "This engine does not offer the operation; see capabilities()."),
    "embedded_unavailable": Row(
        UnavailableError, False, "The embedded store cannot run here; name a server in the URL."
    ),
    "store_not_supported": Row(
        UnavailableError, False, "The store cannot be used; see the message for the version or setting that it needs."
    ),
    # Limits
    "resource_exhausted": Row(ResourceExhaustedError, True, "A limit is reached; try again later."),
    "batch_full": Row(ResourceExhaustedError, True, "The call's work budget was used up; send this item again."),
    "too_many_classes": Row(
        ResourceExhaustedError, True, "The lane has too many kinds of work; use more lanes.", ("lane", "limit")
    ),
    "too_many_tasks": Row(
        ResourceExhaustedError, True, "Too many tasks are published; unused ones expire after a week.", ("limit",)
    ),
    "too_many_waitpoints": Row(
        ResourceExhaustedError, True, "The execution has too many open waitpoints; wait for some first.", _LIMIT
    ),
    "too_many_reservations": Row(
        ResourceExhaustedError,
        True,
        "The execution has too many open reservations at the budget; settle some first.",
        ("budget_id", "limit"),
    ),
    "too_many_secrets": Row(
        ResourceExhaustedError,
        True,
        "Too many secrets are in their grace; rotate again when one has expired.",
        ("limit",),
    ),
    "cycle_search_limit": Row(
        ResourceExhaustedError, True, "The graph is too large to search it for cycles; submit it whole.", ("edge_id",)
    ),
    "too_many_tails": Row(
        ResourceExhaustedError, True, "Too many tails of this engine are waiting; end some of them.", ("limit",)
    ),
    "store_full": Row(ResourceExhaustedError, True, "The store has no memory left for new work; free memory."),
    # Waits
    "timeout": Row(EngineTimeoutError, True, "The wait ended before the event; wait again."),
    # The connection to the store
    "transport": Row(TransportError, True, "The store could not be reached; check its address and the network."),
    "store_timeout": Row(
        TransportError, True, "The store did not answer in time; the call may have taken effect, and may be sent again."
    ),
    "store_busy": Row(TransportError, True, "The store is loading its data or failing over; try again."),
    "authentication_failed": Row(TransportError, False, "The store refused the user or the password; correct the URL."),
    "tls_failed": Row(
        TransportError, False, "The store and this client could not agree on TLS; check the TLS options."
    ),
    "permission_denied": Row(TransportError, False, "The store's user lacks a right that is needed; grant it."),
    "function_failed": Row(TransportError, False, "A stored function failed; please report this defect."),
    "key_damaged": Row(
        TransportError,
        False,
        "A key of the store holds another type of value; restore it from a backup, or delete it.",
        ("key",),
    ),
    "engine_closed": Row(
        TransportError, False, "The engine was closed while the caller waited; open another one and wait again.", _ID
    ),
    "protocol": Row(TransportError, False, "The store's answer could not be understood; check its address."),
    "cursor_expired": Row(
        StateError, False, "Events after the cursor were trimmed; subscribe again without it.", ("cursor",)
    ),
}

ROWS.update(CODES)


def error_from_code(code: str, details: Sequence[Any] = (), message: str = "", **context: Any) -> EngineError:
    """Return the exception for a code of the table, with details named as the row names them.

    A code without a row is a defect of this package, and gives a `TransportError` that says so.
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
