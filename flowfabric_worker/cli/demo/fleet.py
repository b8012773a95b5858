"""The worker processes of the demo: started, killed, stopped, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import attrs

from flowfabric_worker.cli.exit_codes import CommandError, ExitCode
from flowfabric_worker.config import URL_VARIABLE

_STOP_SECONDS: Final = 10.0
_LOG_LINES: Final = 5


@attrs.define(eq=False, kw_only=True)
class WorkerProcess:
    """One worker process, and the file that it logs to."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path
    killed: bool = False

    @property
    def name(self) -> str:
        """How the demo speaks of it."""
        return f"worker {self.number}"

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def pause(self) -> None:
        """Stop it in the middle of whatever it does."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End a pause."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash does: it gets no chance to say goodbye. Returns when it is dead."""
        self.killed = True
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Fleet:
    """Starts worker processes and sees to it that none outlives the demo.

    Args:
        directory: where they log to.
        url: their store.
        arguments: of `flowfabric-worker run`.
    """

    def __init__(self, directory: Path, url: str, arguments: Sequence[str]) -> None:
        self._directory = directory
        # Not an argument: those of a process are there for everybody to see, and a URL may hold a password.
        self._environment = {**os.environ, URL_VARIABLE: url}
        self._command = [sys.executable, "-m", "flowfabric_worker", "run", *arguments]
        self.workers: list[WorkerProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> WorkerProcess:
        """Start one more."""
        number = len(self.workers) + 1
        log = self._directory / f"worker-{number}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                # Ctrl-C is for the demo, which then stops its workers itself.
                process_group=0,
            )
        worker = WorkerProcess(number=number, process=process, log=log)
        self.workers.append(worker)
        return worker

    def check(self) -> None:
        """Sees whether all that were not killed still run.

        Raises:
            CommandError: one does not; with the end of what it logged.
        """
        for worker in self.workers:
            if not worker.killed and worker.process.poll() is not None:
                last = worker.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
                raise CommandError(
                    f"{worker.name} ended by itself with code {worker.process.returncode}: {' | '.join(last)}",
                    ExitCode.FAILED,
                )

    def stop(self) -> list[WorkerProcess]:
        """Stop all that run, as an operator does; return those that did not stop in order."""
        running = [worker for worker in self.workers if worker.process.poll() is None]
        for worker in running:
            worker.process.send_signal(signal.SIGTERM)
            worker.go_on()
        try:
            for worker in running:
                worker.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            for worker in running:
                if worker.process.poll() is None:
                    worker.kill()
        return [worker for worker in running if worker.process.returncode != os.EX_OK]
