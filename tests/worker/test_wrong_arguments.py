"""Arguments of a client that cannot be used are refused with a typed error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from flowfabric_worker import Client, ValidationError, Worker
from flowfabric_worker._tasks.options import TaskOptions
from flowfabric_worker.config import WorkerSettings
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


# Values that no option takes, by option.
_WRONG_OPTIONS: dict[str, object] = {
    "lane": 5, "retry": 3, "timeout": "x", "deadline": 1.5, "priority": "high", "delay": "soon", "at": "noon", "key": 5,
    "on_conflict": "replace", "unique": "always", "tags": ["a"], "headers": 3, "requires": 3, "budgets": 3, "quota": 3,
    "rate": 3, "concurrency": "many", "limit_by": "user", "lease": 30, "codec": 3, "retention": 60, "max_reclaims": "x",
    "permanent": ValueError, "interrupt": "yes", "every": 5, "cron": 5, "timezone": 3, "missed": 3,
}  # fmt: skip


@pytest.mark.parametrize("option", _WRONG_OPTIONS)
def test_a_wrong_option_of_a_task_is_refused_in_one_sentence(worker: Worker, option: str) -> None:
    with pytest.raises((ValidationError, TypeError, ValueError)) as raised:
        worker.task(name="wrong", **{option: _WRONG_OPTIONS[option]})(lambda: None)

    assert "Attribute(" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "wrong" not in worker.tasks


def test_every_option_of_a_task_has_a_wrong_value_here() -> None:
    assert _WRONG_OPTIONS.keys() == attrs.fields_dict(TaskOptions).keys()


@pytest.mark.parametrize("threads", [0, 1001, "many", True, 1.5])
def test_a_wrong_number_of_threads_is_refused_in_one_sentence(threads: object) -> None:
    with pytest.raises(ValidationError, match=r"WorkerSettings.threads must be"):
        WorkerSettings(threads=threads)  # type: ignore[arg-type]
