"""The messages that an engine receives: over a connection per thread that waits for work, and one for all others.

A stored function that changes what a thread waits for sends a message to its topic. Each thread that waits for work or
for the feed reads its topic itself, so that no other thread delays the claim:

    wake PARTITION                there is work, or something is due
    standby PARTITION MS OTHER    another waiter was woken: look after MS ms, unless it has called
    taken PARTITION OTHER         that other waiter has called

One thread per engine reads the messages for all other threads:

    done EXECUTION                an execution ended
    lost EXECUTION FENCE          a lease of this process has ended
    frames EXECUTION              tails of the execution have frames to read, or the end of an attempt

A message may be lost with its connection. Each waiter therefore looks after a reconnect, and one thread looks up all
watched executions every few seconds. A message that cannot be read is ignored.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from uuid import uuid4

from flowfabric_worker.engine import log_queue as reporting
from flowfabric_worker.engine.backoff import Backoff
from flowfabric_worker.engine.errors import TransportError, error_from_code
from flowfabric_worker.engine.limits import MAX_TAILS
from flowfabric_worker.engine.stores.base import Store, Subscription

log = reporting.Log(__name__)

# The longest time that a thread waits without looking, in seconds, in case a failover lost a message.
FALLBACK = 10.0
# The longest wait for one message, in seconds; then a silent subscription must answer a ping.
_LISTEN = FALLBACK / 4
# Seconds between two looks at all watched executions; every wait of FALLBACK seconds contains one.
_RECHECK_EVERY = FALLBACK / 2
# Seconds to wait before connecting again: after the first failure, and at most.
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
# The seconds after which a subscription counts as working, so that the next failure counts as the first.
_STEADY_AFTER = 5.0
_SAY_AGAIN = 10.0
_NO_MESSAGE = "A message that cannot be read was ignored: %.100r (%s)."


class _Warnings:
    """Warnings, each logged at most once every few seconds."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def warn(self, text: str, *arguments: object) -> None:
        """Log a warning, unless it was logged a moment ago."""
        now = time.monotonic()
        if now - self._said.get(text, -math.inf) >= _SAY_AGAIN:
            self._said[text] = now
            log.warning(text, *arguments)


class TopicReader:
    """Reads the messages of one topic, over a connection that is opened again after a failure.

    One thread at a time reads; another thread may call `close`.

    Args:
        subscribe: opens the connection.
    """

    def __init__(self, subscribe: Callable[[], Subscription]) -> None:
        self._subscribe = subscribe
        self._subscription: Subscription | None = None
        self._closed = threading.Event()
        self._backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE, _STEADY_AFTER)
        self._pause = 0.0
        self._began = 0.0

    @property
    def is_closed(self) -> bool:
        """Whether the reader is closed."""
        return self._closed.is_set()

    def connect(self) -> bool:
        """Subscribe if the reader is not subscribed; return True if it was not, so that earlier messages are lost.

        After a failure it pauses first, so that a connection that keeps failing is not opened in a busy loop.

        Raises:
            TransportError: the store cannot be reached.
        """
        if self._subscription is not None:
            return False
        if self._pause:
            self._closed.wait(self._pause)
        if not self.is_closed:
            self._began = time.monotonic()
            self._subscription = self._subscribe()
            if self.is_closed:
                self._subscription.close()
        return True

    def read(self, timeout: float) -> list[bytes]:
        """Wait at most `timeout` seconds for messages, and return them; none once the reader is closed.

        Raises:
            TransportError: the connection is lost; call `fail`, then `connect`.
        """
        if self._subscription is None or self.is_closed:
            return []
        return self._subscription.wait(min(timeout, _LISTEN))

    def fail(self) -> None:
        """Drop a connection that failed, or whose messages could not be handled."""
        self._backoff.settle(time.monotonic() - self._began)
        self._pause = self._backoff.next()
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    def close(self) -> None:
        """Close the reader, also while another thread is in `read`."""
        self._closed.set()
        subscription = self._subscription
        if subscription is not None:
            subscription.close()


class Waiter:
    """The topic on which one thread at a time waits, and the partitions in which it was woken.

    Args:
        subscribe: subscribes to a topic.
        partitions: how many partitions the store has.

    Attributes:
        name: the topic, by which stored functions address the waiter.
    """

    def __init__(self, subscribe: Callable[[str], Subscription], partitions: int) -> None:
        self.name = uuid4().hex
        self._partitions = partitions
        self._reader = TopicReader(lambda: subscribe(self.name))
        self._warnings = _Warnings()
        # When to look in place of another waiter, by partition and waiter.
        self._stand_by: dict[tuple[int, str], float] = {}

    @property
    def stopped(self) -> bool:
        """Whether the waiter was stopped."""
        return self._reader.is_closed

    def wait(self, timeout: float) -> set[int] | None:
        """Wait at most `timeout` seconds for a wake-up.

        Returns:
            The partitions in which to look; None to look everywhere, as after the first call and after each loss of the
            connection.

        Raises:
            TransportError: the connection is lost and cannot be opened again.
        """
        try:
            return self._wait(time.monotonic() + timeout)
        except TransportError as error:
            log.debug("The connection of a waiting worker was lost (%s); connecting again.", error)
            self._reader.fail()
        self._reader.connect()
        return None

    def _wait(self, deadline: float) -> set[int] | None:
        if self._reader.connect():
            return None
        while not self.stopped:
            moment = time.monotonic()
            until = min([deadline, *self._stand_by.values()])
            messages = self._reader.read(max(0.0, until - moment))
            woken = {partition for partition in map(self._hear, messages) if partition is not None}
            if woken:
                return woken
            if not messages and until <= moment:
                break
        return self._over()

    def _over(self) -> set[int]:
        """Return the partitions in which other waiters were woken and have not called in time."""
        moment = time.monotonic()
        over = [key for key, until in self._stand_by.items() if until <= moment]
        for key in over:
            del self._stand_by[key]
        return {partition for partition, _ in over}

    def _hear(self, message: bytes) -> int | None:
        """Handle a message; return the partition in which it wakes this waiter, or None."""
        try:
            word, number, *rest = message.decode().split(" ")
            partition = int(number)
            if not 0 <= partition < self._partitions:
                raise ValueError(f"there is no partition {partition}")
            if word == "wake" and not rest:
                return partition
            if word == "standby":
                ms, other = rest
                self._stand_by[partition, other] = time.monotonic() + int(ms) / 1000
            elif word == "taken":
                (other,) = rest
                self._stand_by.pop((partition, other), None)
            else:
                raise ValueError("an unknown word")
        except ValueError as error:
            self._warnings.warn(_NO_MESSAGE, message, error)
        return None

    def stop(self) -> None:
        """End a wait that is in progress, and all later ones."""
        self._reader.close()


class Listener:
    """Reads the messages for all threads of an engine, and passes each on to the threads that it concerns.

    Args:
        store: the store to listen to.

    Attributes:
        topic: the topic that it reads.
        rechecked_at: the start of the last look at all watched executions that reached the whole store.
    """

    def __init__(self, store: Store) -> None:
        self.topic = uuid4().hex
        self.rechecked_at = -math.inf
        self._results: dict[str, list[threading.Event]] = {}
        self._tails: dict[str, set[threading.Event]] = {}
        self._tail_count = 0
        self._lock = threading.Lock()
        self._lost: list[Callable[[str, str], None]] = []
        self._recheck: Callable[[list[str]], Iterable[str]] | None = None
        self._recheck_due = -math.inf
        self._rechecking = threading.Lock()
        self._warnings = _Warnings()
        self._reader = TopicReader(lambda: store.subscribe(self.topic))
        # Subscribe before anything can be watched, so that no message is sent to a topic without a subscriber.
        self._reader.connect()
        self._thread = self._started()

    @property
    def is_closed(self) -> bool:
        """Whether the listener is closed."""
        return self._reader.is_closed

    def on_lost(self, callback: Callable[[str, str], None]) -> None:
        """Call `callback` with each execution whose lease this process lost, and the fence of that lease."""
        self._lost.append(callback)

    def off_lost(self, callback: Callable[[str, str], None]) -> None:
        """Stop calling a callback of `on_lost`."""
        self._lost.remove(callback)

    def watch(self, execution_id: str, recheck: Callable[[list[str]], Iterable[str]]) -> threading.Event:
        """Return an event that is set when an execution ends, and when the listener is closed.

        `recheck` gets ids and yields those that have ended. It is called for all watched executions after a reconnect
        and every few seconds, once for all threads.
        """
        self.revive()
        event = threading.Event()
        with self._lock:
            self._recheck = recheck
            self._results.setdefault(execution_id, []).append(event)
        if self.is_closed:
            event.set()
        return event

    def unwatch(self, execution_id: str, event: threading.Event) -> None:
        """Stop watching an execution for the event that `watch` returned."""
        with self._lock:
            events = self._results.get(execution_id, [])
            if event in events:
                events.remove(event)
            if not events:
                self._results.pop(execution_id, None)

    def tail(self, execution_id: str) -> threading.Event:
        """Return an event that is set when an execution has new frames, an attempt of it ends, or messages were lost.

        Raises:
            ResourceExhaustedError: `too_many_tails`.
        """
        self.revive()
        event = threading.Event()
        with self._lock:
            if self._tail_count >= MAX_TAILS:
                raise error_from_code("too_many_tails", (MAX_TAILS,))
            self._tail_count += 1
            self._tails.setdefault(execution_id, set()).add(event)
        return event

    def end_tail(self, execution_id: str, event: threading.Event) -> None:
        """Stop setting the event that `tail` returned."""
        with self._lock:
            self._tail_count -= 1
            self._tails[execution_id].remove(event)
            if not self._tails[execution_id]:
                del self._tails[execution_id]

    def revive(self) -> None:
        """Start the thread again if it has ended."""
        with self._lock:
            if self.is_closed or self._thread.is_alive():
                return
            log.error("The thread that listens for messages had died; it is started again.")
            self._reader.fail()
            self._thread = self._started()

    def close(self) -> None:
        """Stop listening, and let every waiting thread continue."""
        self._reader.close()
        self._thread.join(timeout=2 * _LISTEN)
        with self._lock:
            for events in [*self._results.values(), *self._tails.values()]:
                for event in events:
                    event.set()

    # The thread

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name=f"flowfabric-listener-{self.topic[:8]}", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while not self.is_closed:
            try:
                self._listen()
            except Exception as error:  # noqa: BLE001  whatever it is, threads wait for this one
                self._warnings.warn("The connection that listens for messages was lost (%s); connecting again.", error)
                self._reader.fail()

    def _listen(self) -> None:
        """Pass messages on until the listener is closed or something fails."""
        if self._reader.connect():
            self._wake_tails(list(self._tails))
            self._recheck_due = -math.inf
        while not self.is_closed:
            now = time.monotonic()
            if now >= self._recheck_due:
                self._recheck_due = now + _RECHECK_EVERY
                self._start_recheck()
            for message in self._reader.read(self._recheck_due - now):
                self._dispatch(message)

    def _dispatch(self, message: bytes) -> None:
        try:
            word, *rest = message.decode().split(" ")
            if word == "done":
                (execution_id,) = rest
                self._finish(execution_id)
            elif word == "frames":
                self._wake_tails(rest)
            elif word == "lost":
                execution_id, fence = rest
                for callback in list(self._lost):
                    callback(execution_id, fence)
            else:
                raise ValueError("an unknown word")
        except Exception as error:  # noqa: BLE001  a callback too may raise anything
            self._warnings.warn(_NO_MESSAGE, message, error)

    def _finish(self, execution_id: str) -> None:
        with self._lock:
            for event in self._results.pop(execution_id, []):
                event.set()

    def _wake_tails(self, execution_ids: list[str]) -> None:
        with self._lock:
            for execution_id in execution_ids:
                for event in self._tails.get(execution_id, ()):
                    event.set()

    # Look up watched executions in a second thread, because a partition that is down must not delay messages.

    def _start_recheck(self) -> None:
        with self._lock:
            ids, recheck = list(self._results), self._recheck
        if ids and recheck is not None and self._rechecking.acquire(blocking=False):
            try:
                threading.Thread(
                    target=self._look_up, args=(ids, recheck), name="flowfabric-recheck", daemon=True
                ).start()
            except BaseException:
                self._rechecking.release()
                raise

    def _look_up(self, ids: list[str], recheck: Callable[[list[str]], Iterable[str]]) -> None:
        began = time.monotonic()
        try:
            for execution_id in recheck(ids):
                self._finish(execution_id)
            self.rechecked_at = began
        except Exception as error:  # noqa: BLE001  it is tried again in a few seconds
            self._warnings.warn("The store cannot tell which executions have ended (%s); trying again.", error)
        finally:
            self._rechecking.release()
