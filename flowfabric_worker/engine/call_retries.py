"""How calls are sent: once, or with retries while the connection fails; and how those in flight are counted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import EngineError, TransportError
from flowfabric_worker.engine.stores.dedicated_connections import keep_connections

T = TypeVar("T")

_call_retries_disabled: ContextVar[bool] = ContextVar("flowfabric_sends_once", default=False)


def disable_call_retries() -> None:
    """Send each call of this thread only once from now on, because the thread has its own retries."""
    _call_retries_disabled.set(True)


def dedicate_thread(engine: EngineBackend, *, is_vital: bool = False) -> None:
    """Prepare the calling thread, on which leases depend, for its calls.

    Its calls are sent without retries, over connections that are opened now and that no other thread uses. On stores
    where connections are dear, only a vital thread has connections of its own.
    """
    disable_call_retries()
    keep_connections(is_vital=is_vital)
    with contextlib.suppress(EngineError):
        engine.ping()


class InFlightCalls:
    """The number of calls that have not returned yet; used as a context manager around each call."""

    def __init__(self) -> None:
        # Set up only at a shutdown what only a shutdown needs, because every call passes through here.
        self._lock = threading.Lock()
        self._none_left = threading.Condition(self._lock)
        self._count = 0
        self._awaited = False

    def __enter__(self) -> None:
        with self._lock:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
            if self._awaited and not self._count:
                self._none_left.notify_all()

    def wait(self, timeout: float) -> int:
        """Wait at most `timeout` seconds until no call is in flight; return how many are."""
        with self._lock:
            self._awaited = True
            self._none_left.wait_for(lambda: not self._count, timeout)
            return self._count


def call_with_retries(attempt: Callable[[], T], retry_for: float) -> T:
    """Call `attempt`, and repeat it for `retry_for` seconds while the connection fails.

    It is called only once in a thread that has called `disable_call_retries`.
    """
    try:
        return attempt()
    except TransportError as error:
        if not error.retryable or retry_for <= 0 or _call_retries_disabled.get():
            raise
    # Import tenacity here, because few calls fail.
    import tenacity

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, TransportError) and error.retryable),
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
        stop=tenacity.stop_after_delay(retry_for),
        reraise=True,
    )
    return retrying(attempt)
