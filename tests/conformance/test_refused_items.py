"""An item that its call refuses is answered by itself, and the other items of the call are carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.limits import MIB
from flowfabric_worker.engine.types.attempts import Completion, Failure
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.streams import Frame, FrameAppend
from tests.support.executions import BOOM, queue, request

Send = Callable[[Engine, Sequence[Claimed]], Sequence[Any]]


def completed(engine: Engine, held: Sequence[Claimed]) -> Sequence[Any]:
    payloads = (b"1", bytes(MIB + 1), b"3")
    return engine.complete_many(
        [Completion(handle=each.handle, payload=payload) for each, payload in zip(held, payloads, strict=True)]
    )


def failed(engine: Engine, held: Sequence[Claimed]) -> Sequence[Any]:
    classes: Any = (FailureClass.PERMANENT, "unheard of", FailureClass.PERMANENT)
    return engine.fail_many(
        [
            Failure(handle=each.handle, reason=BOOM, classification=kind)
            for each, kind in zip(held, classes, strict=True)
        ]
    )


def renewed(engine: Engine, held: Sequence[Claimed]) -> Sequence[Any]:
    first, second, third = (each.handle for each in held)
    return engine.renew_many([first, attrs.evolve(second, lease_ttl_ms=0), third])


def released(engine: Engine, held: Sequence[Claimed]) -> Sequence[Any]:
    first, second, third = (each.handle for each in held)
    return engine.release_many([first, attrs.evolve(second, backend="elsewhere"), third])


def appended(engine: Engine, held: Sequence[Claimed]) -> Sequence[Any]:
    appends: list[Any] = [FrameAppend(handle=each.handle, frame=Frame(payload=b"1")) for each in held]
    appends[1] = None
    return engine.append_frames(appends)


@pytest.mark.parametrize(
    ("send", "code"),
    [
        (completed, "payload_too_large"),
        (failed, "invalid_input"),
        (renewed, "invalid_input"),
        (released, "handle_from_other_backend"),
        (appended, "invalid_input"),
    ],
)
def test_a_refused_item_fails_alone(engine: Engine, send: Send, code: str) -> None:
    queue(engine, 3)
    held = engine.claim_many(request(limit=3))

    answers = send(engine, held)

    assert [answer.code if isinstance(answer, EngineError) else None for answer in answers] == [None, code, None]
    assert not isinstance(engine.renew_many([held[1].handle])[0], EngineError)
