"""The decoding of flows, edges, groups and inputs in replies; decoding is strict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from flowfabric_worker.engine.core import execution_id
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import EdgeId, ExecutionId, FlowId
from flowfabric_worker.engine.records import Record, summary_of
from flowfabric_worker.engine.stores.base import Reply
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.edges import (
    AllEnded,
    AllOf,
    AnyOf,
    DependencyKind,
    EdgeDependencyPolicy,
    EdgeGroupSnapshot,
    EdgeGroupState,
    EdgeSnapshot,
    EdgeState,
    OnSatisfied,
    Quorum,
)
from flowfabric_worker.engine.types.flows import (
    CancelFlowPolicy,
    FlowInput,
    FlowMember,
    FlowSnapshot,
    FlowState,
    FlowSummary,
)
from flowfabric_worker.engine.types.reads import ExecutionSummary
from flowfabric_worker.engine.types.states import PublicState, TerminalOutcome
from flowfabric_worker.engine.wire import DAMAGE, unpack, unpack_texts

T = TypeVar("T")

MEMBER_FIELDS = (*Record.SUMMARY_FIELDS, "headers")

FLOW_FIELDS = (
    "kind", "state", "counts", "revision", "nodes", "edges", "created", "mutated", "cancelled_at", "cancel_reason",
    "cancel_policy", "tags",
)  # fmt: skip
SUMMARY_FIELDS = ("kind", "state", "created")
_OUTCOME_FIELDS = ("state", "codec", "result", "error", "error_class", "error_detail", "cancel_reason")
_OUTCOMES = {b"s": TerminalOutcome.SUCCESS, b"f": TerminalOutcome.FAILED, b"k": TerminalOutcome.SKIPPED}
_RESULTS = {b"s": EdgeState.SATISFIED, b"f": EdgeState.IMPOSSIBLE, b"k": EdgeState.IMPOSSIBLE}


def pack_policy(policy: EdgeDependencyPolicy) -> tuple[str, str, str]:
    """Return a group's policy as a stored function reads it: its word, how many successes it wants, and what becomes of
    the other upstream executions."""
    if isinstance(policy, AllEnded):
        return "all_ended", "0", OnSatisfied.LET_RUN
    if isinstance(policy, AllOf):
        return "all_of", "0", policy.on_impossible
    if isinstance(policy, AnyOf):
        return "any_of", "1", policy.on_satisfied
    return "quorum", str(policy.k), policy.on_satisfied


def read_policy(word: bytes, k: bytes, others: bytes) -> EdgeDependencyPolicy:
    """Return the policy that `pack_policy` packed.

    Raises:
        ValueError: it is damaged.
    """
    what = OnSatisfied(others.decode())
    if word in (b"all_of", b"children"):
        return AllOf(what)
    if word in (b"all_ended", b"children_ended"):
        return AllEnded()
    if word == b"any_of":
        return AnyOf(what)
    if word == b"quorum":
        return Quorum(int(k), what)
    raise ValueError(f"{word!r} is no policy")


def decode_inputs(partition: int, reply: Reply) -> tuple[tuple[FlowInput, ...], str | None]:
    """Decode a page of inputs, and the cursor of the next page or None."""
    cursor, rows = reply
    return tuple(_input(partition, row) for row in rows), cursor.decode() or None


def _input(partition: int, row: Reply) -> FlowInput:
    edge, name, upstream, result, values = row
    record = Record(execution_id(partition, upstream), _OUTCOME_FIELDS, values)
    outcome = record.outcome_of_edge(_OUTCOMES[result])
    return FlowInput(edge_id=EdgeId(edge.decode()), name=name.decode(), outcome=outcome)


def decode_flow(flow_id: str, namespace: str, partition: int, reply: Reply) -> FlowSnapshot:
    """Decode a flow with its groups.

    Raises:
        ValidationError: `corruption`, with the field.
    """
    values, failed, more, groups = reply
    flow = _Fields(flow_id, FLOW_FIELDS, values)
    pairs = zip(groups[::2], groups[1::2], strict=True)
    return FlowSnapshot(
        flow_id=FlowId(flow_id),
        kind=flow.needed("kind", bytes.decode),
        namespace=namespace,
        state=flow.needed("state", _flow_state),
        graph_revision=flow.needed("revision", int),
        node_count=flow.needed("nodes", int),
        edge_count=flow.needed("edges", int),
        member_counts=flow.read("counts", _counts) or {},
        created_at_ms=flow.needed("created", int),
        last_mutation_at_ms=flow.needed("mutated", int),
        cancelled_at_ms=flow.read("cancelled_at", int),
        cancel_reason=flow.read("cancel_reason", bytes.decode),
        cancellation_policy=flow.read("cancel_policy", lambda data: CancelFlowPolicy(data.decode())),
        tags=flow.read("tags", unpack_texts) or {},
        failed_execution_ids=tuple(execution_id(partition, uuid) for uuid in failed),
        edge_groups=tuple(_decode_group(flow_id, partition, uuid, text) for uuid, text in pairs),
        more_edge_groups=more == b"1",
    )


def decode_summary(row: Reply) -> FlowSummary | DamagedRow:
    """Decode a row of a listing of flows; a damaged one becomes a row that says so."""
    flow_id, values = row[0].decode(), row[1] or (None,) * len(SUMMARY_FIELDS)
    try:
        flow = _Fields(flow_id, SUMMARY_FIELDS, values)
        return FlowSummary(
            flow_id=FlowId(flow_id),
            kind=flow.needed("kind", bytes.decode),
            state=flow.needed("state", _flow_state),
            created_at_ms=flow.needed("created", int),
        )
    except ValidationError as error:
        return DamagedRow(flow_id, str(error))


def decode_edge(flow_id: str, partition: int, row: Reply) -> EdgeSnapshot:
    """Decode an edge: its link, its id, its stored parts, and the life of its group.

    Raises:
        ValidationError: `corruption`.
    """
    _, edge_id, text, life = row
    try:
        up, down, ref, kind, created, _, applied, result, lived, *_ = unpack(text)
        resolved = _RESULTS.get(result) if result == b"s" or lived == life else None
        return EdgeSnapshot(
            edge_id=EdgeId(edge_id.decode()),
            flow_id=FlowId(flow_id),
            upstream_execution_id=execution_id(partition, up),
            downstream_execution_id=execution_id(partition, down),
            dependency_kind=DependencyKind(kind.decode()),
            data_passing_ref=ref.decode() or None,
            state=resolved or (EdgeState.APPLIED if applied else EdgeState.STAGED),
            created_at_ms=int(created),
        )
    except DAMAGE as error:
        raise _corruption(flow_id, f"edge {edge_id.decode(errors='replace')}", error) from None


def edge_or_damage(flow_id: str, partition: int, row: Reply) -> EdgeSnapshot | DamagedRow:
    """Decode an edge of a listing; a damaged one becomes a row that says so."""
    try:
        return decode_edge(flow_id, partition, row)
    except ValidationError as error:
        return DamagedRow(row[1].decode(errors="replace"), str(error))


def _decode_group(flow_id: str, partition: int, uuid: bytes, text: bytes | None) -> EdgeGroupSnapshot:
    try:
        policy, k, others, *numbers, state = unpack(text or b"")[:8]
        total, satisfied, failed, skipped = map(int, numbers)
        return EdgeGroupSnapshot(
            downstream_execution_id=execution_id(partition, uuid),
            policy=read_policy(policy, k, others),
            state=EdgeGroupState(state.decode()),
            total_count=total,
            satisfied_count=satisfied,
            failed_count=failed,
            skipped_count=skipped,
            running_count=total - satisfied - failed - skipped,
        )
    except DAMAGE as error:
        raise _corruption(flow_id, f"group {uuid.decode(errors='replace')}", error) from None


def decode_member(member: ExecutionId, values: Sequence[bytes | None] | None) -> FlowMember:
    """Decode a member in a listing; a record that cannot be read becomes a row that says why."""
    summary = summary_of(member, values and values[: len(Record.SUMMARY_FIELDS)])
    try:
        return FlowMember(summary=summary, headers=Record(member, MEMBER_FIELDS, values).headers())
    except ValidationError as error:
        return FlowMember(summary=ExecutionSummary(execution_id=member, corruption=str(error)))


class _Fields:
    """The stored fields of a flow."""

    def __init__(self, flow_id: str, names: Sequence[str], values: Sequence[bytes | None]) -> None:
        self._flow_id = flow_id
        self._values = dict(zip(names, values, strict=True))

    def read(self, name: str, decode: Callable[[bytes], T]) -> T | None:
        """Return a field, or None if it is absent."""
        data = self._values[name]
        if not data:
            return None
        try:
            return decode(data)
        except DAMAGE as error:
            raise _corruption(self._flow_id, name, error) from None

    def needed(self, name: str, decode: Callable[[bytes], T]) -> T:
        """Return a field that every flow has."""
        value = self.read(name, decode)
        if value is None:
            raise _corruption(self._flow_id, name, "is missing")
        return value


def _flow_state(data: bytes) -> FlowState:
    return FlowState(data.decode())


def _counts(data: bytes) -> dict[PublicState, int]:
    return {state: int(count) for state, count in zip(PublicState, data.split(b","), strict=True)}


def _corruption(flow_id: str, field: str, why: object) -> ValidationError:
    return ValidationError("corruption", f"The flow {flow_id} is damaged: {field}: {why}.", field=field)
