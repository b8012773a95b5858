"""lanes, workers."""

from __future__ import annotations

import pytest

from tests.support.cli import cli, ok, serving, submitted

pytestmark = pytest.mark.usefixtures("url")


def test_lanes_shows_what_each_holds() -> None:
    submitted("add", "--lane", "sums")
    submitted("add", "--lane", "sums", "--delay", "1h")
    submitted("send", "--lane", "mail")

    headers, mail, sums = (line.split() for line in ok("lanes").out.splitlines())

    assert headers == ["LANE", "IS", "WAITING", "DELAYED", "ACTIVE", "COMPLETED", "FAILED"]
    assert mail == ["mail", "open", "1", "0", "0", "0", "0"]
    assert sums == ["sums", "open", "1", "1", "0", "0", "0"]
    assert ok("lanes", "list", "mail", "--json").document["depths"]["waiting"] == 1


def test_lanes_shows_every_state_that_some_lane_holds_work_in() -> None:
    ok("cancel", submitted("add", "--lane", "sums"))

    assert "CANCELLED" in ok("lanes").out


def test_a_lane_is_paused_and_resumed() -> None:
    submitted("add", "--lane", "sums")

    assert ok("lanes", "pause", "sums").out == "sums: paused.\n"
    assert ok("lanes", "pause", "sums").out == "sums: was paused already.\n"
    assert "paused" in ok("lanes").out
    assert ok("lanes", "resume", "sums", "--json").document == {"lane": "sums", "changed": True}
    assert ok("lanes", "resume", "sums").out == "sums: was not paused.\n"


def test_pausing_nothing_is_a_mistake() -> None:
    assert cli("lanes", "pause").code == 2


def test_an_empty_store_has_neither_lanes_nor_workers() -> None:
    assert ok("lanes").out == ok("workers").out == ok("lanes", "--json").out == ""


def test_workers_shows_who_is_alive_and_who_has_gone(url: str) -> None:
    with serving(url):
        alive = ok("workers").out.splitlines()[1].split()
        (document,) = ok("workers", "--json").documents
    gone = ok("workers").out.splitlines()[1].split()

    assert alive[0] == gone[0] == document["worker_instance_id"]
    assert (alive[1], gone[1]) == ("alive", "stopped")
    assert (document["alive"], document["threads"]) == (True, 2)
    assert document["lanes"] == ["naps", "sums"]
