"""The command `bench`: what it measures, its verdict, and that it leaves nothing behind."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from flowfabric_worker.cli.bench.verdict import (
    Bound,
    Figures,
    Pace,
    Spread,
    bound_of_all,
    bound_of_one,
    spread_of,
    verdict,
)
from flowfabric_worker.engine.engine import Engine, open_engine
from tests.support.cli import Process, cli, everything, ok, on_terminal, without_escapes
from tests.support.executions import created
from tests.support.servers import ValkeyServer, wait_until

SHORT = ("--tasks", 200, "--seconds", 0.5)
SPREADS = ("ping", "call", "start", "result")
PACES = ("submit", "submit_bulk", "drain")


def test_bench_measures_every_figure_and_leaves_nothing(store_url: str, engine: Engine) -> None:
    created(engine)
    before = everything(engine)

    document = ok("bench", "--url", store_url, *SHORT, "--json").document

    assert everything(engine) == before
    assert all(0 < document[name]["p50_ms"] <= document[name]["p99_ms"] for name in SPREADS)
    assert all(document[name]["per_second"] > 0 for name in PACES)
    assert document["submit_bulk"]["count"] == 200
    assert document["drain_bound_by"] in [*Bound]


def test_bench_leaves_a_store_without_setup_as_it_is(url: str) -> None:
    ok("bench", "--url", url, *SHORT)

    engine = open_engine(url)
    assert engine.prepare().created
    engine.close()


def test_bench_prints_a_table_and_the_verdict(url: str) -> None:
    text = ok("bench", "--url", url, *SHORT, "--threads", 1).out

    assert all(what in text for what in ("submit in bulk", "drain with 1 thread", "submit to result", "P99"))
    assert "Draining is limited by" in text


def test_bench_shows_a_progress_bar_only_on_a_terminal(url: str) -> None:
    shown = on_terminal("bench", "--tasks", "50", "--seconds", "0.3", url=url)
    ran = ok("bench", "--tasks", 50, "--seconds", 0.3)

    assert "\u2501" in shown
    assert "\u2501" not in ran.out + ran.err
    assert ran.err == ""
    assert max(map(len, without_escapes(shown).replace("\r", "\n").splitlines())) <= 80


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("sign", [b":meta", b":x:"], ids=["while it sets up", "in the middle"])
def test_interrupted_bench_leaves_nothing(
    start: Callable[..., Process], number: int, sign: bytes, valkey: ValkeyServer
) -> None:
    client = valkey.client()
    before = set(client.scan_iter())
    process = start("bench", "--url", f"{valkey.url}?partitions=50", "--tasks", 100_000, "--seconds", 60)
    wait_until(lambda: any(sign in key for key in {*client.scan_iter()} - before), "it has begun")

    process.signal(number)

    assert process.wait() == 130
    assert "Traceback" not in process.log
    assert set(client.scan_iter()) == before


def test_bench_of_an_unreachable_store_exits_3() -> None:
    assert cli("bench", "--url", "valkey://127.0.0.1:1").code == 3


# Conclusions from figures


def pace(seconds: float, python: float, server: float | None = 0.0, count: int = 1000) -> Pace:
    return Pace(count=count, seconds=seconds, python_seconds=python, server_seconds=server)


def figures(calls: Pace, submit: Pace, drain: Pace) -> Figures:
    spread = Spread(p50_ms=1, p99_ms=2, count=100)
    return Figures(
        ping=spread, call=spread, calls=calls, submit=submit, submit_bulk=submit, drain=drain, start=spread,
        result=spread,
    )  # fmt: skip


NEAR = pace(0.1, 0.05, 0.02)
FOUND = {
    "Python that is busy": (figures(NEAR, pace(0.2, 0.15, 0.03), pace(1, 0.9, 0.4)), Bound.PYTHON, Bound.PYTHON),
    "a server that is busy": (figures(NEAR, pace(0.3, 0.05, 0.2), pace(1, 0.4, 0.9)), Bound.SERVER, Bound.SERVER),
    "a server that is far away": (
        figures(pace(20, 0.05, 0.02), pace(20.2, 0.1, 0.05), pace(1, 0.1, 0.05)),
        Bound.ROUND_TRIP,
        Bound.ROUND_TRIP,
    ),
    "a disk that is waited for": (figures(NEAR, pace(5, 0.1, 0.05), pace(1, 0.2, 0.1)), Bound.DISK, Bound.DISK),
    "a disk that many share": (figures(NEAR, pace(5, 0.1, 0.05), pace(1, 0.3, 0.6)), Bound.DISK, Bound.SERVER),
    "a server that does not tell": (
        figures(NEAR, pace(0.2, 0.12, None), pace(1, 0.6, None)),
        Bound.PYTHON,
        Bound.PYTHON,
    ),
}


@pytest.mark.parametrize(("found", "one", "all_"), FOUND.values(), ids=FOUND.keys())
def test_bound_is_the_part_with_the_largest_share(found: Figures, one: Bound, all_: Bound) -> None:
    assert bound_of_one(found)[0] is one
    assert bound_of_all(found) is all_


def test_verdict_omits_what_the_server_does_not_report() -> None:
    told, untold = (figures(NEAR, pace(0.2, 0.1), pace(1, 0.9, server)) for server in (0.5, None))

    assert "the server for 50%" in verdict(told)
    assert "the server for" not in verdict(untold)


def test_spread_has_the_median_and_the_99th_percentile() -> None:
    assert spread_of([*range(100, 0, -1)]) == Spread(p50_ms=51_000, p99_ms=100_000, count=100)
    assert spread_of([0.5]) == Spread(p50_ms=500, p99_ms=500, count=1)
