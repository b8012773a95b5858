"""What a stop needs: one deadline for everything, and calls that it can stop waiting for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from flowfabric_worker._runtime.lease_table import now

T = TypeVar("T")

# Seconds that a stop takes beyond the grace at most, whatever the store does.
FINISH_WITHIN: Final = 2.5
_LOOK_EVERY: Final = 0.05


class Deadline:
    """The end of a stop. A second request brings it closer, at every moment.

    Args:
        grace: seconds that handlers may take.
        requests: returns how many requests came since the stop began.
    """

    def __init__(self, grace: float, requests: Callable[[], int]) -> None:
        self._requests = requests
        self._grace_until = now() + grace
        self._until = self._grace_until + FINISH_WITHIN
        self._hurried = False

    def grace(self) -> float:
        """Return the seconds that handlers still have."""
        self._look()
        return max(0.0, self._grace_until - now())

    def left(self) -> float:
        """Return the seconds that everything else still has."""
        self._look()
        return max(0.0, self._until - now())

    def _look(self) -> None:
        """Bring the end closer if a second request came."""
        if not self._hurried and self._requests():
            self._hurried = True
            self._grace_until = min(self._grace_until, now())
            self._until = min(self._until, now() + FINISH_WITHIN)

    def await_within_grace(self, join: Callable[[float], bool], most: float | None = None) -> bool:
        """Wait for something while handlers have time, at most `most` seconds; return True if it came."""
        return _wait(join, self.grace, most)

    def await_at_all(self, join: Callable[[float], bool], most: float | None = None) -> bool:
        """Wait for something while there is time at all, at most `most` seconds; return True if it came."""
        return _wait(join, self.left, most)


def _wait(join: Callable[[float], bool], left: Callable[[], float], most: float | None) -> bool:
    until = None if most is None else now() + most
    while not join(min(_LOOK_EVERY, left())):
        if left() <= 0 or (until is not None and now() >= until):
            return False
    return True


class BackgroundCall(Generic[T]):
    """A call that another thread makes, so that the caller can stop waiting for it.

    Args:
        call: what to do; it may never return.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._answer: T | None = None
        self._error: BaseException | None = None
        self._ended = threading.Event()
        try:
            threading.Thread(target=self._work, name="flowfabric-background-call", daemon=True).start()
        except RuntimeError:
            # There is no memory left for another thread.
            self._work()

    def join(self, timeout: float) -> bool:
        """Wait for its end, at most `timeout` seconds; return True if it has ended."""
        return self._ended.wait(timeout)

    def answer(self, otherwise: T) -> T:
        """Return what the call returned; `otherwise` if it has not ended.

        Raises:
            BaseException: what the call raised.
        """
        if self._error is not None:
            raise self._error
        return otherwise if self._answer is None else self._answer

    def _work(self) -> None:
        try:
            self._answer = self._call()
        except BaseException as error:  # noqa: BLE001  it is raised where the answer is asked for
            self._error = error
        finally:
            self._ended.set()
