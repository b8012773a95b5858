"""The command `demo`: run a small shop, kill one of its workers, and prove that nothing was lost or doubled."""

from __future__ import annotations

import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import quote
from uuid import uuid4

import attrs
import click
from rich.console import Console

from flowfabric_worker.cli.demo import shop as demo_shop
from flowfabric_worker.cli.demo.fleet import DemoWorker, Fleet
from flowfabric_worker.cli.demo.proof import Ended, Proof, Submitted, prove
from flowfabric_worker.cli.demo.screen import Screen, show
from flowfabric_worker.cli.exit_codes import CommandError, ExitCode, debug_option
from flowfabric_worker.cli.options import json_option
from flowfabric_worker.cli.output import plain, print_json
from flowfabric_worker.cli.tables import console
from flowfabric_worker.client import Client
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.feed import CompletionEvent
from flowfabric_worker.engine.types.states import PublicState, TerminalOutcome
from flowfabric_worker.engine.types.workers import WorkerInfo

_LEASE: Final = "2s"
_THREADS: Final = "4"
_GRACE: Final = "5s"
_START_SECONDS: Final = 20.0
_LOOK_EVERY: Final = timedelta(seconds=0.2)
# Seconds that the demo may take in addition to `_SECONDS_EACH` per execution, which takes about 20 ms.
_SPARE_SECONDS: Final = 60.0
_SECONDS_EACH: Final = 0.1
_ALL: Final = "all"


@click.command()
@click.option(
    "--count", type=click.IntRange(20, 10_000), default=300, show_default=True, help="How many executions to submit."
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the store and the logs of the workers here; without it, they are removed.",
)
@click.option("--url", metavar="URL", help="Use this store, in a separate namespace.")
@json_option("Print the proof as one JSON document.")
@debug_option
def demo(*, count: int, directory: Path | None, url: str | None, as_json: bool) -> None:
    """Show that nothing is lost or doubled when a worker is killed.

    The demo starts a store and two worker processes that run the tasks of a small shop, kills one of them half-way
    with SIGKILL, and starts another in its place. A table at the end compares what was submitted with the feed of
    completions.
    """
    # A demo that is terminated must stop its workers too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    out = console(stderr=as_json)
    namespace = f"demo-{uuid4().hex[:8]}"
    with _home(directory) as home:
        store = url or f"embedded://{quote(str(home / 'store'))}"
        where = "the store of --url" if url else f"a new store in {home}"
        out.print(f"{count} executions, two workers with leases of {_LEASE}, {where}.", soft_wrap=True)
        proof, completed_by = _run(store, namespace, home, count, out)
    if as_json:
        verdict = {"proved": proof.holds, "objections": [*proof.objections()]}
        print_json({**verdict, **plain(proof), "completed_by": completed_by})
    else:
        show(proof, completed_by, out)
    if directory and not url:
        out.print(f"\nLook at it: flowfabric-worker list --url {store} --namespace {namespace}", soft_wrap=True)
    if not proof.holds:
        raise click.exceptions.Exit(ExitCode.FAILED)


@contextmanager
def _home(directory: Path | None) -> Iterator[Path]:
    """Provide the directory of the store and the logs, and remove it at the end unless the user has named it."""
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="flowfabric-demo-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.BadParameter(f"{directory} cannot be created: {error.strerror}.", param_hint="--dir") from None
    yield directory.resolve()


def _run(store: str, namespace: str, home: Path, count: int, out: Console) -> tuple[Proof, dict[str, int]]:
    """Run the demo on a store, and leave no process behind."""
    options = ("--namespace", namespace, "--lease", _LEASE, "--threads", _THREADS, "--grace", _GRACE)
    with ExitStack() as stack:
        client = stack.enter_context(Client(store, namespace=namespace))
        demo_shop.worker.url, demo_shop.worker.namespace = store, namespace
        stack.callback(demo_shop.worker.close)
        fleet = stack.enter_context(Fleet(home, store, [f"{demo_shop.__name__}:worker", *options]))
        screen = stack.enter_context(Screen(out))
        return _Demo(client, fleet, screen, count).run()


@attrs.define(eq=False)
class _Demo:
    """One run of the demo."""

    client: Client
    fleet: Fleet
    screen: Screen
    count: int
    _submitted: list[Submitted] = attrs.field(factory=list, init=False)
    _kinds: dict[ExecutionId, str] = attrs.field(factory=dict, init=False)
    _open: set[ExecutionId] = attrs.field(factory=set, init=False)
    _ended: list[Ended] = attrs.field(factory=list, init=False)
    _interrupted: set[ExecutionId] = attrs.field(factory=set, init=False)
    _cursor: str = attrs.field(default="", init=False)
    _shown_at: float = attrs.field(default=0.0, init=False)

    def run(self) -> tuple[Proof, dict[str, int]]:
        """Run the demo; return the proof, and how many executions each worker completed."""
        workers = [self.fleet.start(), self.fleet.start()]
        self._await(workers)
        self.screen.print_line("two workers have started")
        # Read the cursor before the first submission, so that no end is missed.
        self._cursor = self.client.engine.feed_cursor()
        self._submit()
        self._follow()
        self._stop()
        infos = {identity: info for identity in self._kinds if (info := self.client.get(identity)) is not None}
        return prove(self._submitted, self._ended, infos, self._interrupted), self._completed_by()

    def _await(self, workers: list[DemoWorker]) -> None:
        """Wait until some workers have registered."""
        deadline = time.monotonic() + _START_SECONDS
        while not all(worker.pid in self._instances() for worker in workers):
            self.fleet.check()
            if time.monotonic() > deadline:
                raise CommandError(f"The workers did not start within {_START_SECONDS:.0f} s.", ExitCode.FAILED)
            time.sleep(0.02)

    def _instances(self) -> dict[int, str]:
        """Return the instance id of each registered worker, by process."""
        rows = self.client.workers()
        return {row.pid: row.worker_instance_id for row in rows if isinstance(row, WorkerInfo)}

    def _submit(self) -> None:
        self.screen.add(_ALL, self.count)
        for kind, count in demo_shop.counts(self.count):
            self.screen.add(kind.name, count, kind.about)
            runs = kind.task.options(**kind.options).submit_many((number,) for number in range(count))
            ids = [run.id for run in runs]
            self._submitted.append(Submitted(name=kind.name, expected=kind.expected, ids=ids))
            self._kinds.update(dict.fromkeys(ids, kind.name))
        self._open = set(self._kinds)
        self.screen.print_line(f"{self.count} executions are submitted")

    def _follow(self) -> None:
        """Read the feed until everything has ended, and kill a worker when half of it has."""
        deadline = time.monotonic() + _SPARE_SECONDS + self.count * _SECONDS_EACH
        while self._open and time.monotonic() < deadline:
            self.fleet.check()
            self._show_states()
            for event in self.client.completions(self._cursor, timeout=_LOOK_EVERY):
                self._take(event)
                if not self._open:
                    break
                if not self._has_killed() and 2 * len(self._open) <= self.count:
                    self._kill_one()
                self._show_states_now_and_then()
        self._show_states()
        self.screen.print_line(
            "everything has ended" if not self._open else f"{len(self._open)} executions have not ended"
        )

    def _take(self, event: CompletionEvent) -> None:
        self._cursor = event.cursor
        kind = self._kinds.get(event.execution_id)
        if kind is None:
            return
        self._ended.append(Ended(execution_id=event.execution_id, outcome=event.outcome))
        if event.execution_id in self._open:
            self._open.remove(event.execution_id)
            self.screen.advance(kind)
            self.screen.advance(_ALL)

    def _kill_one(self) -> None:
        """Kill a worker that holds work now, if there is one, and start another one."""
        instances = self._instances()
        for worker in self.fleet.workers:
            # Pause the worker first, so that no execution ends between the check and the kill.
            worker.pause()
            if not self._held_by(instances[worker.pid]):
                worker.go_on()
                continue
            worker.kill()
            # These executions were interrupted, because a dead worker sends no outcome.
            self._interrupted = self._held_by(instances[worker.pid])
            self.screen.print_line(
                f"{worker.name} was killed with SIGKILL while it held {len(self._interrupted)} executions; "
                f"{self.count - len(self._open)} of {self.count} had ended"
            )
            self.screen.print_line(f"{self.fleet.start().name} starts in its place")
            return

    def _has_killed(self) -> bool:
        return any(worker.killed for worker in self.fleet.workers)

    def _held_by(self, instance: str) -> set[ExecutionId]:
        """Return the executions that a worker holds under a lease."""
        active = [summary.execution_id for summary in self.client.list(state=PublicState.ACTIVE)]
        leases = {
            identity: info.current_lease for identity in active if (info := self.client.get(identity)) is not None
        }
        return {identity for identity, lease in leases.items() if lease and lease.worker_instance_id == instance}

    def _stop(self) -> None:
        """Stop the workers, and then read the rest of the feed."""
        for worker in self.fleet.stop():
            self.screen.print_line(f"{worker.name} did not stop cleanly; its log is {worker.log}")
        for event in self.client.completions(self._cursor, timeout=timedelta()):
            self._take(event)

    def _show_states_now_and_then(self) -> None:
        if time.monotonic() - self._shown_at >= _LOOK_EVERY.total_seconds():
            self._show_states()

    def _show_states(self) -> None:
        depths: Counter[PublicState] = Counter()
        for lane in self.client.lanes():
            depths.update(lane.depths)
        waiting = (PublicState.WAITING, PublicState.ACTIVE, PublicState.DELAYED)
        self.screen.note(_ALL, ", ".join(f"{depths[state]} {state}" for state in waiting))
        self._shown_at = time.monotonic()

    def _completed_by(self) -> dict[str, int]:
        """Return how many executions each worker completed, by the process in their results."""
        names = {worker.pid: f"{worker.name}{' (killed)' if worker.killed else ''}" for worker in self.fleet.workers}
        completed = [end.execution_id for end in self._ended if end.outcome is TerminalOutcome.SUCCESS]
        done = Counter(self.client.result(identity)["by"] for identity in completed)
        return {name: done[pid] for pid, name in names.items()}
