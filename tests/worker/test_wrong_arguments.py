"""Arguments of a client that cannot be used are refused with a typed error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from flowfabric_worker import Client, ValidationError, Worker
from flowfabric_worker.engine.ids import uuid7
from flowfabric_worker.run import Run

WRONG: dict[str, Callable[[Client, Run[Any]], object]] = {
    "a timeout without a number": lambda _, run: run.result(math.nan),
    "an endless timeout": lambda _, run: run.result(math.inf),
    "a timeout that no clock counts": lambda _, run: run.result(10**40),
    "a timeout in words": lambda _, run: run.stream(timeout="soon"),  # type: ignore[call-overload]
    "a timeout of a flow in words": lambda client, _: client.flow_run(str(uuid7())).result("soon"),  # type: ignore[arg-type]
    "a filter that is none": lambda client, _: client.completions(filter=True),  # type: ignore[arg-type]
    "limits that are none": lambda client, _: client.create_budget("team", 5),  # type: ignore[arg-type]
    "soft limits that are none": lambda client, _: client.create_budget("team", {"a": 5}, soft="a"),  # type: ignore[arg-type]
    "an action that is none": lambda client, _: client.create_budget("team", {"a": 5}, on_hard_limit="explode"),
    "tags that are none": lambda client, _: client.flow("graph", tags=["a"]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("call", WRONG.values(), ids=list(WRONG))
def test_a_wrong_argument_of_a_client_is_refused(worker: Worker, call: Callable[[Client, Run[Any]], object]) -> None:
    @worker.task
    def wait() -> None: ...

    run = wait.submit()

    with Client(worker.url) as client, pytest.raises(ValidationError):
        call(client, run)
