"""examples/agent.py does what it says: as a newcomer runs it, and when it is rejected or cancelled."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from examples.agent import agent, worker
from flowfabric_worker import Client, Worker
from flowfabric_worker.engine.errors import StateError
from tests.support.cli import ROOT
from tests.support.servers import wait_until

ANSWER = r"I looked at 3 cities\. Lugano is booked under number [0-9a-f]{6}\."
APPROVE = re.compile(r'approve "(ffw1_[\w-]+)"')


@pytest.fixture
def bookings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide the directory in which the railway keeps its bookings."""
    monkeypatch.setenv("AGENT_BOOKINGS", str(tmp_path / "bookings"))
    return tmp_path / "bookings"


@pytest.fixture
def flowfabric(bookings: Path) -> Iterator[Worker]:
    with worker.in_memory():
        yield worker


def booked(bookings: Path) -> list[str]:
    return [each.read_text() for each in bookings.iterdir()] if bookings.exists() else []


def token_in(text: str) -> str:
    (token,) = APPROVE.findall(text)
    return str(token)


def test_an_approved_booking_is_made_and_answered(
    flowfabric: Worker, bookings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = agent.submit("Where?")
    flowfabric.run_until_idle()
    assert (run.state(), booked(bookings)) == ("suspended", [])

    with Client(flowfabric.url) as client:
        client.approve(token_in(capsys.readouterr().out), True, by="ann")
    flowfabric.run_until_idle()

    assert re.fullmatch(ANSWER, run.result(0))
    assert booked(bookings) == ["Lugano"]


def test_a_rejected_booking_is_not_made_and_the_model_is_told(
    flowfabric: Worker, bookings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = agent.submit("Where?")
    flowfabric.run_until_idle()

    with Client(flowfabric.url) as client:
        client.approve(token_in(capsys.readouterr().out), False, by="ann", reason="too far")
    flowfabric.run_until_idle()

    assert run.result(0) == "I looked at 3 cities. Lugano is not booked: ann says 'too far'."
    assert booked(bookings) == []


def test_a_late_approval_of_a_cancelled_agent_does_nothing(
    flowfabric: Worker, bookings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = agent.submit("Where?")
    flowfabric.run_until_idle()
    run.cancel("it rains")

    with Client(flowfabric.url) as client, pytest.raises(StateError) as late:
        client.approve(token_in(capsys.readouterr().out), True, by="ann")
    flowfabric.run_until_idle()

    assert (late.value.code, late.value.details["why"]) == ("waitpoint_closed", "cancelled")
    assert (run.state(), booked(bookings)) == ("cancelled", [])


def started(*command: str, output: IO[Any], url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, "FLOWFABRIC_URL": url}, stdout=output
    )


def test_the_agent_runs_as_its_page_says(bookings: Path, embedded_directory: Path, tmp_path: Path) -> None:
    url, printed = f"embedded://{embedded_directory}?prefix=agent", tmp_path / "worker.log"
    with printed.open("wb") as log:
        process = started("-m", "flowfabric_worker", "run", "examples.agent:worker", output=log, url=url)
        user = started("-m", "examples.agent", output=subprocess.PIPE, url=url)  # type: ignore[arg-type]  # a pipe
        try:
            wait_until(lambda: APPROVE.search(printed.read_text()), "the agent asks", 30)
            (command,) = re.findall(r"python (-m flowfabric_worker approve .*)", printed.read_text())
            decided = started(*shlex.split(command.replace("YOU", "ann")), output=subprocess.DEVNULL, url=url)  # type: ignore[arg-type]
            assert decided.wait(30) == 0
            said = user.communicate(timeout=30)[0].decode().splitlines()
        finally:
            for each in (process, user):
                each.kill()
                each.wait()

    assert said[1:3] == ["agent: I look at the weather.", "agent: Lugano is warmest: I book a seat."]
    assert re.fullmatch(f"The answer: {ANSWER}", said[-1])
    assert booked(bookings) == ["Lugano"]
