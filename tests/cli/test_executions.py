"""submit, status, result, list, explain, cancel, replay."""

from __future__ import annotations

import attrs
import pytest

from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.reads import PastAttempt
from tests.support.cli import cli, ok, serving, submitted

pytestmark = pytest.mark.usefixtures("url")


def test_submit_prints_the_id_of_an_execution_that_carries_its_options(client: Client) -> None:
    execution_id = submitted(
        "add", 1, "--kwargs", '{"right": 2}', "--lane", "sums", "--priority", 5, "--delay", "2h", "--key", "k",
        "--retries", 3, "--tag", "a=b", "--tag", "c=d=e",
    )  # fmt: skip

    info = client.get(execution_id)

    assert info is not None
    assert (info.task, info.lane, info.priority, info.idempotency_key) == ("add", "sums", 5, "k")
    assert dict(info.tags) == {"a": "b", "c": "d=e"}
    assert info.delay_until_ms is not None
    assert 7_100_000 < info.delay_until_ms - info.created_at_ms <= 7_200_000
    assert info.policy.retry is not None
    assert info.policy.retry.max_retries == 3


def test_a_second_submission_under_a_key_prints_the_first_id_and_says_so() -> None:
    first = submitted("add", 1, "--key", "k")
    second = ok("submit", "--force", "add", 1, "--key", "k")

    assert second.out.strip() == first
    assert "already" in second.err
    assert ok("submit", "--force", "add", 1, "--key", "k", "--json").document == {
        "execution_id": first,
        "created": False,
    }


def test_wait_prints_the_result_and_exits_by_it(url: str) -> None:
    with serving(url):
        assert ok("submit", "add", 1, 2, "--lane", "sums", "--wait").document == 3
        as_json = ok("submit", "add", 1, 2, "--lane", "sums", "--wait", "--json").document
        failed = cli("submit", "refuse", '"no tea"', "--lane", "sums", "--wait")

    assert (as_json["state"], as_json["result"]) == ("completed", 3)
    assert failed.code == 1
    assert "no tea" in failed.err
    assert failed.out == ""


def test_result_prints_what_was_returned_or_why_nothing_was(url: str) -> None:
    good, bad = submitted("add", 1, 2, "--lane", "sums"), submitted("refuse", '"no tea"', "--lane", "sums")
    with serving(url):
        assert ok("result", good).document == 3
        failed = cli("result", bad, "--json")

    assert failed.code == 1
    assert failed.document == {
        "execution_id": bad,
        "state": "failed",
        "error": "no tea",
        "error_detail": "more of it",
    }
    assert ok("result", good, "--json").document == {"execution_id": good, "state": "completed", "result": 3}


@pytest.mark.parametrize("command", ["result", "submit"])
def test_waiting_ends_with_its_own_exit_code_when_the_time_is_over(command: str) -> None:
    arguments = ("result", submitted("add", 1)) if command == "result" else ("submit", "--force", "add", "1", "--wait")

    ran = cli(*arguments, "--timeout", "50ms")

    assert ran.code == 6
    assert "it goes on" in ran.err


def test_status_shows_everything_for_people_and_for_programs(url: str) -> None:
    execution_id = submitted("stumble", "--lane", "sums", "--retries", 3, "--tag", "a=b")
    with serving(url):
        ok("result", execution_id)

    shown = ok("status", execution_id).out
    document = ok("status", execution_id, "--json").document

    lines = dict(line.split(maxsplit=1) for line in shown.splitlines() if not line.startswith("attempt "))
    assert (lines["id"], lines["state"], lines["tags"], lines["retries"]) == (execution_id, "completed", "a=b", "1")
    assert "ValueError: stumbled" in shown
    assert (document["public_state"], document["retry_count"], document["tags"]) == ("completed", 1, {"a": "b"})
    assert document["policy"]["retry"]["max_retries"] == 3
    assert document["past_attempts"][0]["error"] == "ValueError: stumbled"


def test_status_shows_the_detail_of_a_failure(url: str) -> None:
    execution_id = submitted("refuse", '"no tea"', "--lane", "sums")
    with serving(url):
        cli("result", execution_id)

    shown = ok("status", execution_id).out

    assert "no tea" in shown
    assert shown.endswith("\nmore of it\n")


def test_list_filters_and_limits(client: Client) -> None:
    sums = [submitted("add", number, "--lane", "sums", "--tag", f"n={number}") for number in range(3)]
    mail = submitted("send", "--lane", "mail")
    client.cancel(sums[0])

    def listed(*options: object) -> list[str]:
        return [document["execution_id"] for document in ok("list", "--json", *options).documents]

    assert listed() == [*sums, mail]
    assert listed("--lane", "sums") == listed("--task", "add") == sums
    assert listed("--tag", "n=1") == [sums[1]]
    assert listed("--state", "cancelled") == [sums[0]]
    assert listed("--lane", "sums", "--state", "waiting") == sums[1:]
    assert listed("--limit", 2) == sums[:2]


def test_list_prints_a_plain_table_without_a_terminal() -> None:
    ids = [submitted("add", "--lane", "l" * 64, "--tag", f"n={number}") for number in range(2)]

    ran = ok("list", "--limit", 1)

    headers, row = ran.out.splitlines()
    assert headers.split() == ["ID", "STATE", "AGE", "LANE", "TASK"]
    assert [row.split()[place] for place in (0, 1, 3, 4)] == [ids[0], "waiting", "l" * 64, "add"]
    assert "--limit" in ran.err
    assert ok("list", "--limit", 2).err == ""
    assert ok("list", "--lane", "other").err == "There are none.\n"


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_listing_that_is_cut_says_so(client: Client, as_json: tuple[str, ...]) -> None:
    client.submit_many("add", [()] * 3)

    cut, whole = ok("list", "--limit", 2, *as_json), ok("list", "--limit", 3, *as_json)

    assert cut.err == "There are more than 2; ask for them with --limit.\n"
    assert whole.err == ""


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--task", "add"), "--task has"),
        (("--state", "waiting", "--tag", "n=1"), "--state waiting and --tag have"),
        (("--tag", "n=1", "--json"), "--tag has"),
    ],
)
def test_a_listing_without_an_index_says_how_many_it_looked_at(
    client: Client, options: tuple[str, ...], what: str
) -> None:
    client.submit_many("add", [()] * 3)

    assert ok("list", *options).err.endswith(f"Looked at 3 executions: {what} no index, --lane has one.\n")


def test_a_listing_with_an_index_says_nothing_of_it(client: Client) -> None:
    client.submit_many("add", [()] * 3, lane="sums")

    assert ok("list", "--lane", "sums").err == ok("list", "--state", "failed", "--json").err == ""


def test_a_table_has_fifty_rows_and_json_has_all(client: Client) -> None:
    client.submit_many("add", [()] * 60)

    table, documents = ok("list"), ok("list", "--json")

    assert len(table.out.splitlines()) == 51
    assert "There are more than 50" in table.err
    assert len(documents.documents) == 60
    assert documents.err == ""


def test_status_tells_which_attempts_are_not_kept(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    execution_id = submitted("add")
    info = client.get(execution_id)
    assert info is not None
    kept = PastAttempt(
        attempt_index=7,
        attempt_type="retry",
        ending="failed",
        started_at_ms=0,
        ended_at_ms=5,
        worker_instance_id="w",
        error_class=None,
        error="boom",
    )
    monkeypatch.setattr(Client, "get", lambda *_: attrs.evolve(info, past_attempts=(kept,)))

    assert "attempts 0 to 6  not kept" in ok("status", execution_id).out


def test_explain_says_in_words_and_in_json_why_nothing_happens() -> None:
    execution_id = submitted("add")

    assert ok("explain", execution_id).out == "No worker is alive; start one.\n"
    assert ok("explain", execution_id, "--json").document["code"] == "no_worker"


def test_cancel_ends_an_execution_and_replay_runs_it_again(client: Client) -> None:
    execution_id = submitted("add")

    ok("cancel", execution_id, "--reason", "not needed")
    cancelled = client.get(execution_id)
    ok("replay", execution_id)
    replayed = client.get(execution_id)

    assert cancelled is not None
    assert replayed is not None
    assert (cancelled.public_state, cancelled.cancel_reason) == ("cancelled", "not needed")
    assert (replayed.public_state, replayed.replay_count) == ("waiting", 1)
    assert cli("replay", execution_id).code == 1


def test_the_namespace_keeps_tenants_apart() -> None:
    execution_id = submitted("add", "--namespace", "one")

    assert ok("list", "--namespace", "one", "--json").document["execution_id"] == execution_id
    assert ok("list", "--namespace", "two").out == ""


def test_nothing_that_is_stored_can_steer_the_terminal(url: str) -> None:
    execution_id = submitted("refuse", r'"\u001b[2J\u202e"', "--lane", "sums", "--tag", "a=\x1b[31m")
    with serving(url):
        failed = cli("result", execution_id)

    for text in (failed.err, ok("status", execution_id).out, ok("list").out, ok("list", "--json").out):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert ok("list", "--json").document["tags"] == {"a": "\x1b[31m"}
