"""One connection per engine that listens, for all who wait in this process.

Whoever changes something that others wait for sends a message to their topic:

    wake NUMBER PARTITION    there is work, or something is due, for the waiter of that number
    done EXECUTION           an execution ended
    lost EXECUTION           a lease of this process is over

A message may be lost with its connection. So after a reconnect everybody who waits is woken once, and looks.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from uuid import uuid4

from flowfabric_worker.engine import reporting
from flowfabric_worker.engine.errors import TransportError
from flowfabric_worker.engine.stores.base import Store, Subscription

log = reporting.Log(__name__)

# The longest that anybody waits without looking by himself, in seconds: for messages that a failover swallowed.
FALLBACK = 10.0
_RECONNECT_AFTER = (0.05, 0.1, 0.2, 0.5, 1.0)


class Waiter:
    """Somebody who waits for work: a name for the store, and the partitions in which he was woken."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._condition = threading.Condition()
        self._partitions: set[int] = set()
        self._woken = False
        self.stopped = False

    def wait(self, timeout: float) -> set[int]:
        """Waits until somebody wakes, at most `timeout` seconds; returns the partitions in which there is something."""
        with self._condition:
            if not self._woken:
                self._condition.wait(timeout)
            partitions, self._partitions, self._woken = self._partitions, set(), False
            return partitions

    def wake(self, partition: int | None = None) -> None:
        """Ends a wait; without a partition to look everywhere."""
        with self._condition:
            if partition is not None:
                self._partitions.add(partition)
            self._woken = True
            self._condition.notify_all()

    def stop(self) -> None:
        """Ends a wait for good."""
        self.stopped = True
        self.wake()


class Listener:
    """Hears the messages of one topic and tells those whom they concern."""

    def __init__(self, store: Store) -> None:
        self.topic = uuid4().hex
        self._store = store
        self._numbers = itertools.count()
        self._waiters: dict[str, Waiter] = {}
        self._results: dict[str, list[threading.Event]] = {}
        self._lock = threading.Lock()
        self._lost: list[Callable[[str, str], None]] = []
        self._recheck: Callable[[list[str]], list[str]] | None = None
        self._closed = threading.Event()
        # Subscribed before anybody can register, so that nothing is sent to a topic that nobody hears.
        self._subscription: Subscription | None = store.subscribe(self.topic)
        self._thread = threading.Thread(target=self._run, name=f"flowfabric-listener-{self.topic[:8]}", daemon=True)
        self._thread.start()

    @property
    def is_closed(self) -> bool:
        """Whether nothing is heard any more."""
        return self._closed.is_set()

    def waiter(self) -> Waiter:
        """A new waiter."""
        number = str(next(self._numbers))
        waiter = self._waiters[number] = Waiter(f"{self.topic}/{number}")
        return waiter

    def forget(self, waiter: Waiter) -> None:
        """Ends a waiter."""
        self._waiters.pop(waiter.name.rpartition("/")[2], None)

    def on_lost(self, callback: Callable[[str, str], None]) -> None:
        """Calls `callback` with the id of an execution whose lease this process lost, and that lease's fence."""
        self._lost.append(callback)

    def off_lost(self, callback: Callable[[str, str], None]) -> None:
        """Ends what `on_lost` began."""
        self._lost.remove(callback)

    def watch(self, execution_id: str, recheck: Callable[[list[str]], list[str]]) -> threading.Event:
        """An event that is set when an execution ends.

        `recheck` gets ids and returns those that ended; it is called for all that are watched after a reconnect and
        every few seconds, once for all who wait.
        """
        event = threading.Event()
        with self._lock:
            self._recheck = recheck
            self._results.setdefault(execution_id, []).append(event)
        return event

    def unwatch(self, execution_id: str, event: threading.Event) -> None:
        """Ends what `watch` began."""
        with self._lock:
            events = self._results.get(execution_id, [])
            if event in events:
                events.remove(event)
            if not events:
                self._results.pop(execution_id, None)

    def close(self) -> None:
        """Stops listening; whoever waits is let go."""
        self._closed.set()
        try:
            # The thread sits in its subscription, which is its own: a message makes it look up.
            self._store.wake(self.topic, b"close")
        except TransportError:
            log.debug("The store is away; the listener ends by itself within a few seconds.")
        self._thread.join(timeout=2 * FALLBACK / 4)
        for waiter in list(self._waiters.values()):
            waiter.stop()

    def _run(self) -> None:
        checked = time.monotonic()
        while not self._closed.is_set():
            try:
                if self._subscription is None:
                    self._subscription = self._resubscribe()
                    self._wake_everybody()
                    self._recheck_results()
                    checked = time.monotonic()
                for message in self._subscription.wait(FALLBACK / 4):
                    self._dispatch(message)
                if time.monotonic() - checked >= FALLBACK:
                    self._recheck_results()
                    checked = time.monotonic()
            except (TransportError, ValueError) as error:
                self._drop(error)
        if self._subscription is not None:
            self._subscription.close()

    def _drop(self, error: Exception) -> None:
        log.warning("The connection that listens for wake-ups was lost (%s); connecting again.", error)
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    def _resubscribe(self) -> Subscription:
        for pause in itertools.chain(_RECONNECT_AFTER, itertools.repeat(_RECONNECT_AFTER[-1])):
            try:
                return self._store.subscribe(self.topic)
            except TransportError:
                if self._closed.wait(pause):
                    break
        raise TransportError(message="The listener was closed.")

    def _dispatch(self, message: bytes) -> None:
        word, *rest = message.decode().split(" ")
        if word == "wake":
            waiter = self._waiters.get(rest[0])
            if waiter is not None:
                waiter.wake(int(rest[1]))
        elif word == "done":
            self._finish(rest[0])
        elif word == "lost":
            for callback in list(self._lost):
                callback(rest[0], rest[1])

    def _finish(self, execution_id: str) -> None:
        with self._lock:
            for event in self._results.pop(execution_id, []):
                event.set()

    def _recheck_results(self) -> None:
        with self._lock:
            ids, recheck = list(self._results), self._recheck
        if ids and recheck is not None:
            for execution_id in recheck(ids):
                self._finish(execution_id)

    def _wake_everybody(self) -> None:
        for waiter in list(self._waiters.values()):
            waiter.wake()
