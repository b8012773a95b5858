"""The search for leaked tokens and secrets finds each of them in each place, and is at work in this session."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import closing
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import FlowFabricError, ValidationError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.waitpoint_tokens import to_bearer
from tests.support.executions import created
from tests.support.leaks import LEAKS, Leaks, judge
from tests.support.suspension_operations import SUSPENSION_OPERATIONS
from tests.support.suspensions import suspended
from tests.support.tickers import START

SECRET = secrets.token_bytes(32)
DIGEST = secrets.token_hex(32)


@pytest.fixture
def leaks() -> Leaks:
    leaks = Leaks()
    leaks.know(SECRET, DIGEST)
    return leaks


LEAKING = {
    "a token": f"k1:{DIGEST}",
    "the beginning of a digest": f"token {DIGEST[:17]}",
    "the end of a digest": f"...{DIGEST[-17:]}.",
    "a digest beside other digits": f"00{DIGEST}ff",
    "a secret in digits": SECRET.hex(),
    "a part of a secret in digits": SECRET.hex()[10:30],
    "the repr of a secret": repr(SECRET),
    "a bearer's token": "ffw1_" + "A" * 60,
}


@pytest.mark.parametrize("text", LEAKING.values(), ids=LEAKING.keys())
def test_a_leak_is_found(leaks: Leaks, text: str) -> None:
    leaks.note("somewhere", text)

    assert [each.partition(":")[0] for each in leaks.found()] == ["somewhere"]
    assert leaks.found() == []


HARMLESS = {
    "half of a digest": DIGEST[:16],
    "a kid": "k1",
    "a token that was cut": "ffw1_...",
    "other digits": secrets.token_hex(32),
    "an execution id": str(ExecutionId.mint(1)),
}


# The names of cases are alike in every process that runs tests.
@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_may_be_shown_is_no_leak(leaks: Leaks, text: str) -> None:
    assert leaks.found([("somewhere", text)]) == []


def report(*sections: tuple[str, str]) -> pytest.TestReport:
    made = pytest.TestReport("a test", ("file", 1, "test"), {}, "passed", None, "call")
    made.sections = [*sections]
    return made


def test_a_test_that_logs_a_token_fails(store: Engine) -> None:
    _, waitpoint = suspended(store)
    good, bad = report(("Captured log call", "a token")), report(("Captured log call", waitpoint.token))

    judge(good)
    judge(bad)

    assert (good.passed, bad.passed) == (True, False)
    assert waitpoint.token[3:] not in str(bad.longrepr)


def test_errors_and_results_of_operations_are_searched(store: Engine) -> None:
    execution, waitpoint = suspended(store)
    LEAKS.found()

    ValidationError(message=f"It is {waitpoint.token}.")
    FlowFabricError(to_bearer(execution, waitpoint.waitpoint_id, waitpoint.token))

    # What a bearer has is taken out of the text of every error; the parts that the engine takes are not.
    assert len(LEAKS.found()) == 1
    searched = LEAKS.texts
    store.list_suspended(execution.partition_number)
    assert LEAKS.found() == []
    assert LEAKS.texts == searched + 1


@pytest.fixture
def store() -> Iterator[Engine]:
    with closing(open_engine(f"memory://{uuid4()}")) as engine:
        engine.prepare(testing=True)
        # The moment from which the operations move the clock on.
        engine.set_clock(START)
        yield engine


@pytest.mark.parametrize("name", SUSPENSION_OPERATIONS)
def test_no_operation_logs_or_shows_a_token_or_a_secret(
    store: Engine, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    searched = LEAKS.texts
    with caplog.at_level(logging.DEBUG):
        act = SUSPENSION_OPERATIONS[name](store)
        result = act()
    created(store)

    assert LEAKS.found([(name, f"{caplog.text} {result!r} {result}")]) == []
    assert LEAKS.texts > searched
    assert LEAKS.tokens
