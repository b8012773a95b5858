"""The deadline of a stop, and background calls for which a stop need not wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from flowfabric_worker._runtime.lease_table import now

T = TypeVar("T")

# The most seconds that a stop takes beyond the grace, even if the store does not answer.
FINISH_WITHIN: Final = 2.5
_CHECK_EVERY: Final = 0.05


class Deadline:
    """The deadline of a stop; a second request to stop brings it forward.

    Args:
        grace: seconds that handlers may take.
        requests: returns the number of requests since the stop began.
        on_waiting: called several times a second during each wait, if there is one.
    """

    def __init__(self, grace: float, requests: Callable[[], int], on_waiting: Callable[[], None] | None = None) -> None:
        self._requests = requests
        self._grace_until = now() + grace
        self._until = self._grace_until + FINISH_WITHIN
        self._hurried = False
        self._on_waiting = on_waiting

    def grace(self) -> float:
        """Return the seconds that handlers still have."""
        self._check_requests()
        return max(0.0, self._grace_until - now())

    def left(self) -> float:
        """Return the seconds until the whole stop must end."""
        self._check_requests()
        return max(0.0, self._until - now())

    def _check_requests(self) -> None:
        """Bring the deadline forward if a second request came."""
        if not self._hurried and self._requests():
            self._hurried = True
            self._grace_until = min(self._grace_until, now())
            self._until = min(self._until, now() + FINISH_WITHIN)

    def await_within_grace(self, join: Callable[[float], bool], most: float | None = None) -> bool:
        """Wait for the end of a part during the grace, at most `most` seconds; return True if it has ended."""
        return self._wait(join, self.grace, most)

    def await_at_all(self, join: Callable[[float], bool], most: float | None = None) -> bool:
        """Wait for a part until the whole stop must end, at most `most` seconds; return True if the part has ended."""
        return self._wait(join, self.left, most)

    def _wait(self, join: Callable[[float], bool], left: Callable[[], float], most: float | None) -> bool:
        until = None if most is None else now() + most
        while not join(min(_CHECK_EVERY, left())):
            if left() <= 0 or (until is not None and now() >= until):
                return False
            if self._on_waiting is not None:
                self._on_waiting()
        return True


class BackgroundCall(Generic[T]):
    """Make a call in another thread, so that the caller can stop waiting for it.

    Args:
        call: the call, which may never return.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._answer: T | None = None
        self._error: BaseException | None = None
        self._ended = threading.Event()
        try:
            threading.Thread(target=self._work, name="flowfabric-background-call", daemon=True).start()
        except RuntimeError:
            # There is not enough memory for another thread.
            self._work()

    def join(self, timeout: float) -> bool:
        """Wait for the call, at most `timeout` seconds; return True if it has ended."""
        return self._ended.wait(timeout)

    def answer(self, otherwise: T) -> T:
        """Return what the call returned, or `otherwise` if it has not ended.

        Raises:
            BaseException: the exception of the call.
        """
        if self._error is not None:
            raise self._error
        return otherwise if self._answer is None else self._answer

    def _work(self) -> None:
        try:
            self._answer = self._call()
        except BaseException as error:  # noqa: BLE001  answer() raises it in the caller
            self._error = error
        finally:
            self._ended.set()
