"""Helpers for testing an application: a pytest plugin, and the clock of a worker's store.

The fixtures of the plugin use the fixture `flowfabric`, a worker on a fresh store in memory. An application overrides
it with its own worker:

    @pytest.fixture
    def flowfabric():
        with shop.worker.in_memory() as worker:
            yield worker

    def test_a_receipt_is_sent(flowfabric):
        run = shop.send_receipt.submit(7, "a@b.c")
        flowfabric.run_until_idle()
        assert run.result() == ...
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flowfabric_worker.worker import Worker


class Clock:
    """The clock of a worker's store, for tests: it stands still until a test moves it.

    Inside `worker.eager()` the clock follows real time, and can be moved too.

    Args:
        worker: a worker inside `worker.in_memory()` or `worker.eager()`, or on a store that was prepared for tests.
        moment: the first time of the clock.
    """

    def __init__(self, worker: Worker, moment: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self._worker = worker
        worker.engine.set_clock(moment)

    @property
    def now(self) -> datetime:
        """The time of the clock, in UTC."""
        # Import the package inside functions, so that pytest loads this plugin quickly.
        from flowfabric_worker.engine.moments import moment_of

        return moment_of(self._worker.engine.server_time())

    def move(self, duration: timedelta) -> None:
        """Move the clock forward; the next `worker.run_until_idle()` runs what has become due."""
        self._worker.engine.set_clock(self.now + duration)


@pytest.fixture
def flowfabric() -> Iterator[Worker]:
    """Provide a worker on a fresh store in memory; `flowfabric.run_until_idle()` runs what is due."""
    from flowfabric_worker.worker import Worker

    with Worker("test").in_memory() as worker:
        yield worker


@pytest.fixture
def flowfabric_eager(flowfabric: Worker) -> Iterator[Worker]:
    """Provide the worker of the fixture `flowfabric`, whose submissions run at once in the test's thread."""
    with flowfabric.eager():
        yield flowfabric


@pytest.fixture
def flowfabric_clock(flowfabric: Worker) -> Clock:
    """Provide the clock of the fixture `flowfabric`; `flowfabric_clock.move(timedelta(hours=1))` moves it forward."""
    return Clock(flowfabric)
