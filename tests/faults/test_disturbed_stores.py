"""A store that answers and cannot serve is disturbed: callers are told to try again, and no outcome is lost."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import closing
from datetime import timedelta

import pytest
import redis

from flowfabric_worker import Runtime, Worker, WorkerSettings
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.stores.base import Call
from flowfabric_worker.engine.stores.driver_errors import translate
from tests.support import disturbances as disturbing
from tests.support.disturbances import Disturbance
from tests.support.engines import opened
from tests.support.executions import created
from tests.support.servers import PATIENCE, ValkeyServer, wait_until

AT_ONCE = 8

WORDS = {
    "BUSY": "store_busy",
    "CLUSTERDOWN": "store_busy",
    "LOADING": "store_busy",
    "MASTERDOWN": "store_busy",
    "MISCONF": "store_busy",
    "NOREPLICAS": "store_busy",
    "OOM": "store_full",
    "READONLY": "store_busy",
    "TRYAGAIN": "store_busy",
    "UNBLOCKED": "store_busy",
    "UNKILLABLE": "store_busy",
}
FULL_DISK = "MISCONF Errors writing to the AOF file: No space left on device"


def understood(answer: str) -> EngineError:
    """Return what the engine makes of an error with which a server answers."""
    error = redis.connection.DefaultParser.parse_error(answer)
    return translate(error, "here", "valkey")


@pytest.mark.parametrize(
    "form",
    [
        "{word} is the word",
        "EXECABORT Transaction discarded because of: {word} is the word",
        "ERR Error running script (call to f_1): @user_script:7: -{word} is the word",
        "ERR user_function:12: {word} is the word script: ff1, on @user_function:12.",
    ],
    ids=["plain", "transaction", "script", "function"],
)
@pytest.mark.parametrize("word", WORDS)
def test_a_disturbance_is_known_by_its_word_wherever_it_stands(word: str, form: str) -> None:
    error = understood(form.format(word=word))

    assert (error.code, error.retryable) == (WORDS[word], True)


@pytest.mark.parametrize(
    ("answer", "code", "retryable"),
    [
        ("EXECABORT Transaction discarded because of previous errors.", "store_busy", True),
        (FULL_DISK, "store_full", True),
        ("ERR max number of clients reached", "store_busy", True),
        ("ERR user_function:3: attempt to index a nil value", "function_failed", False),
        ("ERR user_function:3: bad field 'BUSY'", "function_failed", False),
        ("BUSYKEY Target key name already exists.", "function_failed", False),
        ("DENIED running in protected mode", "permission_denied", False),
        ("NOPERM this user has no permissions", "permission_denied", False),
        ("WRONGPASS invalid username-password pair", "authentication_failed", False),
    ],
)
def test_an_answer_is_retryable_only_if_the_store_may_recover(answer: str, code: str, retryable: bool) -> None:
    error = understood(answer)

    assert (error.code, error.retryable) == (code, retryable)


@pytest.mark.parametrize(
    ("disturb", "code"),
    [
        (disturbing.failing_saves, "store_busy"),
        (disturbing.missing_replicas, "store_busy"),
        (disturbing.demoted, "store_busy"),
        (disturbing.cut_off, "store_busy"),
        (disturbing.endless_script, "store_busy"),
        (disturbing.full, "store_full"),
    ],
)
def test_a_call_to_a_disturbed_store_may_be_repeated(server: ValkeyServer, disturb: Disturbance, code: str) -> None:
    with opened(server.url, retry_for=0) as engine:
        kept = created(engine)
        writing = [Call("create", 0, [])] * 2
        with disturb(server):
            with pytest.raises(EngineError) as caught:
                created(engine)
            answers = engine.store.call_many(writing)

        assert (caught.value.code, caught.value.retryable) == (code, True)
        for answer in answers:
            assert isinstance(answer, EngineError)
            assert (answer.code, answer.retryable) == (code, True)
        created(engine)
        assert engine.describe_execution(kept) is not None


def test_a_server_that_became_a_replica_loses_its_connections(server: ValkeyServer) -> None:
    with opened(server.url, retry_for=0) as engine:
        created(engine)
        clients = {each["id"] for each in server.client().client_list(_type="normal")}
        with disturbing.demoted(server), pytest.raises(EngineError):
            created(engine)
        created(engine)

        new = {each["id"] for each in server.client().client_list(_type="normal")}
        assert not clients & new


@pytest.mark.parametrize(
    ("disturb", "word"),
    [
        (disturbing.failing_saves, "MISCONF"),
        (disturbing.missing_replicas, "NOREPLICAS"),
        (disturbing.demoted, "READONLY"),
    ],
)
def test_work_that_ends_while_its_store_is_disturbed_runs_once(
    server: ValkeyServer, disturb: Disturbance, word: str
) -> None:
    begun: Counter[int] = Counter()
    go_on = threading.Event()
    worker = Worker("disturbed", server.url)

    @worker.task
    def work(number: int) -> int:
        begun[number] += 1
        go_on.wait(PATIENCE)
        return number

    def refusals() -> int:
        return int(server.client().info("errorstats").get(f"errorstat_{word}", {}).get("count", 0))

    with closing(worker):
        runtime = Runtime(worker, WorkerSettings(threads=AT_ONCE, lease=timedelta(seconds=30)))
        runtime.start()
        try:
            runs = work.submit_many((number,) for number in range(AT_ONCE))
            wait_until(lambda: len(begun) == AT_ONCE, "all have begun")
            with disturb(server):
                before = refusals()
                go_on.set()
                wait_until(lambda: refusals() >= before + 5, "the results were refused")
            assert [run.result(PATIENCE) for run in runs] == list(range(AT_ONCE))
        finally:
            go_on.set()
            runtime.stop()

    assert set(begun.values()) == {1}
