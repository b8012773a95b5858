"""What the kill table concludes from what tasks wrote down; that workers are killed is seen by running it."""

from __future__ import annotations

import attrs
import pytest

from benchmarks import journal, kills
from benchmarks.environments import scripts
from benchmarks.journal import Killed, Line, Stopped

VICTIM, SUCCESSOR = 1, 2
KILL_AT = 10.0

CLEAN = Killed(
    interrupted=frozenset({1, 2}),
    unsettled=frozenset({3}),
    missing=frozenset(),
    again=frozenset({1, 2}),
    twice=frozenset(),
    whole_after=11.0,
)
HARMLESS = Stopped(lost=frozenset(), twice=frozenset(), seconds=0.2)
OURS, PEER = kills.CASES[0], next(case for case in kills.CASES if case.script == "huey")


def line(word: str, number: int, pid: int, at: float) -> Line:
    return Line(word=word, number=number, pid=pid, at=at)


def ran(number: int, pid: int, at: float) -> list[Line]:
    return [line("begin", number, pid, at - 0.1), line("end", number, pid, at)]


def test_a_line_that_a_kill_cut_off_is_not_read() -> None:
    text = "begin 7 12 1500000000\nend 7 12 1600000000\nbegin 8 12 17"
    assert journal.read(text) == [line("begin", 7, 12, 1.5), line("end", 7, 12, 1.6)]


def test_what_the_victim_began_and_did_not_end_was_interrupted() -> None:
    lines = [*ran(0, VICTIM, 5), line("begin", 1, VICTIM, 9.95), *ran(1, SUCCESSOR, 20)]
    assert journal.killed(lines, 2, at=KILL_AT).interrupted == {1}


def test_what_a_survivor_was_running_was_not_interrupted() -> None:
    lines = [line("begin", 0, VICTIM, 9.95), line("begin", 1, SUCCESSOR, 9.95), line("end", 1, SUCCESSOR, 10.05)]
    assert journal.killed(lines, 2, at=KILL_AT, survivors={SUCCESSOR}).interrupted == {0}


def test_only_what_ended_just_before_the_kill_is_unsettled() -> None:
    lines = [*ran(0, VICTIM, 9.8), *ran(1, VICTIM, 9.95), *ran(2, SUCCESSOR, 9.95)]
    assert journal.killed(lines, 3, at=KILL_AT, survivors={SUCCESSOR}).unsettled == {1}


def test_a_task_that_never_ended_is_missing_and_leaves_no_recovery_time() -> None:
    lines = [*ran(0, VICTIM, 5), line("begin", 1, VICTIM, 9.95)]
    killed = journal.killed(lines, 3, at=KILL_AT)
    assert killed.missing == {1, 2}
    assert killed.whole_after is None


def test_nothing_is_missing_from_the_first_end_of_the_last_task() -> None:
    lines = [*ran(0, VICTIM, 9.95), *ran(1, SUCCESSOR, 12), *ran(0, SUCCESSOR, 21)]
    killed = journal.killed(lines, 2, at=KILL_AT)
    assert killed.whole_after == pytest.approx(2.0)
    assert killed.again == killed.twice == {0}


def test_a_task_that_is_begun_again_and_ends_once_did_not_end_twice() -> None:
    lines = [line("begin", 0, VICTIM, 9.95), *ran(0, SUCCESSOR, 20)]
    killed = journal.killed(lines, 1, at=KILL_AT)
    assert (killed.again, killed.twice) == ({0}, set())


def test_a_kill_is_survived_if_only_interrupted_work_ran_again_in_time() -> None:
    assert CLEAN.reaches(12.0)


def test_an_end_that_was_not_yet_stored_may_be_repeated() -> None:
    assert attrs.evolve(CLEAN, again=frozenset({1, 2, 3}), twice=frozenset({3})).reaches(12.0)


@pytest.mark.parametrize(
    "killed",
    [
        attrs.evolve(CLEAN, missing=frozenset({1}), whole_after=None),
        attrs.evolve(CLEAN, whole_after=12.1),
        attrs.evolve(CLEAN, again=frozenset({1})),
        attrs.evolve(CLEAN, again=frozenset({1, 2, 4})),
        attrs.evolve(CLEAN, twice=frozenset({1})),
    ],
    ids=["missing", "late", "not begun again", "begun again without need", "ended twice"],
)
def test_a_kill_is_not_survived_otherwise(killed: Killed) -> None:
    assert not killed.reaches(12.0)


def test_a_stop_may_lose_nothing_and_repeat_nothing() -> None:
    settled = journal.stopped([*ran(0, VICTIM, 1), *ran(1, SUCCESSOR, 2)], 2, 0.2)
    assert settled == HARMLESS
    assert settled.reaches()
    assert journal.stopped(ran(0, VICTIM, 1), 2, 0.2).lost == {1}
    assert not attrs.evolve(HARMLESS, lost=frozenset({1})).reaches()
    assert not attrs.evolve(HARMLESS, twice=frozenset({1})).reaches()


def test_the_table_shows_the_smallest_and_the_largest_of_the_trials() -> None:
    other = attrs.evolve(CLEAN, interrupted=frozenset(range(8)), again=frozenset(range(8)), whole_after=9.0)
    table = kills.table_of({OURS: [trial(CLEAN), trial(other)]}, 60)
    assert table.rows == [
        [OURS.title, "2", "2 to 8", "0", "9 to 11", "2 to 8", "0", "0", "0", "0.2", "yes"],
    ]


def test_one_trial_that_fails_fails_the_case() -> None:
    late = attrs.evolve(CLEAN, whole_after=13.0)
    assert kills.table_of({OURS: [trial(CLEAN), trial(late)]}, 60).rows[0][-1] == "no"


def test_a_peer_is_not_judged_and_has_no_time_when_something_stays_missing() -> None:
    lossy = attrs.evolve(CLEAN, missing=frozenset({1, 2}), whole_after=None, again=frozenset())
    (row,) = kills.table_of({PEER: [trial(lossy), trial(CLEAN)]}, 60).rows
    assert row[3:5] == ["0 to 2", "-"]
    assert row[-1] == "-"


def test_every_peer_is_killed() -> None:
    assert {case.script for case in kills.CASES} == {script.name for script in scripts()}


def trial(killed: Killed) -> kills.Trial:
    return kills.Trial(killed=killed, stopped=HARMLESS)
