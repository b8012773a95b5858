"""How calls are sent: repeated for a time after the connection failed, or once; and counted until they return."""

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
    """Send each call of this thread once from now on, for a thread that retries by itself."""
    _call_retries_disabled.set(True)


def dedicate_thread(engine: EngineBackend) -> None:
    """Prepare a thread that leases depend on.

    Its calls are sent once, over connections that no other thread uses, and that are opened now.
    """
    disable_call_retries()
    keep_connections()
    with contextlib.suppress(EngineError):
        engine.ping()


class InFlightCalls:
    """Count the calls that have not returned yet. Use it as a context manager around each call."""

    def __init__(self) -> None:
        # Every call passes through here, so what only a shutdown needs is set up at the shutdown.
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

    It is called once in a thread with `disable_call_retries`.
    """
    try:
        return attempt()
    except TransportError as error:
        if not error.retryable or retry_for <= 0 or _call_retries_disabled.get():
            raise
    # The import stands here, because few calls fail.
    import tenacity

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, TransportError) and error.retryable),
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
        stop=tenacity.stop_after_delay(retry_for),
        reraise=True,
    )
    return retrying(attempt)
