"""What the benchmarks conclude from the memory of workers."""

from __future__ import annotations

import attrs
import pytest

from benchmarks import memory, workers
from benchmarks.memory import MEGABYTE, Usage

SMALL = Usage(
    tasks=100_000,
    failed=10_000,
    at_start=40 * MEGABYTE,
    at_tenth=50 * MEGABYTE,
    at_end=51 * MEGABYTE,
    after_failures=52 * MEGABYTE,
)


def test_resident_memory_is_read_from_what_the_system_says_of_a_process() -> None:
    assert workers.resident_in("Name:\tpython\nVmRSS:\t   41000 kB\nThreads:\t12\n") == 41000 * 1024
    assert workers.resident_in("") == 0


def test_a_process_that_has_ended_is_no_member_of_a_worker() -> None:
    assert workers.is_zombie("Name:\tpython\nState:\tZ (zombie)\n")
    assert workers.is_zombie("")
    assert not workers.is_zombie("Name:\tpython\nState:\tS (sleeping)\n")


@pytest.mark.parametrize("when", ["at_start", "at_tenth", "at_end", "after_failures"])
def test_a_worker_is_small_that_is_always_under_60_megabytes(when: str) -> None:
    assert SMALL.is_small()
    assert not attrs.evolve(SMALL, **{when: 60 * MEGABYTE}).is_small()


@pytest.mark.parametrize("when", ["at_end", "after_failures"])
def test_a_worker_is_flat_that_does_not_grow_by_more_than_a_tenth(when: str) -> None:
    assert attrs.evolve(SMALL, **{when: 55 * MEGABYTE}).is_flat()
    assert not attrs.evolve(SMALL, **{when: 56 * MEGABYTE}).is_flat()


def test_only_ours_is_judged_by_its_memory() -> None:
    peer = attrs.evolve(SMALL, tasks=20_000, failed=0, after_failures=None)
    ours, theirs = memory.table_of({"flowfabric": SMALL, "huey": peer}).rows
    assert ours == ["flowfabric", "100,000", "40", "50", "51", "10,000", "52", "60 MB, flat", "yes"]
    assert theirs == ["huey", "20,000", "40", "50", "51", "-", "-", "-", "-"]
