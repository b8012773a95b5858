"""tail: the values of a run, live and after, from a cursor, and over what goes wrong."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.streams import BestEffortLiveConfig, StreamMode
from tests.support.cli import ROOT, UNKNOWN_ID, Process, cli, ok, on_terminal, serving, submitted
from tests.support.cli_suspensions import claimed
from tests.support.servers import ValkeyServer, running, wait_until
from tests.support.streams import frame

pytestmark = pytest.mark.usefixtures("url")

Start = Callable[..., Process]


def emitted(client: Client, found: Claimed, *texts: str) -> None:
    for text in texts:
        client.engine.append_frame(found.handle, frame(text))


def counted(url: str, last: int = 3) -> str:
    """Return a run that has emitted the numbers up to the last one."""
    execution_id = submitted("count", last, "--lane", "streams")
    with serving(url):
        ok("result", execution_id)
    return execution_id


def test_tail_prints_what_was_emitted_and_ends(url: str) -> None:
    execution_id = counted(url)

    ran = ok("tail", execution_id)

    assert ran.out == "1\n2\n3\n"
    assert ran.err == f"{execution_id} is completed.\n"


def test_tail_in_json_gives_each_value_its_cursor_to_continue_from(url: str) -> None:
    execution_id = counted(url)

    documents = ok("tail", execution_id, "--json").documents
    rest = ok("tail", execution_id, "--from", documents[0]["cursor"], "--json")

    assert [(each["value"], each["attempt"], each["live"]) for each in documents] == [(n, 0, False) for n in (1, 2, 3)]
    assert rest.documents == documents[1:]
    assert rest.err == ""
    assert ok("tail", execution_id, "--from", documents[-1]["cursor"]).out == ""


def test_tail_marks_where_another_attempt_begins(url: str) -> None:
    execution_id = submitted("tell", '"hello"', "--lane", "streams", "--retries", 1)
    with serving(url):
        ran = ok("tail", execution_id)

    documents = ok("tail", execution_id, "--json").documents

    assert ran.out == "hello\nhello\n"
    assert ran.err.splitlines()[0] == "-- Attempt 1 begins."
    assert [each.get("mark", each.get("value")) for each in documents] == ["hello", "attempt", "hello"]
    assert ok("tail", execution_id, "--from", documents[1]["cursor"], "--json").documents == documents[2:]


def test_tail_marks_where_live_values_were_dropped(client: Client) -> None:
    found = claimed(client)
    few = BestEffortLiveConfig(maxlen_floor=1, maxlen_ceiling=2)
    for number in range(9):
        live = frame(str(number), mode=StreamMode.BEST_EFFORT_LIVE, live=few)
        client.engine.append_frame(found.handle, live)
    client.engine.complete(found.handle)

    ran, documents = ok("tail", found.execution_id.plain), ok("tail", found.execution_id.plain, "--json").documents

    assert ran.err.splitlines()[0] == "-- Live values were dropped here."
    assert documents[0]["mark"] == "dropped"
    assert documents[-1]["value"] == "8"


def test_tail_shows_values_while_they_are_made(client: Client, start: Start) -> None:
    found = claimed(client)
    process = start("tail", found.execution_id.plain)
    for text in ("first", "second"):
        emitted(client, found, text)
        process.await_log(text)

    client.engine.complete(found.handle)

    assert process.wait() == 0
    assert process.log == f"first\nsecond\n{found.execution_id.plain} is completed.\n"


def test_ctrl_c_ends_a_tail_and_says_where_to_continue(client: Client, start: Start) -> None:
    found = claimed(client)
    emitted(client, found, "first")
    process = start("tail", found.execution_id.plain)
    process.await_log("first")

    process.signal(signal.SIGINT)

    assert process.wait() == 130
    (said,) = re.findall(r"flowfabric-worker (tail .*)", process.log)
    assert "Traceback" not in process.log
    emitted(client, found, "second")
    client.engine.complete(found.handle)
    assert ok(*said.split()).out == "second\n"


def test_ctrl_c_before_the_first_value_says_nothing(client: Client, start: Start) -> None:
    run = client.submit("add")
    process = start("tail", run.id.plain)
    wait_until(lambda: client.engine.read_execution_state(run.id) is not None, "it is there", 5)
    process.signal(signal.SIGINT)

    assert process.wait() != 0
    assert "Continue with" not in process.log


def pipeline(url: str, execution_id: str, *options: str) -> subprocess.Popen[str]:
    """Start a tail whose output is a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "flowfabric_worker", "tail", execution_id, "--url", url, *options],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_tail_whose_pipe_is_closed_ends_also_while_nothing_comes(
    client: Client, url: str, options: list[str]
) -> None:
    found = claimed(client)
    emitted(client, found, "first")
    with pipeline(url, found.execution_id.plain, *options) as process:
        assert process.stdout is not None
        assert "first" in process.stdout.readline()
        process.stdout.close()

        assert process.wait(20) in (0, 1)
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    """Provide a server that keeps what it acknowledged."""
    with running(ValkeyServer("--appendonly", "yes", "--appendfsync", "always")) as server:
        yield server


def test_a_tail_lives_through_a_restart_of_its_store(server: ValkeyServer) -> None:
    with Client(server.url) as client:
        found = claimed(client)
        emitted(client, found, "before")
        with pipeline(server.url, found.execution_id.plain) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "before\n"
            server.stop()
            server.start()
            wait_until(lambda: _is_back(client), "the store is back", 20)
            emitted(client, found, "after")
            client.engine.complete(found.handle)

            assert process.stdout.read() == "after\n"
            assert process.wait(20) == 0


def test_a_tail_says_that_its_store_is_away_and_ctrl_c_still_ends_it(server: ValkeyServer) -> None:
    with Client(server.url) as client:
        found = claimed(client)
        emitted(client, found, "before")
        with pipeline(server.url, found.execution_id.plain) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "before\n"
            server.kill()
            assert "does not answer" in process.stderr.readline()

            process.send_signal(signal.SIGINT)

            assert process.wait(20) == 130
            (said,) = process.stderr.read().splitlines()
            assert said.startswith("Continue with: flowfabric-worker tail ")


def _is_back(client: Client) -> bool:
    try:
        client.engine.ping()
    except Exception:  # noqa: BLE001  whatever a store says that is not there
        return False
    return True


HOSTILE = "a\x1b[31mb\u202ec\r\n\x07d"


def test_hostile_values_do_not_reach_the_terminal(client: Client, url: str) -> None:
    found = claimed(client)
    client.engine.append_frame(found.handle, frame(HOSTILE))
    client.engine.complete(found.handle)

    for arguments in ([], ["--json"]):
        text = on_terminal("tail", found.execution_id.plain, *arguments, url=url)
        assert not re.search("[\x1b\x07\u202e]", text)
        assert "\\u202e" in text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([UNKNOWN_ID], 1, "does not exist"),
        (["abc"], 2, "abc"),
        ([UNKNOWN_ID, "--from", "x"], 2, "cursor"),
        ([UNKNOWN_ID, "--url", "valkey://127.0.0.1:1"], 3, "cannot be reached"),
    ],
)
def test_what_cannot_be_tailed_is_one_sentence(arguments: list[str], code: int, said: str) -> None:
    ran = cli("tail", *arguments)

    assert ran.code == code
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_cursor_of_another_run_is_refused(url: str) -> None:
    one, other = counted(url), counted(url)
    cursor = ok("tail", one, "--json").documents[0]["cursor"]

    ran = cli("tail", other, "--from", cursor, "--json")

    document: dict[str, Any] = json.loads(ran.err)
    assert (ran.code, document["code"]) == (2, "invalid_cursor")
