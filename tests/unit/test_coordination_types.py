"""The types of the areas around executions, and the base class that names their operations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import timedelta
from types import ModuleType
from typing import Any

import attrs
import pytest

from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.backend.budgets import BudgetsBackend
from flowfabric_worker.engine.backend.flows import FlowsBackend
from flowfabric_worker.engine.backend.quotas import QuotasBackend
from flowfabric_worker.engine.backend.schedules import SchedulesBackend
from flowfabric_worker.engine.backend.streams import StreamsBackend
from flowfabric_worker.engine.backend.suspension import SuspensionBackend
from flowfabric_worker.engine.errors import UnavailableError, ValidationError
from flowfabric_worker.engine.ids import ExecutionId, WaitpointId
from flowfabric_worker.engine.limits import (
    MAX_BUDGET_DIMENSIONS,
    MAX_DURATION_MS,
    MAX_FRAME_BYTES,
    MAX_NAME_BYTES,
    MAX_SIGNAL_PAYLOAD_BYTES,
    MAX_WAITPOINTS,
)
from flowfabric_worker.engine.types import (
    budgets,
    conditions,
    damage,
    edges,
    flows,
    quotas,
    streams,
    suspension,
    waitpoint_secrets,
)

MODULES = (budgets, conditions, damage, edges, flows, quotas, streams, suspension, waitpoint_secrets)
SECRET = "k1:5ec4e75ec4e7"
WRONG: Any = "text"
EXECUTION = ExecutionId.parse("{fp:0}:018f0000-0000-7000-8000-000000000000")

OPERATIONS = {
    "suspension": {
        "create_waitpoint",
        "suspend",
        "try_satisfy",
        "observe_signals",
        "deliver_signal",
        "deliver_approval_signal",
        "resume_execution",
        "list_suspended",
        "list_pending_waitpoints",
        "rotate_waitpoint_hmac_secret_all",
    },
    "streams": {"append_frame", "append_frames", "read_stream", "tail_stream", "read_summary"},
    "flows": {
        "create_flow",
        "add_execution_to_flow",
        "stage_dependency_edge",
        "apply_dependency_to_child",
        "set_edge_group_policy",
        "link",
        "submit_flow",
        "cancel_flow",
        "cancel_flow_header",
        "ack_cancel_member",
        "describe_flow",
        "describe_edge",
        "list_edges",
        "list_flow_members",
        "list_flows",
        "purge_flow",
        "read_inputs",
        "resolve_execution_flow_id",
        "seal_flow",
        "spawn",
    },
    "budgets": {
        "create_budget",
        "update_budget",
        "reset_budget",
        "delete_budget",
        "get_budget_status",
        "list_budgets",
        "report_usage",
        "reserve_budget",
        "settle_budget",
        "report_usage_admin",
        "record_spend",
        "release_budget",
    },
    "quotas": {
        "create_quota_policy",
        "read_quota_policy",
        "update_quota_policy",
        "reset_quota_policy",
        "delete_quota_policy",
        "list_quotas",
        "check_admission",
        "release_admission",
    },
    "schedules": {
        "tick_schedule",
        "tick_schedules",
        "lead_schedules",
        "resign_schedules",
        "list_schedules",
        "pause_schedule",
        "resume_schedule",
        "remove_schedule",
    },
}
AREAS = (SuspensionBackend, StreamsBackend, FlowsBackend, BudgetsBackend, QuotasBackend, SchedulesBackend)
ALL_OPERATIONS = sorted(set().union(*OPERATIONS.values()))


def records(modules: tuple[ModuleType, ...]) -> list[type]:
    return [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and attrs.has(kind) and kind.__module__ == module.__name__
    ]


def deliver(**changes: Any) -> suspension.DeliverSignalArgs:
    fields: dict[str, Any] = {
        "execution_id": EXECUTION,
        "waitpoint_id": WaitpointId("w"),
        "token": SECRET,
        "name": "approve",
        "source": suspension.SignalSource("user", "ann"),
    }
    return suspension.DeliverSignalArgs(**{**fields, **changes})


def approve(**changes: Any) -> suspension.DeliverApprovalSignalArgs:
    fields: dict[str, Any] = {
        "execution_id": EXECUTION,
        "waitpoint_id": WaitpointId("w"),
        "name": "approved",
        "operator": "ann",
        "decision_key": "1",
    }
    return suspension.DeliverApprovalSignalArgs(**{**fields, **changes})


def suspended_at(waitpoints: int) -> suspension.SuspendArgs:
    return suspension.SuspendArgs(
        condition=conditions.OperatorOnly(),
        waitpoints=[suspension.WaitpointBinding(waitpoint_key=str(number)) for number in range(waitpoints)],
    )


def budget_of(dimensions: int) -> budgets.BudgetDefinition:
    return budgets.BudgetDefinition(
        dimensions=[budgets.BudgetDimension(name=str(number)) for number in range(dimensions)]
    )


def usage_of(dimensions: int) -> budgets.UsageDimensions:
    return budgets.UsageDimensions(input_tokens=1, custom=dict.fromkeys(map(str, range(dimensions - 1)), 1))


# ── records ──


@pytest.mark.parametrize("kind", records(MODULES), ids=lambda kind: kind.__name__)
def test_a_record_is_frozen_and_slotted(kind: type) -> None:
    record: object = object.__new__(kind)

    assert not hasattr(record, "__dict__")
    for field in attrs.fields(kind):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(record, field.name, None)


@pytest.mark.parametrize("kind", records(MODULES), ids=lambda kind: kind.__name__)
def test_a_record_of_more_than_two_fields_takes_them_by_name(kind: type) -> None:
    fields = attrs.fields(kind)

    assert len(fields) <= 2 or all(field.kw_only for field in fields)


@pytest.mark.parametrize(
    "record",
    [
        deliver(),
        suspension.IssuedWaitpoint(waitpoint_id=WaitpointId("w"), waitpoint_key="a", token=SECRET),
        suspension.PendingWaitpoint(waitpoint_id=WaitpointId("w"), waitpoint_key="a", token=SECRET, expires_at_ms=1),
        waitpoint_secrets.RotateWaitpointHmacSecretAllArgs(new_kid="k2", new_secret=SECRET.encode()),
    ],
    ids=lambda record: type(record).__name__,
)
def test_no_repr_shows_a_secret(record: Any) -> None:
    assert SECRET not in repr(record)
    assert SECRET not in str(record)
    assert SECRET not in repr(suspension.SuspensionDetails(suspension_id="s", waitpoints=(record,)))


@pytest.mark.parametrize("kind", records(MODULES), ids=lambda kind: kind.__name__)
def test_no_repr_shows_a_field_that_is_bytes_or_a_token(kind: type) -> None:
    shown = [field.name for field in attrs.fields(kind) if field.repr]

    assert not {"token", "new_secret", "payload", "document"} & set(shown)
    assert not [field.name for field in attrs.fields(kind) if "bytes" in str(field.type) and field.repr]


@pytest.mark.parametrize(("payload", "kept"), [(None, None), (b"", b""), (b"\0\xff", b"\0\xff")])
def test_no_payload_and_an_empty_one_differ(payload: bytes | None, kept: bytes | None) -> None:
    assert deliver(payload=payload).payload == kept
    assert approve(payload=payload).payload == kept


# ── limits ──

TOO_MANY: list[tuple[str, Callable[[int], object], int, str]] = [
    ("signal payload", lambda n: deliver(payload=bytes(n)), MAX_SIGNAL_PAYLOAD_BYTES, "payload_too_large"),
    ("approval payload", lambda n: approve(payload=bytes(n)), MAX_SIGNAL_PAYLOAD_BYTES, "payload_too_large"),
    ("frame payload", lambda n: streams.Frame(payload=bytes(n)), MAX_FRAME_BYTES, "payload_too_large"),
    ("waitpoints", suspended_at, MAX_WAITPOINTS, "invalid_input"),
    ("dimensions of a budget", budget_of, MAX_BUDGET_DIMENSIONS, "invalid_input"),
    ("dimensions of a report", usage_of, MAX_BUDGET_DIMENSIONS, "invalid_input"),
    ("bytes of a signal's name", lambda n: deliver(name="n" * n), MAX_NAME_BYTES, "invalid_input"),
    ("bytes of a category", lambda n: deliver(category="n" * n), MAX_NAME_BYTES, "invalid_input"),
    (
        "bytes of a source",
        lambda n: suspension.SignalSource("n" * n, "n" * n),
        MAX_NAME_BYTES,
        "invalid_input",
    ),
    ("bytes of a signal's key", lambda n: deliver(idempotency_key="n" * n), MAX_NAME_BYTES, "invalid_input"),
    ("bytes of a waitpoint's key", lambda n: conditions.Single("n" * n), MAX_NAME_BYTES, "invalid_input"),
    ("bytes of a matcher", lambda n: conditions.SignalMatcher("n" * n), MAX_NAME_BYTES, "invalid_input"),
    (
        "bytes of a counted waitpoint's key",
        lambda n: conditions.Count(n=1, kind=conditions.CountKind.SIGNALS, waitpoint_keys=("n" * n,)),
        MAX_NAME_BYTES,
        "invalid_input",
    ),
    (
        "bytes of a frame's type",
        lambda n: streams.Frame(payload=b"", frame_type="n" * n),
        MAX_NAME_BYTES,
        "invalid_input",
    ),
    (
        "bytes of a dimension",
        lambda n: budgets.BudgetDimension(name="n" * n),
        MAX_NAME_BYTES,
        "invalid_input",
    ),
    (
        "bytes of a reported dimension",
        lambda n: budgets.UsageDimensions(custom={"n" * n: 1}),
        MAX_NAME_BYTES,
        "invalid_input",
    ),
    (
        "milliseconds of a delay",
        lambda n: suspension.ResumePolicy(resume_delay=timedelta(milliseconds=n)),
        MAX_DURATION_MS,
        "invalid_input",
    ),
]
TOO_FEW: list[tuple[str, Callable[[int], object], int]] = [
    ("bytes of a name", lambda n: conditions.SignalMatcher("n" * n), 1),
    ("k of a quorum", edges.Quorum, 1),
    ("a hard limit", lambda n: budgets.BudgetDimension(name="x", hard_limit=n), 1),
    ("a soft limit", lambda n: budgets.BudgetDimension(name="x", soft_limit=n), 1),
    ("requests per window", lambda n: quotas.QuotaPolicy(max_requests_per_window=n), 1),
    ("runs at once", lambda n: quotas.QuotaPolicy(max_concurrent=n), 1),
    ("a usage", lambda n: budgets.UsageDimensions(wall_ms=n), 0),
    ("a usage by name", lambda n: budgets.UsageDimensions(custom={"cost": n}), 0),
    ("seq of a frame", lambda n: streams.Frame(payload=b"", seq=n), 0),
    ("a wait", lambda n: flows.CancelFlowWait.at_most(timedelta(seconds=n)), 0),
    ("bytes of a secret", lambda n: rotation(new_secret=bytes(n)), 1),
    ("kept frames", lambda n: streams.BestEffortLiveConfig(maxlen_floor=n), 1),
]


def rotation(**changes: Any) -> waitpoint_secrets.RotateWaitpointHmacSecretAllArgs:
    fields: dict[str, Any] = {"new_kid": "k2", "new_secret": b"s"}
    return waitpoint_secrets.RotateWaitpointHmacSecretAllArgs(**{**fields, **changes})


@pytest.mark.parametrize(("make", "limit", "code"), [row[1:] for row in TOO_MANY], ids=[row[0] for row in TOO_MANY])
def test_the_limit_is_allowed_and_one_more_is_not(make: Callable[[int], object], limit: int, code: str) -> None:
    make(limit)
    with pytest.raises(ValidationError) as refusal:
        make(limit + 1)

    assert refusal.value.code == code


@pytest.mark.parametrize(("make", "least"), [row[1:] for row in TOO_FEW], ids=[row[0] for row in TOO_FEW])
def test_the_least_is_allowed_and_one_less_is_not(make: Callable[[int], object], least: int) -> None:
    make(least)
    with pytest.raises(ValidationError):
        make(least - 1) if least else make(-1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: deliver(payload="text"),
        lambda: streams.Frame(payload=WRONG),
        lambda: edges.Quorum(True),
        lambda: conditions.AllOf("ab"),
        lambda: suspension.ResumePolicy(resume_delay=WRONG),
        lambda: conditions.Single("a\0b"),
        lambda: rotation(new_secret="text"),
        lambda: rotation(new_kid="a:b"),
        lambda: streams.BestEffortLiveConfig(ema_alpha=0),
        lambda: streams.BestEffortLiveConfig(ema_alpha=1.01),
        lambda: streams.BestEffortLiveConfig(maxlen_floor=9, maxlen_ceiling=8),
        lambda: streams.Frame(payload=b"", live=streams.BestEffortLiveConfig()),
        lambda: budgets.UsageDimensions(input_tokens=1, custom={"input_tokens": 1}),
        lambda: budgets.BudgetDefinition(dimensions=[budgets.BudgetDimension(name="x")] * 2),
    ],
)
def test_a_meaningless_value_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValidationError):
        make()


def test_a_refused_secret_is_not_in_the_message() -> None:
    with pytest.raises(ValidationError) as refusal:
        rotation(new_secret=SECRET)

    assert SECRET not in str(refusal.value)


# ── cursors and amounts ──


@pytest.mark.parametrize("text", ["start", "end", "0", "1-2", "18446744073709551615-18446744073709551615"])
def test_a_cursor_is_start_end_or_a_frames_id(text: str) -> None:
    assert streams.StreamCursor(text).value == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "+",
        "Start",
        "1-",
        "-1",
        "1-2-3",
        "1 ",
        "1\n",
        "٣",
        "18446744073709551616",
        "1-18446744073709551616",
    ],
)
def test_another_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        streams.StreamCursor(text)

    assert refusal.value.code == "invalid_cursor"


def test_only_a_frames_id_is_concrete() -> None:
    assert streams.StreamCursor.from_beginning() == streams.StreamCursor("0-0")
    assert streams.StreamCursor.from_beginning().is_concrete
    assert not streams.StreamCursor.start().is_concrete
    assert not streams.StreamCursor.end().is_concrete


def test_typed_fields_of_a_usage_count_as_dimensions() -> None:
    usage = budgets.UsageDimensions(output_tokens=0, wall_ms=7, custom={"cost": 3, "x": 1})

    assert list(usage.amounts().items()) == [("cost", 3), ("output_tokens", 0), ("wall_ms", 7), ("x", 1)]


def test_a_usage_does_not_follow_the_mapping_it_was_made_of() -> None:
    custom = {"cost": 3}
    usage = budgets.UsageDimensions(custom=custom)
    custom["cost"] = 4

    assert usage.amounts() == {"cost": 3}


# ── operations ──


def test_every_operation_has_an_area_and_every_area_its_operations() -> None:
    offered = {name for area in AREAS for name, _ in inspect.getmembers(area, inspect.isfunction)}

    assert {name for name in offered if not name.startswith("_")} == set(ALL_OPERATIONS)


@pytest.mark.parametrize("operation", ALL_OPERATIONS)
def test_an_operation_that_no_engine_overrides_says_so_by_its_name(operation: str) -> None:
    method = getattr(EngineBackend(), operation)
    arguments = [None] * len(inspect.signature(method).parameters)

    with pytest.raises(UnavailableError) as refusal:
        method(*arguments)

    assert refusal.value.op == operation
    assert refusal.value.code == "unavailable"


@pytest.mark.parametrize("operation", ALL_OPERATIONS)
def test_an_operation_documents_its_arguments(operation: str) -> None:
    method = getattr(EngineBackend, operation)
    text = inspect.getdoc(method) or ""
    names = [name for name in inspect.signature(method).parameters if name != "self"]

    assert [name for name in names if f"\n    {name}: " not in text] == []
    assert ("\nReturns:\n" in text) is (inspect.signature(method).return_annotation != "None")
