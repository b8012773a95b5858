"""The command `lanes`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import open_engine
from tests.support.cli import cli, ok, submitted
from tests.support.executions import raw_client, raw_key

pytestmark = pytest.mark.usefixtures("url")


def test_lanes_lists_the_depths_of_each_lane() -> None:
    submitted("add", "--lane", "sums")
    submitted("add", "--lane", "sums", "--delay", "1h")
    submitted("send", "--lane", "mail")

    headers, mail, sums = (line.split() for line in ok("lanes").out.splitlines())

    assert headers == ["LANE", "IS", "WAITING", "DELAYED", "ACTIVE", "COMPLETED", "FAILED"]
    assert mail == ["mail", "open", "1", "0", "0", "0", "0"]
    assert sums == ["sums", "open", "1", "1", "0", "0", "0"]
    assert ok("lanes", "list", "mail", "--json").document["depths"]["waiting"] == 1


def test_lanes_shows_a_column_for_each_state_that_has_work() -> None:
    ok("cancel", submitted("add", "--lane", "sums"))

    assert "CANCELLED" in ok("lanes").out


def test_lanes_pauses_and_resumes_a_lane() -> None:
    submitted("add", "--lane", "sums")

    assert ok("lanes", "pause", "sums").out == "sums: paused.\n"
    assert ok("lanes", "pause", "sums").out == "sums: was already paused.\n"
    assert "paused" in ok("lanes").out
    assert ok("lanes", "resume", "sums", "--json").document == {"lane": "sums", "changed": True}
    assert ok("lanes", "resume", "sums").out == "sums: was not paused.\n"


def test_lanes_and_check_tell_of_damaged_counters(embedded_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"embedded://{embedded_directory}?prefix=t{uuid4().hex[:12]}"
    monkeypatch.setenv("FLOWFABRIC_URL", url)
    submitted("add", "--lane", "sums", "--force")
    with contextlib.closing(open_engine(url)) as engine:
        raw_client(engine).hset(raw_key(engine, 0, "lane:7:default4:sums"), "waiting", "many")

    assert "counters damaged" in ok("lanes").out
    assert "Its counters of what is waiting are damaged" in ok("check").out


def test_lanes_refuses_to_pause_without_a_name() -> None:
    assert cli("lanes", "pause").code == 2


def test_lanes_and_workers_of_an_empty_store_print_nothing() -> None:
    assert ok("lanes").out == ok("workers").out == ok("lanes", "--json").out == ""


@pytest.mark.parametrize("action", ["list", "pause", "resume"])
def test_lanes_suggests_a_similar_name_for_an_unknown_lane(action: str) -> None:
    submitted("add", "--lane", "mail")

    assert ok("lanes", action, "mial").err.startswith("The store has no lane 'mial' yet. Did you mean 'mail'?\n")
