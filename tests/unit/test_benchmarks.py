"""What the benchmarks compute and print; that they measure is seen by running them."""

from __future__ import annotations

import inspect

import pytest

from benchmarks import comparison, report
from benchmarks.__main__ import main
from benchmarks.commands import cost_of
from benchmarks.environments import Script, inline_metadata, scripts
from benchmarks.figures import advantage, per_item, percentile
from benchmarks.rows import ROWS, Row, Target

RATE = Row(
    name="drain",
    step="s",
    title="drain",
    unit="per s",
    targets=(Target(4, "dramatiq"),),
    goals=(Target(8, "dramatiq"),),
)
TIME = Row(name="start", step="s", title="start", unit="ms", targets=(Target(0.8), Target(0.5, "huey")))


def script(name: str, share: float = 1.0) -> Script:
    return Script(name=name, dependencies=(), share=share)


def test_every_option_of_the_command_is_an_argument_of_what_it_runs() -> None:
    run = main.callback
    assert run is not None
    assert {parameter.name for parameter in main.params} == set(inspect.signature(run).parameters)


def test_a_percentile_is_one_of_the_values() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0.2, 0.5, 0.99, 1)] == [1.0, 3.0, 5.0, 5.0]


def test_a_ratio_of_2_is_twice_as_good_for_rates_and_times() -> None:
    assert advantage(2000, 1000, more_is_better=True) == 2
    assert advantage(1.5, 3, more_is_better=False) == 2


def test_two_batches_split_a_cost_by_item_and_by_batch() -> None:
    assert per_item((1, 11), (500, 1009)) == (2, 9)


def test_commands_that_only_some_batches_run_are_counted_by_name() -> None:
    cost = cost_of({"hset": 1, "time": 1}, {"hset": 500, "time": 1, "zadd": 499}, 500)
    assert (cost.each, cost.batch) == (2, 0)
    assert cost.by_name == {"hset": 1, "time": 0, "zadd": 1}


@pytest.mark.parametrize(("ours", "reached"), [(4000, True), (3999, False)])
def test_a_target_against_a_peer_is_a_multiple_of_its_figure(ours: float, reached: bool) -> None:
    assert RATE.reaches({"flowfabric": ours, "dramatiq": 1000}, RATE.targets[0]) is reached


@pytest.mark.parametrize(("ours", "reached"), [(0.8, True), (0.81, False)])
def test_a_target_without_a_peer_bounds_a_time_from_above(ours: float, reached: bool) -> None:
    assert TIME.reaches({"flowfabric": ours}, TIME.targets[0]) is reached


@pytest.mark.parametrize(("ours", "reached"), [(2.0, True), (2.1, False)])
def test_a_time_that_must_be_half_as_good_may_take_twice_as_long(ours: float, reached: bool) -> None:
    assert TIME.reaches({"flowfabric": ours, "huey": 1.0}, TIME.targets[1]) is reached
    assert TIME.describe(TIME.targets[1]) == "2 x huey"


@pytest.mark.parametrize(("name", "allowed"), [("start_p50", 1.6), ("start_p99", 2.0)])
def test_submit_to_start_may_take_so_many_times_as_long_as_huey_takes(name: str, allowed: float) -> None:
    (row,) = [row for row in ROWS if row.name == name]
    assert [row.describe(target) for target in (*row.targets, *row.goals)] == [f"{allowed:g} x huey", "1 x huey"]


def test_only_existing_peers_are_measured() -> None:
    asked = {target.against for row in ROWS for target in (*row.targets, *row.goals)} - {None}
    assert asked <= {each.name for each in scripts()}


def test_a_target_without_a_measured_peer_is_neither_reached_nor_missed() -> None:
    assert RATE.reaches({"flowfabric": 4000}, RATE.targets[0]) is None
    assert report.verdict([None]) == "-"
    assert report.verdict([None, True]) == "yes"
    assert report.verdict([True, False]) == "no"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (18234.5, "18,234"), (100, "100"), (12.345, "12.3"), (0.20461, "0.205"), (0, "0")]
)
def test_figures_are_printed_with_the_digits_that_count(value: float | None, text: str) -> None:
    assert report.number(value) == text


def test_the_comparison_shows_medians_and_ratios_with_ours_first() -> None:
    figures = {"drain": {"flowfabric": [9000.0, 8000.0, 1.0], "dramatiq": [2000.0]}}
    table = comparison.table(
        figures, [script("celery", 0.25), script("dramatiq"), script("flowfabric")], [RATE], tasks=10, rounds=3
    )
    assert list(table.headings)[2:7] == ["flowfabric", "celery", "dramatiq", "x celery", "x dramatiq"]
    judged = ["4 x dramatiq", "yes", "8 x dramatiq", "no"]
    assert table.rows == [["drain", "per s", "8,000", "-", "2,000", "-", "4", *judged]]
    assert "2 for celery, 10 for dramatiq" in table.notes[0]


def test_targets_against_peers_that_do_not_take_part_are_left_out() -> None:
    table = comparison.table({"drain": {"flowfabric": [9000.0]}}, [script("flowfabric")], [RATE], tasks=1, rounds=1)
    assert table.rows[0][-4:] == ["-", "-", "-", "-"]


TABLE = report.Table(
    title="Speed", headings=["what", "value"], rows=[["drain", "18,000"], ["x", "1"]], notes=["A note."]
)


def test_a_table_as_text_aligns_words_left_and_figures_right() -> None:
    assert report.as_text(TABLE).splitlines() == [
        "Speed",
        "",
        "what    value",
        "-----  ------",
        "drain  18,000",
        "x           1",
        "A note.",
    ]


def test_a_page_holds_the_facts_and_every_table() -> None:
    assert report.page({"command": "python -m benchmarks"}, [TABLE]).splitlines() == [
        "# Benchmarks",
        "",
        "- command: python -m benchmarks",
        "",
        "## Speed",
        "",
        "| what | value |",
        "| --- | ---: |",
        "| drain | 18,000 |",
        "| x | 1 |",
        "",
        "A note.",
    ]


def test_a_script_says_what_it_needs_in_its_first_comment() -> None:
    source = '"""S."""\n\n# /// script\n# dependencies = ["a"]\n# [tool.benchmarks]\n# share = 0.5\n# ///\n'
    assert inline_metadata(source) == {"dependencies": ["a"], "tool": {"benchmarks": {"share": 0.5}}}
    assert inline_metadata('"""No peer."""\n') is None


def test_peers_are_found_by_their_files() -> None:
    assert {each.name for each in scripts()} == {"celery", "dramatiq", "flowfabric", "huey", "rq"}
    assert {each.name for each in scripts("postgres")} == {"dbos", "flowfabric", "pgqueuer", "procrastinate"}
