"""The worker processes of the demo."""

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
class DemoWorker:
    """One worker process, and the file that it logs to."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path
    killed: bool = False

    @property
    def name(self) -> str:
        """The name of the worker in the demo's output."""
        return f"worker {self.number}"

    @property
    def pid(self) -> int:
        """The process id of the worker."""
        return self.process.pid

    def pause(self) -> None:
        """Stop the process with SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Resume the process after a pause."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the worker with SIGKILL, and wait until its process has ended."""
        self.killed = True
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Fleet:
    """The worker processes of the demo, none of which outlives it.

    Args:
        directory: the directory of the logs.
        url: the URL of the store.
        arguments: the arguments of `flowfabric-worker run`.
    """

    def __init__(self, directory: Path, url: str, arguments: Sequence[str]) -> None:
        self._directory = directory
        # Pass the URL in the environment: it may hold a password, and every user can read the arguments of a process.
        self._environment = {**os.environ, URL_VARIABLE: url}
        self._command = [sys.executable, "-m", "flowfabric_worker", "run", *arguments]
        self.workers: list[DemoWorker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> DemoWorker:
        """Start one more worker."""
        number = len(self.workers) + 1
        log = self._directory / f"worker-{number}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                # Keep Ctrl-C from the workers, because the demo stops them.
                process_group=0,
            )
        worker = DemoWorker(number=number, process=process, log=log)
        self.workers.append(worker)
        return worker

    def check(self) -> None:
        """Check that all workers that were not killed are still running.

        Raises:
            CommandError: a worker has ended; the message quotes the end of its log.
        """
        for worker in self.workers:
            if not worker.killed and worker.process.poll() is not None:
                last = worker.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
                raise CommandError(
                    f"{worker.name} ended by itself with code {worker.process.returncode}: {' | '.join(last)}",
                    ExitCode.FAILED,
                )

    def stop(self) -> list[DemoWorker]:
        """Stop all running workers with SIGTERM; return those that did not exit with code 0."""
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
