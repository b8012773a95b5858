"""Back-off: pauses that double up to a limit, and begin again after a success."""

from __future__ import annotations

from flowfabric_worker.engine.backoff import Backoff


def test_pauses_double_up_to_the_longest_one() -> None:
    backoff = Backoff(0.1, 0.5)

    assert [backoff.next() for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_pauses_begin_again_after_enough_work() -> None:
    backoff = Backoff(0.1, 0.5, steady_after=5.0)
    backoff.next()
    backoff.settle(4.0)
    short = backoff.next()
    backoff.settle(6.0)

    assert (short, backoff.next()) == (0.2, 0.1)


def test_pauses_begin_again_after_a_success() -> None:
    backoff = Backoff(0.1, 0.5)
    backoff.next()
    backoff.next()
    backoff.reset()

    assert backoff.next() == 0.1
