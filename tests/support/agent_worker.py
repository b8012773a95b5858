"""The worker of examples/agent.py, which kills itself before a line: `python -m tests.support.agent_worker FILE LINE`.

It counts the lines that run of the example, of the durable calls and of the context of handlers, in all threads. At
line number LINE it is killed; 0 lets it live. Each effect is written to FILE as the name of its step, and the number of
lines when the process stops.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import examples.agent as example
from flowfabric_worker import Runtime, WorkerSettings, _steps
from flowfabric_worker._runtime import handler_context
from flowfabric_worker._steps import durable_calls

_TRACED = (example.__file__, handler_context.__file__, str(Path(_steps.__file__).parent))


class Killer:
    """Count lines, and kill the process before one of them."""

    def __init__(self, line: int) -> None:
        self._line = line
        self._numbers = itertools.count(1)
        self.count = 0

    def trace(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        return self._trace_line if frame.f_code.co_filename.startswith(_TRACED) else None

    def _trace_line(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            self.count = next(self._numbers)
            if self.count == self._line:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._trace_line


def write(path: str, text: str) -> None:
    """Append a line in one piece."""
    with open(path, "ab", buffering=0) as file:
        file.write(f"{text}\n".encode())


def noting(path: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of a step that writes the name of the step down when its effect is there."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        result = function(*args)
        write(path, durable_calls._step_around.get() or "no step")
        return result

    return call


def main(path: str, line: int) -> None:
    """Run the worker until it is killed or told to stop."""
    for name in ("think", "measure", "book", "notify"):
        setattr(example, name, noting(path, getattr(example, name)))
    killer = Killer(line)
    threading.settrace(killer.trace)
    Runtime(example.worker, WorkerSettings(threads=1, lease=timedelta(seconds=2), grace=timedelta())).run()
    write(path, f"lines {killer.count}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
