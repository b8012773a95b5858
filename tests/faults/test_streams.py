"""Readers of streams while connections break, stores restart, and many read at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.streams import StreamCloseReason, StreamCursor
from tests.support.executions import running as running_execution
from tests.support.servers import PATIENCE, ValkeyServer
from tests.support.streams import BEGINNING, BlockedTail, append_all, frame, payloads, tail, waiting

BLOCK = timedelta(seconds=30)
HOUR = timedelta(hours=1)


@pytest.fixture
def served(server: ValkeyServer) -> Iterator[Engine]:
    """Provide an engine on a server of this test's own."""
    engine = open_engine(server.url)
    engine.prepare()
    yield engine
    engine.close()


def cut(server: ValkeyServer) -> None:
    client = server.client()
    for kind in ("normal", "pubsub"):
        client.execute_command("CLIENT", "KILL", "TYPE", kind)


def killed_and_started(server: ValkeyServer) -> None:
    server.kill()
    server.start()


def stopped_and_started(server: ValkeyServer) -> None:
    server.stop()
    server.start()


def away_for_longer_than_a_call_is_tried(server: ValkeyServer) -> None:
    server.kill()
    time.sleep(7)
    server.start()


@pytest.mark.parametrize("harm", [cut, killed_and_started, stopped_and_started, away_for_longer_than_a_call_is_tried])
def test_a_tail_survives_a_disturbed_store(
    server: ValkeyServer, served: Engine, harm: Callable[[ValkeyServer], None]
) -> None:
    claimed = running_execution(served, lease=HOUR)
    place = StreamCursor(served.append_frame(claimed.handle, frame("before")).frame_id)
    with waiting(served, claimed.execution_id):
        blocked = BlockedTail(lambda: tail(served, claimed.execution_id, place, BLOCK))
    harm(server)
    served.append_frame(claimed.handle, frame("after"))

    assert payloads(blocked.result(PATIENCE)) == [b"after"]


def followed(engine: Engine, execution_id: ExecutionId) -> Iterator[bytes]:
    """Yield every frame of the first attempt until its stream is closed."""
    place = BEGINNING
    while True:
        page = tail(engine, execution_id, place, BLOCK)
        yield from payloads(page)
        place = page.next_cursor
        if page.is_closed and not page.more:
            return


def test_a_reader_that_is_cut_off_sees_each_frame_once_and_the_end(server: ValkeyServer, served: Engine) -> None:
    reader = open_engine(server.url)
    for _ in range(20):
        claimed = running_execution(served, lease=HOUR)
        found: list[bytes] = []
        thread = threading.Thread(target=lambda of=claimed, into=found: into.extend(followed(reader, of.execution_id)))
        thread.start()
        for number in range(10):
            served.append_frame(claimed.handle, frame(str(number), seq=number))
        cutting = threading.Thread(target=cut, args=(server,))
        cutting.start()
        served.complete(claimed.handle)
        cutting.join()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert found == [str(number).encode() for number in range(10)]
    reader.close()


@pytest.mark.parametrize("streams", [1, 100])
def test_a_hundred_tails_are_woken_and_hold_up_nothing(served: Engine, streams: int) -> None:
    claimed = [running_execution(served, lease=HOUR) for _ in range(streams)]
    elsewhere = running_execution(served, lease=HOUR)
    blocked = []
    for each in claimed:
        with waiting(served, each.execution_id, 100 // streams):
            blocked += [
                BlockedTail(lambda of=each: tail(served, of.execution_id, BEGINNING, BLOCK))  # type: ignore[misc]
                for _ in range(100 // streams)
            ]
    slowest = 0.0
    for number in range(100):
        began = time.monotonic()
        served.append_frame(elsewhere.handle, frame(str(number)))
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 5.0

    for each in claimed:
        served.append_frame(each.handle, frame("x"))

    assert [payloads(each.result(PATIENCE)) for each in blocked] == [[b"x"]] * 100


def test_a_hundred_tails_learn_of_an_end(served: Engine) -> None:
    claimed = running_execution(served, lease=HOUR)
    with waiting(served, claimed.execution_id, 100):
        blocked = [BlockedTail(lambda: tail(served, claimed.execution_id, BEGINNING, BLOCK)) for _ in range(100)]
    served.complete(claimed.handle)
    reasons = {each.result(PATIENCE).closed_reason for each in blocked}
    assert reasons == {StreamCloseReason.ATTEMPT_SUCCESS}


def test_wake_ups_are_few_while_a_reader_is_behind(server: ValkeyServer, served: Engine) -> None:
    claimed = running_execution(served, lease=HOUR)
    with waiting(served, claimed.execution_id):
        blocked = BlockedTail(lambda: tail(served, claimed.execution_id, BEGINNING, BLOCK))
    listening = server.client().pubsub()
    listening.subscribe(f"ff:topic:{served.listener.topic}")
    assert listening.get_message(timeout=5)
    for number in range(500):
        append_all(served, claimed.handle, [frame(str(number))])
    assert blocked.result().frames
    heard = 0
    while listening.get_message(timeout=0.2):
        heard += 1
    assert heard == 1
