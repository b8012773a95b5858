"""An agent whose worker is killed between any two lines: no recorded step runs again, and the answer is right."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from examples.agent import agent, worker
from flowfabric_worker import Client, Run
from flowfabric_worker.engine.errors import StateError
from flowfabric_worker.engine.types.admin import RevokeLeaseArgs
from tests.support.executions import raw_client, raw_key
from tests.support.servers import ValkeyServer, wait_until
from tests.support.site import ROOT, seeds

STEPS = ["model 0", "weather 0.0", "weather 0.1", "weather 0.2", "model 1", "ask book 1.0", "book 1.0", "model 2"]
ANSWER = r"I looked at 3 cities\. Lugano is booked under number [0-9a-f]{6}\."
KILLS = 4
# Fewer lines than these run in an agent that lives; half of them until it waits.
LINES = 1600
TOKEN = re.compile(r'approve "(ffw1_[\w-]+)"')


@attrs.define
class Stage:
    """A run of the agent, and the workers that it lives through."""

    client: Client
    directory: Path
    run: Run[str]
    is_approved: bool = False

    @property
    def effects(self) -> Counter[str]:
        """How often the effect of each step has happened."""
        path = self.directory / "effects"
        return Counter(path.read_text().splitlines()) if path.exists() else Counter()

    def recorded(self) -> set[str]:
        """Return the steps that the journal holds."""
        engine, partition = self.client.engine, self.run.id.partition_number
        record = raw_client(engine, partition).hgetall(raw_key(engine, partition, f"x:{self.run.id.uuid}"))
        return {field.decode().removeprefix("step:") for field in record if field.startswith(b"step:")}

    def play(self, line: int) -> bool:
        """Run a worker that is killed at a line, or until the agent has ended. Return whether it was killed."""
        with (self.directory / "printed").open("ab") as printed:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.agent_worker", str(self.directory / "effects"), str(line)],
                cwd=ROOT,
                env={**os.environ, "FLOWFABRIC_URL": self.client.url},
                stdout=printed,
            )
            try:
                wait_until(lambda: process.poll() is not None or self._approve_or_end(), "it has ended", 30)
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                return process.wait(10) == -signal.SIGKILL
            finally:
                process.kill()

    def _approve_or_end(self) -> bool:
        """Approve what the agent waits for. Return True if the agent has ended."""
        state = self.run.state()
        if state == "suspended" and not self.is_approved:
            token = TOKEN.findall((self.directory / "printed").read_text())[-1]
            self.client.approve(token, True, by="ann")
            self.is_approved = True
        return state is not None and state.is_terminal

    def free(self) -> None:
        """Make the work of a killed worker ready, as the end of its lease would."""
        with contextlib.suppress(StateError):
            self.client.engine.revoke_lease(RevokeLeaseArgs(execution_id=self.run.id))


@pytest.fixture
def stage(server: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("AGENT_BOOKINGS", str(tmp_path / "bookings"))
    with Client(server.url) as client:
        worker.url = server.url
        try:
            yield Stage(client, tmp_path, agent.options(max_reclaims=99).submit("Where?"))
        finally:
            worker.close()
            worker.url = None


def test_an_agent_that_lives_makes_each_effect_once(stage: Stage) -> None:
    assert not stage.play(0)

    assert re.fullmatch(ANSWER, stage.run.result(0))
    *steps, lines = stage.effects.elements()
    assert Counter(steps) == Counter(STEPS)
    assert LINES / 2 < int(lines.removeprefix("lines ")) < LINES


@pytest.mark.parametrize("seed", seeds(3))
def test_a_killed_agent_answers_right_and_repeats_no_recorded_step(stage: Stage, seed: int) -> None:
    draw, killed = random.Random(seed), 0
    seen: list[tuple[set[str], Counter[str]]] = []
    deadline = time.monotonic() + 60
    while not (state := stage.run.state()) or not state.is_terminal:
        assert time.monotonic() < deadline
        was_killed = stage.play(draw.randint(1, LINES // 2) if killed < KILLS else 0)
        killed += was_killed
        seen.append((stage.recorded(), stage.effects))
        stage.free()

    effects = stage.effects
    assert killed
    assert re.fullmatch(ANSWER, stage.run.result(0))
    assert len(list((stage.directory / "bookings").iterdir())) == 1
    for recorded, then in seen:
        assert {step: effects[step] for step in recorded} == {step: then[step] for step in recorded}
    assert all(1 <= effects[step] <= 1 + killed for step in STEPS)
