"""An application that does everything wrong at once: its hooks, its logging and its handlers."""

from __future__ import annotations

import contextvars
import logging
import multiprocessing
import os
import signal
import threading
import time
from typing import Any, Final

from flowfabric_worker import Middleware, Worker
from flowfabric_worker.middleware import AttemptEvent

UNSET: Final = "unset"
# A task that kills its process is claimed again so often.
MAX_RECLAIMS: Final = 1

_variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default=UNSET)


class HangingHooks(Middleware):
    """Hooks of which none returns."""

    def on_success(self, event: AttemptEvent) -> None:  # noqa: ARG002  the name that all hooks have
        threading.Event().wait()


class RaisingFilter(logging.Filter):
    """A filter that ends the thread of a logger which is not prepared for it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("odd.broken "):
            raise SystemExit("the filter")
        return True


def set_up_logging() -> None:
    """Log as an application may: by a filter that raises, and a record factory that sets names of its own."""
    make_record = logging.getLogRecordFactory()

    def make_odd_record(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make_record(*arguments, **options)
        record.task, record.lane = "mine", 1
        return record

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)-7s %(message)s")
    logging.getLogger().handlers[0].addFilter(RaisingFilter())
    logging.setLogRecordFactory(make_odd_record)


class TextlessError(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise SystemExit("no text")


worker = Worker("odd", middleware=[HangingHooks()])


@worker.task
def broken() -> None:
    raise TextlessError


@worker.task
def fork() -> int:
    """Fork a child that leaves the handler as its parent does, and return the child's exit code."""
    pid = os.fork()
    if pid == 0:
        return 0
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@worker.task
def pool() -> list[int]:
    with multiprocessing.get_context("fork").Pool(2) as processes:
        return processes.map(abs, [-1, -2])


@worker.task
def leave_variable(number: int) -> str:
    """Return what an execution before has left in a context variable, and leave something there."""
    found = _variable.get()
    _variable.set(str(number))
    return found


@worker.task(max_reclaims=MAX_RECLAIMS)
def kill_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@worker.task
def good(number: int) -> int:
    time.sleep(0.002)
    return number


# The tests import the tasks only; the worker's processes import this module from the command line.
if os.environ.get("ODD_LOGGING"):
    set_up_logging()
