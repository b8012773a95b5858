"""suspended, status, explain: what an operator sees of executions that wait."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.conditions import SignalMatcher, Single
from tests.support.cli import ok, on_terminal, without_escapes
from tests.support.cli_suspensions import waiting
from tests.support.executions import damage
from tests.support.suspensions import MINUTE, signal

pytestmark = pytest.mark.usefixtures("url")

HOSTILE = "a\u202eb\u2028c"


def test_suspended_lists_what_waits_longest_first(client: Client) -> None:
    first = waiting(client, timeout=timedelta(minutes=5, seconds=30))
    second = waiting(client, lane="mail", task="ask")

    header, *rows = ok("suspended").out.splitlines()

    assert header.split() == ["ID", "SINCE", "UNTIL", "FOR", "LANE", "TASK"]
    assert re.fullmatch(rf"{first.id} +\ds ago +in 5m +signal +ops +deploy", rows[0])
    assert re.fullmatch(rf"{second.id} +\ds ago +- +signal +mail +ask", rows[1])
    assert ok("suspended", "--lane", "mail").out.splitlines()[1:] == rows[1:]
    assert "No suspended executions found" in ok("suspended", "--namespace", "other").err


def test_suspended_says_in_json_since_when_and_until_when(client: Client) -> None:
    one = waiting(client, timeout=MINUTE)
    info = client.get(one.id)
    assert info is not None

    (document,) = ok("suspended", "--json").documents

    assert document["execution_id"] == one.id
    assert (document["suspended_at_ms"], document["timeout_at_ms"]) == (info.suspended_at_ms, info.suspended_until_ms)
    assert document["timeout_at_ms"] == document["suspended_at_ms"] + 60_000
    assert (document["lane"], document["task"], document["timeout_behavior"]) == ("ops", "deploy", "fail")


def test_suspended_is_cut_where_a_limit_says_so(client: Client) -> None:
    for _ in range(3):
        waiting(client)

    ran = ok("suspended", "--limit", "2")

    assert len(ran.out.splitlines()) == 3
    assert "more than 2" in ran.err
    assert len(ok("suspended", "--json").documents) == 3


def test_suspended_of_a_store_with_partitions_is_in_one_order(client: Client) -> None:
    url = f"{client.url}-five&partitions=5"
    with Client(url) as other:
        ids = [waiting(other).id for _ in range(12)]

    assert [each["execution_id"] for each in ok("suspended", "--json", "--url", url).documents] == ids


def test_hostile_names_do_not_reach_the_terminal(client: Client, url: str) -> None:
    one = waiting(client, HOSTILE, task=HOSTILE)

    for arguments in (["suspended"], ["waitpoints", one.id], ["status", one.id], ["explain", one.id]):
        text = without_escapes(on_terminal(*arguments, url=url))
        assert not re.search("[\u202e\u2028]", text)
        assert "\\u202e" in text or "…" in text
        assert max(map(len, text.replace("\r\n", "\n").splitlines())) <= 80 or arguments[0] == "explain"


def test_status_and_explain_say_what_is_waited_for_and_until_when(client: Client) -> None:
    one = waiting(client, condition=Single("go", SignalMatcher("yes")), timeout=MINUTE)
    signal(client.engine, one.execution_id, one.waitpoints[0], "no")

    told, document = ok("status", one.id).out, ok("status", one.id, "--json").document

    assert re.search(r"^suspended +\d{4}-", told, re.MULTILINE)
    assert re.search(r"^waits for +signals at 'go' \('yes'\) \(waiting_for_signal\)$", told, re.MULTILINE)
    assert re.search(r"^waits until +\d{4}-.*; then it fails$", told, re.MULTILINE)
    assert re.search(r"^unmatched +1$", told, re.MULTILINE)
    assert document["suspension"]["waitpoints"] == {"go": ["yes"]}
    assert re.match(r"It waits for signals at 'go' \('yes'\) since .*, for \d", ok("explain", one.id).out)
    assert ok("list", "--state", "suspended", "--json").document["execution_id"] == one.id


def test_a_damaged_row_is_shown_as_one_and_hides_no_other(client: Client) -> None:
    broken, good = waiting(client), waiting(client)
    damage(client.engine, broken.execution_id, "class", b"junk")

    rows = ok("suspended", "--lane", "ops").out.splitlines()[1:]

    damaged, whole = sorted(rows, key=lambda row: good.id in row)
    assert "damaged" in damaged
    assert good.id in whole
