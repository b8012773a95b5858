"""The command `check`."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from tests.support.cli import Ran, cli, everything, ok, serving, submitted
from tests.support.executions import created
from tests.support.servers import ValkeyServer


def findings(ran: Ran) -> dict[str, str]:
    """Return what `check --json` found, as text and advice."""
    return {each["what"]: f"{each['text']} {each['advice']}" for each in ran.document["findings"]}


def test_check_describes_a_usable_store_and_exits_0(url: str) -> None:
    with serving(url):
        ran = ok("check", "--json")
        text = ok("check").out

    found = findings(ran)
    assert ran.document["ok"] is True
    assert found["store"].startswith(("valkey 9.", "postgresql 1"))
    assert found["set-up"].startswith("1 partition")
    assert "granted" in found["rights"]
    assert "ms" in found["clock"]
    assert found["workers"].startswith("1 alive, 2 threads")
    assert all(what in text for what in found)


def test_check_leaves_nothing_behind(store_url: str, engine: Engine) -> None:
    created(engine)
    before = everything(engine)

    ok("check", "--url", store_url)

    assert everything(engine) == before


@pytest.mark.usefixtures("url")
def test_check_names_what_stops_work_and_what_to_do() -> None:
    submitted("add", "--lane", "sums")
    submitted("send", "--lane", "mail")
    ok("lanes", "pause", "mail")

    found = findings(ok("check", "--json"))

    assert "no running worker serves it" in found["lane sums"]
    assert "flowfabric-worker run" in found["lane sums"]
    assert "lanes resume 'mail'" in found["lane mail"]


def test_check_warns_of_a_store_whose_clock_can_be_set(url: str) -> None:
    engine = open_engine(url)
    engine.prepare(testing=True)
    engine.close()

    assert "prepared for tests" in findings(ok("check", "--json"))["warning"]


def test_check_of_an_unreachable_store_says_what_to_do(tmp_path: Path) -> None:
    ran = cli("check", "--url", f"unix://{tmp_path}/no.sock", "--json")

    assert ran.code == 3
    assert ran.document["ok"] is False
    assert "Check that the server is running" in ran.err


def test_check_finds_a_missing_right(valkey: ValkeyServer) -> None:
    valkey.client().acl_setuser(
        "reader",
        enabled=True,
        passwords=["+s3cret"],
        categories=["+@all"],
        commands=["-xadd"],
        keys=["*"],
        channels=["*"],
    )

    ran = cli("check", "--url", f"unix://reader:s3cret@{valkey.socket}?prefix=rights")

    assert ran.code == 4
    assert "xadd" in ran.err
    assert "ACL SETUSER" in ran.err
    assert "s3cret" not in ran.out + ran.err
