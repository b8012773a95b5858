"""A worker that is killed amid a flow with children: another one finishes it, and nothing ends or starts twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.flows import FlowState
from flowfabric_worker.engine.types.states import TerminalOutcome
from tests.support.family_worker import EXECUTIONS, RESULT, Journal, family_of
from tests.support.site import ROOT, seeds

# The lines that the handlers write in any case before the last node begins.
LINES = 2 * (EXECUTIONS - 1)
# Seconds for what takes one or two on a machine that does nothing else.
PATIENCE = 60.0

Play = Callable[[int], "subprocess.Popen[bytes]"]


@pytest.fixture(params=["embedded", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Provide the URL of an empty store that survives its workers."""
    if request.param == "embedded":
        return f"embedded://{tmp_path}/store"
    return f"{request.getfixturevalue('postgres').url}&schema=t{uuid4().hex[:12]}"


@pytest.fixture
def play(url: str, tmp_path: Path) -> Iterator[Play]:
    """Start workers that are killed after so many lines, or live."""
    started = []

    def play(line: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.support.family_worker", url, str(tmp_path / "journal"), str(line)]
        started.append(subprocess.Popen(command, cwd=ROOT))
        return started[-1]

    yield play
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("seed", seeds(2))
def test_a_flow_of_a_killed_worker_is_finished_and_nothing_ends_twice(
    url: str, tmp_path: Path, play: Play, seed: int
) -> None:
    journal = Journal(tmp_path / "journal")
    worker, flow = family_of(url, journal)
    run = flow.submit()
    doomed = play(random.Random(seed).randint(1, LINES))
    assert doomed.wait(PATIENCE) == -signal.SIGKILL
    play(0)

    assert run.result(PATIENCE) == RESULT
    assert run.state() is FlowState.COMPLETED
    events = list(worker.engine.subscribe_completions(timeout=timedelta(0)))
    infos = [worker.engine.read_execution_info(event.execution_id) for event in events]
    worker.close()

    assert Counter(event.outcome for event in events) == {TerminalOutcome.SUCCESS: EXECUTIONS}
    assert len({event.execution_id for event in events}) == EXECUTIONS
    begun, ended = journal.counted("begin"), journal.counted("end")
    assert {ExecutionId.parse(each) for each in begun} == {event.execution_id for event in events}
    reclaims = {str(info.execution_id): info.reclaim_count for info in infos if info is not None}
    parents = {str(info.execution_id) for info in infos if info is not None and info.task == "family.family"}
    assert len(parents) == 2
    assert sum(reclaims.values()) > 0
    for key, times in begun.items():
        # A handler that waits for its children begins once more in each of its lives.
        assert times <= (1 + reclaims[key]) * (2 if key in parents else 1)
        assert 1 <= ended[key] <= 1 + reclaims[key]
