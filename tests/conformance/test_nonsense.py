"""Nonsensical arguments are refused with a typed error, and without a trace."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias
from uuid import uuid4

import attrs
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import flowfabric_worker.engine as engine_package
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import CODES, EngineError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, RevokeLeaseArgs
from flowfabric_worker.engine.types.attempts import Completion, FailureReason
from flowfabric_worker.engine.types.claiming import ClaimPolicy
from flowfabric_worker.engine.types.feed import CompletionFilter
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.reads import ExecutionFilter
from flowfabric_worker.engine.types.submission import CreateExecutionArgs
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs, TaskPublication
from tests.support.dumps import Dump
from tests.support.executions import BOOM, LANE, creation, running
from tests.support.refusals import (
    BY_ID,
    HOLDING,
    LONG,
    Act,
    claiming,
    publishing,
    redeeming,
    registering,
    reserving,
    subscribing,
)

SECRET = "swordfish"

LISTINGS = ("list_executions", "list_expired_leases", "list_lanes", "list_workers", "list_schedules", "list_tasks")


FUZZING = settings(
    max_examples=6,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 2**31, 2**63, 2**64, -(10**40), 10**40]),
    st.floats(),
    st.binary(max_size=20),
    st.text(max_size=20),
    # A character of each kind that is refused, and sizes beyond what is allowed.
    st.sampled_from(["", LONG, "\0", "a\x1bb", "\ud800", "a\udfffb", "é" * 200, "{fp:99}", "{fp:0}:x", "0=9-9"]),
    st.sampled_from([[], {}, (None,), ["\ud800"], {"\ud800": "x"}, {"a": "\ud800"}, object()]),
    st.builds(ExecutionId, st.integers(-1, 70000), st.sampled_from(["", "\ud800", str(uuid4())])),
    st.sampled_from([timedelta(-1), timedelta.max, datetime(2030, 1, 1), datetime.min.replace(tzinfo=UTC)]),
)


def claim_by(changes: dict[str, Any]) -> Callable[[Engine], Any]:
    """Return a claim with a policy that is made of this."""
    who = {"worker_id": "w", "worker_instance_id": "w", **changes}
    return lambda engine: engine.claim(LANE, frozenset(), ClaimPolicy(**who))


FuzzedCall: TypeAlias = Callable[[Engine, Handle, Any], Any]
FUZZED: dict[str, FuzzedCall] = {
    **{
        f"create_execution {field}": lambda engine, _, junk, field=field: engine.create_execution(
            creation(**{"payload": SECRET.encode(), "idempotency_key": str(uuid4()), field: junk})
        )
        for field in attrs.fields_dict(CreateExecutionArgs)
    },
    "create_execution": lambda engine, _, junk: engine.create_execution(junk),
    "create_executions": lambda engine, _, junk: engine.create_executions([junk]),
    "create_in_transaction": lambda engine, _, junk: engine.create_in_transaction(junk, [creation()]),
    "create_in_batches": lambda engine, _, junk: list(engine.create_in_batches([junk])),
    **{f"{name} id": lambda engine, _, junk, act=act: act(engine, junk) for name, act in BY_ID.items()},
    **{f"{name} handle": lambda engine, _, junk, act=act: act(engine, junk) for name, act in HOLDING.items()},
    "progress percent": lambda engine, handle, junk: engine.progress(handle, junk),
    "progress message": lambda engine, handle, junk: engine.progress(handle, None, junk),
    "complete payload": lambda engine, handle, junk: engine.complete(handle, junk),
    "fail reason": lambda engine, handle, junk: engine.fail(handle, junk, FailureClass.TRANSIENT),
    "fail message": lambda engine, handle, junk: engine.fail(
        handle, FailureReason(message=junk, detail=SECRET.encode()), FailureClass.TRANSIENT
    ),
    "fail detail": lambda engine, handle, junk: engine.fail(
        handle, FailureReason(message="", detail=junk), FailureClass.TRANSIENT
    ),
    "fail classification": lambda engine, handle, junk: engine.fail(handle, BOOM, junk),
    "fail retry_after": lambda engine, handle, junk: engine.fail(handle, BOOM, FailureClass.TRANSIENT, junk),
    "cancel reason": lambda engine, handle, junk: engine.cancel(handle, junk),
    "release delay": lambda engine, handle, junk: engine.release(handle, junk),
    "delay delay_until": lambda engine, handle, junk: engine.delay(handle, junk),
    "record_step name": lambda engine, handle, junk: engine.record_step(handle, junk, SECRET.encode()),
    "record_step value": lambda engine, handle, junk: engine.record_step(handle, "step", junk),
    "cancel_execution source": lambda engine, handle, junk: engine.cancel_execution(
        CancelExecutionArgs(execution_id=handle.execution_id, source=junk)
    ),
    "cancel_execution reason": lambda engine, handle, junk: engine.cancel_execution(
        CancelExecutionArgs(execution_id=handle.execution_id, reason=junk)
    ),
    "revoke_lease expected_lease_id": lambda engine, handle, junk: engine.revoke_lease(
        RevokeLeaseArgs(execution_id=handle.execution_id, expected_lease_id=junk)
    ),
    "revoke_lease worker_instance_id": lambda engine, handle, junk: engine.revoke_lease(
        RevokeLeaseArgs(execution_id=handle.execution_id, worker_instance_id=junk)
    ),
    **{
        f"{name} args": lambda engine, _, junk, name=name: getattr(engine, name)(junk)
        for name in ("cancel_execution", "change_priority", "replay_execution", "revoke_lease", "register_worker")
    },
    "set_tags tags": lambda engine, handle, junk: engine.set_tags(handle.execution_id, junk),
    "pause_lane": lambda engine, _, junk: engine.pause_lane(junk),
    "resume_lane": lambda engine, _, junk: engine.resume_lane(junk),
    "claim lane": lambda engine, _, junk: engine.claim(
        junk, frozenset(), ClaimPolicy(worker_id="w", worker_instance_id="w")
    ),
    "claim capabilities": lambda engine, _, junk: engine.claim(
        LANE, junk, ClaimPolicy(worker_id="w", worker_instance_id="w")
    ),
    **{
        f"claim {field}": lambda engine, _, junk, field=field: claim_by({field: junk})(engine)
        for field in ("worker_id", "worker_instance_id", "lease")
    },
    **{
        f"claim_many {field}": lambda engine, _, junk, field=field: claiming(**{field: junk})(engine)
        for field in ("limit", "capabilities", "tasks", "claim_id")
    },
    **{
        f"claim_for_worker {field}": lambda engine, _, junk, field=field: reserving(**{field: junk})(engine)
        for field in ("lane", "worker_id", "worker_instance_id", "capabilities", "tasks", "grant", "grant_id")
    },
    **{
        f"claim_resumed_execution {field}": lambda engine, handle, junk, field=field: redeeming(
            "claim_resumed_execution", **{field: junk}
        )(engine, handle.execution_id)
        for field in ("worker_id", "worker_instance_id", "lease", "claim_id")
    },
    **{
        f"register_worker {field}": lambda engine, _, junk, field=field: registering(**{field: junk})(engine)
        for field in attrs.fields_dict(RegisterWorkerArgs)
    },
    **{
        f"publish_tasks {field}": lambda engine, _, junk, field=field: publishing(**{field: junk})(engine)
        for field in attrs.fields_dict(TaskPublication)
    },
    "publish_tasks": lambda engine, _, junk: engine.publish_tasks(junk),
    "publish_tasks keep": lambda engine, _, junk: engine.publish_tasks([TaskPublication(name="a.b", lane="l")], junk),
    "list_tasks name": lambda engine, _, junk: engine.list_tasks(name=junk),
    "heartbeat_worker": lambda engine, _, junk: engine.heartbeat_worker(junk),
    "heartbeat_worker alive_for": lambda engine, _, junk: engine.heartbeat_worker("w1", junk),
    "mark_worker_dead": lambda engine, _, junk: engine.mark_worker_dead(junk),
    "mark_worker_dead reason": lambda engine, _, junk: engine.mark_worker_dead("w1", junk),
    **{
        f"{name} {argument}": lambda engine, _, junk, name=name, argument=argument: getattr(engine, name)(
            **{argument: junk}
        )
        for name, argument in chain(
            (
                (name, "limit")
                for name in (
                    "list_executions",
                    "list_expired_leases",
                    "list_damaged",
                    "list_lanes",
                    "list_workers",
                    "list_schedules",
                    "list_tasks",
                )
            ),
            (
                (name, "cursor")
                for name in (
                    "list_executions",
                    "list_expired_leases",
                    "list_damaged",
                    "list_lanes",
                    "list_workers",
                    "list_schedules",
                    "list_tasks",
                )
            ),
            ((name, "partition") for name in ("list_executions", "list_expired_leases", "list_damaged")),
        )
    },
    "list_executions filter": lambda engine, _, junk: engine.list_executions(filter=junk),
    **{
        f"list_executions filter {field}": lambda engine, _, junk, field=field: engine.list_executions(
            filter=ExecutionFilter(**{field: junk})
        )
        for field in attrs.fields_dict(ExecutionFilter)
    },
    "subscribe_completions cursor": lambda engine, _, junk: subscribing(junk)(engine),
    "subscribe_completions filter": lambda engine, _, junk: subscribing(filter=junk)(engine),
    **{
        f"subscribe_completions filter {field}": lambda engine, _, junk, field=field: subscribing(
            filter=CompletionFilter(**{field: junk})
        )(engine)
        for field in attrs.fields_dict(CompletionFilter)
    },
    "run_upkeep": lambda engine, _, junk: engine.run_upkeep(junk),
    "set_clock": lambda engine, _, junk: engine.set_clock(junk),
    "shutdown_prepare": lambda engine, _, junk: engine.shutdown_prepare(junk),
}
OUTER = Path(str(engine_package.__file__)).parent
RECORDS = OUTER / "types"


def beyond_the_records(trace: TracebackType | None) -> list[str]:
    """Return the files of the engine through which an error came, without those that check what records are made of."""
    files = []
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.is_relative_to(OUTER) and not file.is_relative_to(RECORDS):
            files.append(file.name)
        trace = trace.tb_next
    return files


def attempt(act: Act, dump: Dump) -> None:
    """Attempt a call: it is carried out, or refused as every refusal must be."""
    before = dump()
    caught: EngineError | TypeError
    try:
        act()
    except (EngineError, TypeError) as error:
        caught = error
    else:
        return
    if isinstance(caught, EngineError):
        assert type(caught) is CODES[caught.code].error
        assert caught.code not in ("function_failed", "protocol", "transport")
        assert SECRET not in f"{caught} {caught.details}"
    else:
        # A record that cannot even be made of such a thing.
        assert beyond_the_records(caught.__traceback__) == []
    assert dump() == before


@pytest.mark.parametrize("call", FUZZED)
def test_nonsense_is_refused_like_any_other_mistake(engine: Engine, dump: Dump, call: str) -> None:
    @FUZZING
    @given(junk=JUNK)
    def fuzz(junk: Any) -> None:
        handle = running(engine).handle
        attempt(lambda: FUZZED[call](engine, handle, junk), dump)

    fuzz()


@pytest.mark.parametrize("operation", HOLDING)
def test_a_damaged_handle_is_refused_or_does_what_its_fence_allows(engine: Engine, dump: Dump, operation: str) -> None:
    @FUZZING
    @given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
    def fuzz(at: float, bit: int, cut: bool) -> None:
        data = bytearray(running(engine).handle.to_bytes())
        place = int(at * len(data))
        if cut:
            del data[place:]
        else:
            data[place] ^= 1 << bit
        attempt(lambda: HOLDING[operation](engine, Handle.from_bytes(bytes(data))), dump)

    fuzz()


@pytest.mark.parametrize("secret", [SECRET, [SECRET], bytearray(SECRET, "ascii"), SECRET.encode() * 2**17], ids=type)
def test_no_refusal_repeats_a_payload(engine: Engine, dump: Dump, secret: Any) -> None:
    handle = running(engine).handle
    calls: list[Act] = [
        lambda: engine.create_execution(creation(payload=secret)),
        lambda: engine.complete(handle, secret),
        lambda: engine.record_step(handle, "step", secret),
    ]
    before = dump()
    for call in calls:
        with pytest.raises(EngineError) as caught:
            call()
        assert SECRET not in f"{caught.value} {caught.value!r} {caught.value.details}"
    (refusal,) = engine.complete_many([Completion(handle=handle, payload=secret)])
    assert SECRET not in f"{refusal} {refusal!r}"
    assert dump() == before
