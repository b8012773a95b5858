"""What the benchmarks conclude from ticks, steps and renewals."""

from __future__ import annotations

import attrs
import pytest

from benchmarks import flows, leases, listings, logs, quotas, schedules, steps, streams, waits, writes
from benchmarks.leases import Renewal
from benchmarks.listings import Page
from benchmarks.logs import Drain
from benchmarks.rows import ROWS
from benchmarks.schedules import Lateness
from benchmarks.writes import Written

ON_TIME = Lateness(workers=4, wanted=1000, missing=0, twice=0, late=[0.1] * 600 + [0.9] * 400)


def test_ticks_pass_if_none_is_missing_or_doubled_and_half_are_early() -> None:
    (row,) = schedules.table_of([ON_TIME]).rows
    assert row == ["4", "1,000", "0", "0", "0.1", "0.9", "0.9", "none missing, p50 0.2", "yes"]


@pytest.mark.parametrize("wrong", [{"missing": 1}, {"twice": 1}, {"late": [0.1] * 400 + [0.2] * 600}, {"late": []}])
def test_ticks_that_are_missing_doubled_or_late_are_not_good(wrong: dict[str, object]) -> None:
    (row,) = schedules.table_of([attrs.evolve(ON_TIME, **wrong)]).rows
    assert row[-1] == "no"


def test_ticks_are_read_from_what_handlers_wrote_down() -> None:
    journal = "\n".join(f"beat{n} 2030-01-01T00:00:0{s}Z {1893456000 + s + 0.25}" for n in range(3) for s in (1, 2, 2))

    found = schedules._read(journal, 1, 1893456002)

    assert (len(found.late), found.twice, found.missing) == (3, 3, found.wanted - 3)
    assert found.late == [0.25] * 3


@pytest.mark.parametrize(("rate", "reached"), [(1500.0, "yes"), (1499.0, "no")])
def test_steps_of_one_handler_alone_are_judged(rate: float, reached: str) -> None:
    one, eight = steps.table_of({1: [rate], 8: [4000.0]}).rows
    assert one[-2:] == ["1,500", reached]
    assert eight == ["8", "4,000", "500", "-", "-"]


@pytest.mark.parametrize(("took", "reached"), [(5.0, "yes"), (5.1, "no")])
def test_waits_are_judged_by_how_soon_a_handler_runs_again(took: float, reached: str) -> None:
    measured = waits.Measured(suspended=[took] * 3, signalled=[1.0] * 3, first=[0.2] * 3, last=[0.3] * 3)
    suspended, signalled, first, last = waits.table_of(measured).rows
    assert suspended[1:] == [f"{took:g} ms", f"{took:g} ms", "5 ms", reached]
    assert [row[1:] for row in (signalled, first, last)] == [
        [f"{each} ms", f"{each} ms", "-", "-"] for each in ("1", "0.2", "0.3")
    ]


@pytest.mark.parametrize(("calls", "reached"), [(100, "yes"), (10, "no")])
def test_renewals_are_judged_by_the_length_of_a_call(calls: int, reached: str) -> None:
    (row,) = leases.table_of([Renewal(seconds=0.3, server_us=200_000, calls=calls)]).rows
    assert row[:4] == ["300", "200", "20", str(calls)]
    assert row[-1] == reached


PAGE = Page(found=100, looked_at=101, seconds=0.002, server_us=6000, calls=2, indexed=True)


@pytest.mark.parametrize(
    ("changes", "reached"),
    [({}, "yes"), ({"calls": 1}, "no"), ({"seconds": 0.021}, "no"), ({"seconds": 0.021, "indexed": False}, "yes")],
)
def test_listings_are_judged_by_calls_and_where_indexed_by_time(changes: dict[str, object], reached: str) -> None:
    (row,) = listings.table_of({"lane": [attrs.evolve(PAGE, **changes)]}, 1000).rows
    assert row[:3] == ["lane", "100", "101"]
    assert row[-1] == reached


@pytest.mark.parametrize(("rate", "reached"), [(950.0, "yes"), (949.0, "no")])
def test_lines_may_cost_a_twentieth_of_the_speed(rate: float, reached: str) -> None:
    talking, silent = logs.table_of(
        {"default": [Drain(rate=rate, processor=2.0)], "error": [Drain(rate=1000.0, processor=1.5)]}
    ).rows
    assert (talking[-1], talking[2]) == (reached, "2")
    assert silent == ["error", "1,000", "1.5", "1", "-", "-"]


def test_bytes_are_told_by_kind() -> None:
    (row,) = writes.table_of([Written(kind="plain", to_file=1828.4, to_replica=1800.0)]).rows
    assert row == ["plain", "1,828", "1,800"]


def test_what_a_drain_costs_another_lane_has_rows_in_ms_and_in_times() -> None:
    names = {row.name: row for row in ROWS if row.step == "beside"}
    assert len(names) == 8
    judged = ("submit_p50", "submit_p99", "start_p50")
    assert [names[f"beside_{what}_times"].targets[0].factor for what in judged] == [2, 5, 2]


def test_streams_are_told_as_times_and_rates() -> None:
    times = [1.0] * 99 + [50.0]
    table = streams.table_of(
        streams.Measured(first=times, late=[2.0] * 100, rates={1: [100.0, 300.0, 200.0], 8: [1000.0]})
    )

    assert table.rows == [
        ["submission to the first value at a live reader", "1 ms", "49.5 ms"],
        ["emission to a live reader", "2 ms", "2 ms"],
        ["frames of one handler", "200 per s", ""],
        ["frames of 8 handlers", "1,000 per s", ""],
    ]


def test_flows_are_shown_by_store_and_shape_and_chains_have_a_target() -> None:
    rates = [flows.Rate(submitted=500.0, run=run) for run in (100.0, 310.0, 400.0)]
    table = flows.table_of({("Valkey", "10 in a row"): rates, ("Postgres", "1 to 3 to 1"): rates})

    assert [row[:2] + row[3:] for row in table.rows] == [
        ["Valkey", "10 in a row", "310", "at least 300", "yes"],
        ["Postgres", "1 to 3 to 1", "310", "-", "-"],
    ]


def test_flows_of_each_shape_run_to_their_ends_when_they_are_measured() -> None:
    for name, (shape, _) in flows.SHAPES.items():
        rate = flows.measure(f"memory://{name.replace(' ', '').replace(',', '')}", shape, 1)
        assert min(rate.submitted, rate.run) > 0


def test_admission_is_shown_by_quota_and_by_tasks_per_call() -> None:
    cost = quotas.Admission(claim_us=20.0, complete_us=10.0)
    table = quotas.table_of({("Valkey", "none", 1): [cost], ("Postgres", "one hot quota", 50): [cost]})

    assert [row[:3] for row in table.rows] == [["Valkey", "none", "1"], ["Postgres", "one hot quota", "50"]]
