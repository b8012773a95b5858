"""The log of this package, isolated from the log handlers, filters and record factories of the application.

While a `Runtime` or a supervisor runs, one thread passes the lines on to `logging`, so that no thread with a lease
waits for an application's log handler or a full pipe. Otherwise the thread that writes a line logs it. No error is
raised: a line that cannot be logged is printed to stderr.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
import time
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Any, Final, TypeAlias

import attrs

from flowfabric_worker.engine import forks as forking
from flowfabric_worker.engine.exception_text import class_name, text_of
from flowfabric_worker.engine.plain_ids import with_plain_ids

# The most lines that may wait to be logged; then the oldest is dropped.
MAX_WAITING: Final = 10_000
# Seconds between two lines that report how many lines were dropped.
TELL_DROPPED_EVERY: Final = 10.0

_logger = logging.getLogger(__name__)

ErrorInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None] | None


class Log:
    """A logger of this package, used like a logger of `logging`."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, *values: object, extra: Mapping[str, Any] | None = None) -> None:
        self._write(logging.DEBUG, message, values, extra)

    def info(self, message: str, *values: object, extra: Mapping[str, Any] | None = None) -> None:
        self._write(logging.INFO, message, values, extra)

    def warning(self, message: str, *values: object, extra: Mapping[str, Any] | None = None) -> None:
        self._write(logging.WARNING, message, values, extra)

    def error(self, message: str, *values: object, extra: Mapping[str, Any] | None = None) -> None:
        self._write(logging.ERROR, message, values, extra)

    def exception(self, message: str, *values: object, extra: Mapping[str, Any] | None = None) -> None:
        """Log an error with the traceback of the present exception."""
        self._write(logging.ERROR, message, values, extra, sys.exc_info())

    def wants(self, level: int) -> bool:
        """Return True if lines of this level are logged, or if the application's logger cannot tell."""
        try:
            return self._logger.isEnabledFor(level)
        except (Exception, SystemExit):  # noqa: BLE001  whatever the application's own code raises
            return True

    def _write(
        self,
        level: int,
        message: str,
        values: tuple[object, ...],
        extra: Mapping[str, Any] | None,
        error: ErrorInfo = None,
    ) -> None:
        if self.wants(level):
            _reporter.take(_line(self._logger, level, message, values, extra or {}, error, sys._getframe(2)))


@attrs.frozen
class _Line:
    """One line, with the place and the thread that wrote it."""

    logger: logging.Logger
    level: int
    message: str
    values: tuple[object, ...]
    extra: Mapping[str, Any]
    error: ErrorInfo
    place: tuple[str, int, str]
    thread: int | None
    thread_name: str
    written_at: float = attrs.field(factory=time.time)

    def log(self) -> None:
        file, number, function = self.place
        record = self.logger.makeRecord(
            self.logger.name,
            self.level,
            file,
            number,
            self.message,
            tuple(map(_for_people, self.values)),
            self.error,
            function,
        )
        record.relativeCreated -= (record.created - self.written_at) * 1000
        record.created = self.written_at
        record.msecs = int(self.written_at % 1 * 1000) + 0.0
        record.thread, record.threadName = self.thread, self.thread_name
        # Set the fields here, because `extra` raises if the application's record factory has set the same names.
        record.__dict__.update(self.extra)
        self.logger.handle(record)


def _for_people(value: object) -> object:
    """Return a value for a line, with each execution id in the form that shells and the command line take."""
    if isinstance(value, BaseException):
        value = text_of(value)
    return with_plain_ids(value) if isinstance(value, str) else value


@attrs.frozen
class _Text:
    """A text to print to stderr as it is."""

    text: str

    def log(self) -> None:
        _print(self.text)


def _line(
    logger: logging.Logger,
    level: int,
    message: str,
    values: tuple[object, ...],
    extra: Mapping[str, Any],
    error: ErrorInfo,
    caller: FrameType,
) -> _Line:
    thread = threading.current_thread()
    place = (caller.f_code.co_filename, caller.f_lineno, caller.f_code.co_name)
    return _Line(logger, level, message, values, extra, error, place, thread.ident, thread.name)


class _Reporter:
    """The thread that passes lines on to `logging`."""

    def __init__(self) -> None:
        self.reset_after_fork()
        forking.remember(self)

    def reset_after_fork(self) -> None:
        """Drop the lines and the thread in a forked child, because the parent logs its own lines."""
        self._lock = threading.RLock()
        self._wanted = 0
        self._dropped = 0
        self._told_at = -TELL_DROPPED_EVERY
        self._queue: queue.SimpleQueue[_Line | _Text | threading.Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        with self._lock:
            self._wanted += 1
            if self._wanted == 1:
                # Use a new queue: the former thread may still be in a log handler that does not return, and uses the
                # old one.
                self._queue = queue.SimpleQueue()
                self._thread = threading.Thread(
                    target=self._work, args=(self._queue,), name="flowfabric-reporter", daemon=True
                )
                self._thread.start()

    def stop(self, timeout: float) -> None:
        with self._lock:
            self._wanted -= 1
            thread = self._thread
            if self._wanted or thread is None:
                return
            self._queue.put(None)
        thread.join(timeout)
        with self._lock:
            if self._thread is thread and not thread.is_alive():
                self._thread = None
                self._log_rest()

    def flush(self, timeout: float) -> None:
        """Wait at most `timeout` seconds until the lines written so far are logged."""
        if self._thread is not None:
            logged = threading.Event()
            self._queue.put(logged)
            logged.wait(timeout)

    def _log_rest(self) -> None:
        """Log the lines that were written while the thread ended."""
        with contextlib.suppress(queue.Empty):
            while True:
                line = self._queue.get_nowait()
                if isinstance(line, _Line | _Text):
                    _log(line)

    def take(self, line: _Line | _Text) -> None:
        if self._thread is None:
            _log(line)
            return
        lines = self._queue
        if lines.qsize() >= MAX_WAITING:
            with self._lock, contextlib.suppress(queue.Empty):
                lines.get_nowait()
                self._dropped += 1
        lines.put(line)

    def _work(self, lines: queue.SimpleQueue[_Line | _Text | threading.Event | None]) -> None:
        while (line := lines.get()) is not None:
            if isinstance(line, threading.Event):
                line.set()
                continue
            forking.confined(_log, line)
            if self._dropped and time.monotonic() - self._told_at >= TELL_DROPPED_EVERY:
                self._tell_dropped()
        if self._dropped:
            self._tell_dropped()

    def _tell_dropped(self) -> None:
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        self._told_at = time.monotonic()
        message = "%s log lines were dropped, because the application's log handlers are too slow."
        # Log this line directly, because in the queue it would drop another line.
        _log(_line(_logger, logging.WARNING, message, (dropped,), {}, None, sys._getframe()))


def _log(line: _Line | _Text) -> None:
    """Log a line, and print any error that the application's logging raises."""
    try:
        line.log()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        if isinstance(line, _Line):
            with contextlib.suppress(BaseException):
                _print(
                    f"{line.message % line.values}\n(This line could not be logged: a log handler, filter or record "
                    f"factory of the application raised {class_name(error)}.)\n"
                )


def _print(text: str) -> None:
    if sys.__stderr__ is not None:
        sys.__stderr__.write(text)
        sys.__stderr__.flush()


def print_text(text: str) -> None:
    """Print a text to stderr, in order with the log lines, and without waiting for a full pipe."""
    _reporter.take(_Text(text))


_reporter = _Reporter()

start = _reporter.start
"""Start the thread that passes lines on. Each call needs a later call of `stop`."""

flush = _reporter.flush
"""Wait until the lines written so far are logged, at most the given number of seconds, before the process ends."""

stop = _reporter.stop
"""Wait until the lines written so far are logged, at most the given seconds; the last `stop` ends the thread."""
