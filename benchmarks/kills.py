"""The kill table: workers of every peer are killed, or told to stop, in the middle of their work."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import attrs
import click

from benchmarks import journal
from benchmarks.comparison import Tell
from benchmarks.environments import Script, ask, python_for, surroundings
from benchmarks.journal import Killed, Line, Stopped
from benchmarks.peers.flowfabric import SHORT_LEASE
from benchmarks.peers.tasks import JOURNAL, SLOW_SECONDS
from benchmarks.report import NOTHING, Table, number, verdict
from benchmarks.rows import OURS
from benchmarks.server import Server
from benchmarks.workers import WorkerProcess, started

TASKS: Final = 200
WITHIN: Final = SHORT_LEASE + 2.0
_QUARTER = TASKS // 4
_QUARTER_WITHIN = 60.0
# A stopped worker hands back what it has: after this long without a word nothing more comes.
_SILENCE = 15.0
_POLL = 0.02
# Most of a trial is waiting for tasks that sleep, or for those that never come back.
_AT_ONCE = 8


@attrs.frozen(kw_only=True)
class Case:
    """A peer in one of its settings.

    Attributes:
        script: the peer's name.
        variant: its setting; "" for the usual one.
        another: a second worker is alive all the time, and none is started again.
    """

    script: str
    title: str
    variant: str = ""
    another: bool = False


CASES: Final = (
    Case(script=OURS, title=f"{OURS}, lease {SHORT_LEASE} s, restarted", variant="short lease"),
    Case(script=OURS, title=f"{OURS}, lease {SHORT_LEASE} s, another alive", variant="short lease", another=True),
    Case(script="celery", title="celery, acks_late"),
    Case(script="celery", title="celery, early acknowledgement", variant="early"),
    Case(script="dramatiq", title="dramatiq"),
    Case(script="huey", title="huey"),
    Case(script="rq", title="rq, pool of 8, retries left"),
)


@attrs.frozen(kw_only=True)
class Trial:
    """What one trial of both kinds gave."""

    killed: Killed
    stopped: Stopped


@attrs.frozen(kw_only=True)
class Site:
    """A server with the tasks in it, and what its workers write down."""

    case: Case
    command: list[str]
    environment: Mapping[str, str]
    folder: Path

    @property
    def _journal(self) -> Path:
        return self.folder / "journal"

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    @contextmanager
    def worker(self) -> Iterator[WorkerProcess]:
        with started(self.command, {**self.environment, JOURNAL: str(self._journal)}, self._log) as worker:
            yield worker

    def lines(self) -> list[Line]:
        return journal.read(self._journal.read_text("utf-8")) if self._journal.exists() else []

    def await_quarter(self) -> None:
        """Return at a random moment after a quarter of the tasks has ended."""
        deadline = time.monotonic() + _QUARTER_WITHIN
        while len(journal.ended(self.lines())) < _QUARTER:
            if time.monotonic() > deadline:
                said = self._log.read_text("utf-8", "replace")
                raise click.ClickException(f"A worker of {self.case.title} does not get on. It said:\n{said}")
            time.sleep(_POLL)
        time.sleep(random.uniform(0, SLOW_SECONDS))

    def await_all(self, wait_seconds: float, silence: float | None = None) -> None:
        """Return when every task has ended, after so many seconds, or when nothing was written for `silence` s."""
        deadline = time.monotonic() + wait_seconds
        known, spoken = 0, time.monotonic()
        while len(journal.ended(lines := self.lines())) < TASKS and time.monotonic() < deadline:
            if len(lines) != known:
                known, spoken = len(lines), time.monotonic()
            elif silence is not None and time.monotonic() - spoken > silence:
                return
            time.sleep(_POLL)


def table(chosen: Collection[Script], *, rounds: int, wait_seconds: float, cache: Path, tell: Tell) -> Table:
    """Try every case of the peers, several at the same time, each on a server of its own.

    Args:
        rounds: how many trials of each case.
        wait_seconds: how many seconds after a kill a task is looked for before it is called missing.
        cache: where the peers' environments are kept.
        tell: is told how far it is.
    """
    scripts = {script.name: script for script in chosen}
    cases = [case for case in CASES if case.script in scripts]
    pythons = {name: python_for(script, cache) for name, script in scripts.items()}
    plan = [case for _ in range(rounds) for case in cases]

    def trial(case: Case) -> Trial:
        result = _trial(case, scripts[case.script], pythons[case.script], wait_seconds)
        tell(f"Killed and stopped: {case.title}")
        return result

    tell(f"Killing and stopping workers, {len(plan)} trials")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        trials = list(pool.map(trial, plan))
    return table_of(
        {case: [each for tried, each in zip(plan, trials, strict=True) if tried == case] for case in cases},
        wait_seconds,
    )


def _trial(case: Case, script: Script, python: Path, wait_seconds: float) -> Trial:
    with _site(case, script, python) as site:
        killed = _kill(site, wait_seconds)
    with _site(case, script, python) as site:
        return Trial(killed=killed, stopped=_stop(site, wait_seconds))


@contextmanager
def _site(case: Case, script: Script, python: Path) -> Iterator[Site]:
    """Provide a site whose tasks are submitted."""
    with Server() as server, tempfile.TemporaryDirectory() as folder:
        ask(script, python, "slow", TASKS, server.url, variant=case.variant)
        (command,) = ask(script, python, "commands", 0, server.url, variant=case.variant)["commands"]
        environment = surroundings(server.url, case.variant)
        yield Site(case=case, command=command, environment=environment, folder=Path(folder))


def _kill(site: Site, wait_seconds: float) -> Killed:
    """Kill a worker when it is busy."""
    with ExitStack() as stack:
        survivors = {stack.enter_context(site.worker()).pid} if site.case.another else set()
        doomed = stack.enter_context(site.worker())
        site.await_quarter()
        doomed.kill()
        at = time.time()
        if not site.case.another:
            stack.enter_context(site.worker())
        site.await_all(wait_seconds)
    return journal.killed(site.lines(), TASKS, at=at, survivors=survivors)


def _stop(site: Site, wait_seconds: float) -> Stopped:
    """Tell a worker to stop when it is busy."""
    with ExitStack() as stack:
        if site.case.another:
            stack.enter_context(site.worker())
        told = stack.enter_context(site.worker())
        site.await_quarter()
        seconds = told.terminate()
        if not site.case.another:
            stack.enter_context(site.worker())
        site.await_all(wait_seconds, _SILENCE)
    return journal.stopped(site.lines(), TASKS, seconds)


def table_of(trials: Mapping[Case, Sequence[Trial]], wait_seconds: float) -> Table:
    """Return what the trials gave, and whether ours did what it must."""
    return Table(
        title="Workers killed and stopped",
        headings=[
            "worker",
            "trials",
            "in flight at the kill",
            f"missing after {wait_seconds:g} s",
            "nothing missing after, s",
            "begun again",
            "ended twice",
            "lost at SIGTERM",
            "ended twice at SIGTERM",
            "stopped after, s",
            "reached",
        ],
        rows=[_row(case, each) for case, each in trials.items()],
        notes=[
            f"{TASKS} tasks of {SLOW_SECONDS * 1000:g} ms; a worker runs 8 at a time, and is killed with all its "
            "processes, or told to stop, when a quarter is done; unless another one is alive, it is started again at "
            f"once. Up to {_AT_ONCE} trials at the same time.",
            "Counted by what the tasks write down; smallest and largest of the trials. In flight: had begun and not "
            "ended. Lost at SIGTERM: not ended when nothing had happened for "
            f"{_SILENCE:g} s, whether or not it would come back later.",
            f"Ours must have nothing missing within {WITHIN:g} s (lease + 2), begin again exactly what was in flight, "
            "and lose or repeat nothing at SIGTERM. What ended in the last "
            f"{journal.UNSETTLED_SECONDS * 1000:g} ms before a kill may run again: its outcome may not be stored yet.",
        ],
    )


def _row(case: Case, trials: Sequence[Trial]) -> list[str]:
    def span(what: Callable[[Trial], float]) -> str:
        return _span(what(trial) for trial in trials)

    whole = [trial.killed.whole_after for trial in trials if trial.killed.whole_after is not None]
    reached = [trial.killed.reaches(WITHIN) and trial.stopped.reaches() for trial in trials]
    return [
        case.title,
        str(len(trials)),
        span(lambda trial: len(trial.killed.interrupted)),
        span(lambda trial: len(trial.killed.missing)),
        # Of three trials of which one is never whole, the others' times would flatter.
        _span(whole) if len(whole) == len(trials) else NOTHING,
        span(lambda trial: len(trial.killed.again)),
        span(lambda trial: len(trial.killed.twice)),
        span(lambda trial: len(trial.stopped.lost)),
        span(lambda trial: len(trial.stopped.twice)),
        span(lambda trial: trial.stopped.seconds),
        verdict(reached) if case.script == OURS else NOTHING,
    ]


def _span(values: Iterable[float]) -> str:
    """Return the smallest and the largest of some values; one of them if they are printed alike."""
    ordered = sorted(values)
    return " to ".join(dict.fromkeys(number(value) for value in (ordered[0], ordered[-1])))
