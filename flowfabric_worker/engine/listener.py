"""One connection per engine that listens, for every thread of this process that waits.

A stored function that changes something that others wait for sends a message to their topic:

    wake NUMBER PARTITION    there is work, or something is due, for the waiter of that number
    standby NUMBER PARTITION MS OTHER    another waiter was woken: look after so many ms, unless it comes
    taken NUMBER PARTITION OTHER         that other waiter came
    done EXECUTION           an execution ended
    lost EXECUTION FENCE     a lease of this process is over

A message may be lost with its connection. So after a reconnect every waiter is woken once, and looks; and what is
watched is looked up every few seconds, by one thread for all. A message that cannot be read is left out.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable
from uuid import uuid4

from flowfabric_worker.engine import log_queue as reporting
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.stores.base import Store, Subscription

log = reporting.Log(__name__)

# The longest that a thread waits without looking by itself, in seconds: for messages that a failover swallowed.
FALLBACK = 10.0
# The longest wait for a message; a subscription that stays silent is asked at each whether it lives.
_LISTEN = FALLBACK / 4
# Often enough that every wait of FALLBACK seconds contains one.
_RECHECK_EVERY = FALLBACK / 2
# Before connecting again, after one failure, two, and more.
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
# A subscription that lived so long has worked: the next failure is the first one again.
_STEADY_AFTER = 5.0
_SAY_AGAIN = 10.0


class Waiter:
    """A thread that waits for work: its name in the store, and the partitions in which it was woken.

    Args:
        name: how stored functions address it.
        on_silence: called when a wait ends without a wake-up.
    """

    def __init__(self, name: str, on_silence: Callable[[], None]) -> None:
        self.name = name
        self._on_silence = on_silence
        self._condition = threading.Condition()
        self._partitions: set[int] = set()
        self._woken = False
        self._everywhere = False
        # By partition and the other waiter: when to look.
        self._stand_by: dict[tuple[int, str], float] = {}
        self.stopped = False

    def wait(self, timeout: float) -> set[int] | None:
        """Wait until a wake-up comes, at most `timeout` seconds.

        Returns the partitions in which there is something to look for; None to look everywhere.
        """
        deadline = time.monotonic() + timeout
        with self._condition:
            while not self._woken:
                moment = time.monotonic()
                until = min([deadline, *self._stand_by.values()])
                if until <= moment:
                    break
                self._condition.wait(until - moment)
            woken = self._woken
            moment = time.monotonic()
            for key in [key for key, until in self._stand_by.items() if until <= moment]:
                self._partitions.add(key[0])
                del self._stand_by[key]
            partitions, everywhere = self._partitions, self._everywhere
            self._partitions, self._woken, self._everywhere = set(), False, False
        if not woken:
            self._on_silence()
        return None if everywhere else partitions

    def wake(self, partition: int | None = None) -> None:
        """End a wait; without a partition to look everywhere."""
        with self._condition:
            if partition is None:
                self._everywhere = True
            else:
                self._partitions.add(partition)
            self._woken = True
            self._condition.notify_all()

    def stand_by(self, partition: int, seconds: float, other: str) -> None:
        """Look in a partition after a time, unless the other waiter comes before."""
        with self._condition:
            self._stand_by[partition, other] = time.monotonic() + seconds
            self._condition.notify_all()

    def end_stand_by(self, partition: int, other: str) -> None:
        """Need not look any more: the other waiter came."""
        with self._condition:
            self._stand_by.pop((partition, other), None)

    def stop(self) -> None:
        """End a wait for good."""
        self.stopped = True
        self.wake()


class Listener:
    """Hears the messages of one topic and passes each on to the thread that waits for it.

    Args:
        store: where to listen.
        partitions: how many partitions it has.

    Attributes:
        topic: what it listens to.
        rechecked_at: when the last look at everything that is watched began that reached the whole store.
    """

    def __init__(self, store: Store, partitions: int) -> None:
        self.topic = uuid4().hex
        self.rechecked_at = -math.inf
        self._store = store
        self._partitions = partitions
        self._numbers = itertools.count()
        self._waiters: dict[str, Waiter] = {}
        self._results: dict[str, list[threading.Event]] = {}
        self._lock = threading.Lock()
        self._lost: list[Callable[[str, str], None]] = []
        self._recheck: Callable[[list[str]], Iterable[str]] | None = None
        self._recheck_due = -math.inf
        self._rechecking = threading.Lock()
        self._closed = threading.Event()
        self._said: dict[str, float] = {}
        # Subscribed before a waiter can register, so that nothing is sent to a topic to which nothing listens.
        self._subscription: Subscription | None = store.subscribe(self.topic)
        self._thread = self._started()

    @property
    def is_closed(self) -> bool:
        """Whether nothing is heard any more."""
        return self._closed.is_set()

    def waiter(self) -> Waiter:
        """Return a new waiter."""
        self.revive()
        number = str(next(self._numbers))
        waiter = self._waiters[number] = Waiter(f"{self.topic}/{number}", self.revive)
        return waiter

    def forget(self, waiter: Waiter) -> None:
        """End a waiter."""
        self._waiters.pop(waiter.name.rpartition("/")[2], None)

    def on_lost(self, callback: Callable[[str, str], None]) -> None:
        """Call `callback` with the id of an execution whose lease this process lost, and that lease's fence."""
        self._lost.append(callback)

    def off_lost(self, callback: Callable[[str, str], None]) -> None:
        """End what `on_lost` began."""
        self._lost.remove(callback)

    def watch(self, execution_id: str, recheck: Callable[[list[str]], Iterable[str]]) -> threading.Event:
        """Return an event that is set when an execution ends, and when listening ends.

        `recheck` gets ids and yields those that ended; it is called for all that are watched after a reconnect and
        every few seconds, once for all threads that wait.
        """
        self.revive()
        event = threading.Event()
        with self._lock:
            self._recheck = recheck
            self._results.setdefault(execution_id, []).append(event)
        if self._closed.is_set():
            event.set()
        return event

    def unwatch(self, execution_id: str, event: threading.Event) -> None:
        """End what `watch` began."""
        with self._lock:
            events = self._results.get(execution_id, [])
            if event in events:
                events.remove(event)
            if not events:
                self._results.pop(execution_id, None)

    def revive(self) -> None:
        """Start the thread again if something has ended it."""
        with self._lock:
            if self._closed.is_set() or self._thread.is_alive():
                return
            log.error("The thread that listens for wake-ups had died; it is started again.")
            if self._subscription is not None:
                self._subscription.close()
                self._subscription = None
            self._thread = self._started()

    def close(self) -> None:
        """Stop listening; every thread that waits is let go."""
        self._closed.set()
        try:
            # The thread sits in its subscription, which is its own: a message makes it look up.
            self._store.wake(self.topic, b"close")
        except EngineError:
            log.debug("The store is away; the listener ends by itself within a few seconds.")
        self._thread.join(timeout=2 * _LISTEN)
        for waiter in list(self._waiters.values()):
            waiter.stop()
        with self._lock:
            for events in self._results.values():
                for event in events:
                    event.set()

    # The thread

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name=f"flowfabric-listener-{self.topic[:8]}", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        failures = 0
        while not self._closed.is_set():
            began = time.monotonic()
            try:
                self._listen()
            except Exception as error:  # noqa: BLE001  whatever it is, threads wait for this one
                failures = 1 if time.monotonic() - began >= _STEADY_AFTER else failures + 1
                self._complain("The connection that listens for wake-ups was lost (%s); connecting again.", error)
                self._unsubscribe()
                self._closed.wait(_PAUSES[min(failures, len(_PAUSES)) - 1])
        self._unsubscribe()

    def _listen(self) -> None:
        """Pass messages on until the listener is closed, or something fails."""
        if self._subscription is None:
            self._subscription = self._store.subscribe(self.topic)
            for waiter in list(self._waiters.values()):
                waiter.wake()
            self._recheck_due = -math.inf
        while not self._closed.is_set():
            now = time.monotonic()
            if now >= self._recheck_due:
                self._recheck_due = now + _RECHECK_EVERY
                self._start_recheck()
            for message in self._subscription.wait(min(_LISTEN, self._recheck_due - now)):
                self._dispatch(message)

    def _unsubscribe(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    def _complain(self, text: str, *arguments: object) -> None:
        """Log a warning, each at most once in every few seconds."""
        now = time.monotonic()
        if now - self._said.get(text, -math.inf) >= _SAY_AGAIN:
            self._said[text] = now
            log.warning(text, *arguments)

    def _dispatch(self, message: bytes) -> None:
        try:
            word, *rest = message.decode().split(" ")
            if word == "wake":
                number, partition = rest
                self._check_partition(int(partition))
                self._tell(number, lambda waiter: waiter.wake(int(partition)))
            elif word == "standby":
                number, partition, ms, other = rest
                self._check_partition(int(partition))
                self._tell(number, lambda waiter: waiter.stand_by(int(partition), int(ms) / 1000, other))
            elif word == "taken":
                number, partition, other = rest
                self._tell(number, lambda waiter: waiter.end_stand_by(int(partition), other))
            elif word == "done":
                (execution_id,) = rest
                self._finish(execution_id)
            elif word == "lost":
                execution_id, fence = rest
                for callback in list(self._lost):
                    callback(execution_id, fence)
            elif word != "close":
                raise ValueError("an unknown word")
        except Exception as error:  # noqa: BLE001  a callback too may raise anything
            self._complain("A message that cannot be used was ignored: %.100r (%s).", message, error)

    def _check_partition(self, partition: int) -> None:
        if not 0 <= partition < self._partitions:
            raise ValueError(f"there is no partition {partition}")

    def _tell(self, number: str, what: Callable[[Waiter], None]) -> None:
        waiter = self._waiters.get(number)
        if waiter is not None:
            what(waiter)

    def _finish(self, execution_id: str) -> None:
        with self._lock:
            for event in self._results.pop(execution_id, []):
                event.set()

    # Looking up what is watched, in a thread of its own: a part of the store that is away must not hold messages up.

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
            self._complain("What has ended cannot be looked up (%s); trying again.", error)
        finally:
            self._rechecking.release()
