"""suspended, waitpoints, resume, secrets: what an operator sees of executions that wait, and does to them."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest

from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.conditions import AllOf, SignalMatcher, Single
from flowfabric_worker.engine.types.suspension import IssuedWaitpoint, ResumeReason
from flowfabric_worker.engine.waitpoint_tokens import to_bearer
from tests.support.cli import UNKNOWN_ID, cli, ok, on_terminal, without_escapes
from tests.support.executions import request
from tests.support.suspensions import MINUTE, signal, waiting_for

pytestmark = pytest.mark.usefixtures("url")

HOSTILE = "a\u202eb\u2028c"
SECRET = "5e" * 32
OTHER = "07" * 32


def claimed(client: Client, task: str = "deploy", lane: str = "ops") -> Claimed:
    client.submit(task, force=True, lane=lane)
    (found,) = client.engine.claim_many(request(lane, tasks=frozenset({task})))
    return found


def waiting(client: Client, *keys: str, task: str = "deploy", lane: str = "ops", **changes: object) -> Waiting:
    found = claimed(client, task, lane)
    outcome = client.engine.suspend(found.handle, waiting_for(*keys or ("go",), **changes))
    return Waiting(found, outcome.details.waitpoints)


class Waiting:
    """An execution that waits, and its waitpoints."""

    def __init__(self, found: Claimed, waitpoints: tuple[IssuedWaitpoint, ...]) -> None:
        self.execution_id = found.execution_id
        self.id = found.execution_id.plain
        self.waitpoints = waitpoints

    @property
    def token(self) -> str:
        return to_bearer(self.execution_id, self.waitpoints[0].waitpoint_id, self.waitpoints[0].token)


def test_suspended_lists_what_waits_longest_first(client: Client) -> None:
    first = waiting(client, timeout=timedelta(minutes=5, seconds=30))
    second = waiting(client, lane="mail", task="ask")

    header, *rows = ok("suspended").out.splitlines()

    assert header.split() == ["ID", "SINCE", "UNTIL", "FOR", "LANE", "TASK"]
    assert re.fullmatch(rf"{first.id} +\ds ago +in 5m +signal +ops +deploy", rows[0])
    assert re.fullmatch(rf"{second.id} +\ds ago +- +signal +mail +ask", rows[1])
    assert ok("suspended", "--lane", "mail").out.splitlines()[1:] == rows[1:]
    assert "There are none" in ok("suspended", "--namespace", "other").err


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


def test_waitpoints_shows_what_takes_signals_and_never_a_token(client: Client) -> None:
    condition = AllOf([Single("deploy", SignalMatcher("approved")), Single("tests")])
    one = waiting(client, "deploy", "tests", condition=condition, timeout=timedelta(minutes=5, seconds=30))
    token = one.waitpoints[0].token

    ran, documents = ok("waitpoints", one.id), ok("waitpoints", one.id, "--json").documents

    header, deploy, tests = ran.out.splitlines()
    assert header.split() == ["WAITPOINT", "STATE", "UNTIL", "SIGNALS", "KID", "FINGERPRINT"]
    fingerprint = token.partition(":")[2][:16]
    assert re.fullmatch(rf"deploy +active +in 5m +approved +k1 +{fingerprint}", deploy)
    assert re.match(r"tests +active +in 5m +any +k1 ", tests)
    assert [each["waitpoint_key"] for each in documents] == ["deploy", "tests"]
    assert token.partition(":")[2][:17] not in ran.out + json.dumps(documents)


def test_waitpoints_of_an_execution_that_takes_no_signals_are_none(client: Client) -> None:
    run = client.submit("add")

    assert "There are none" in ok("waitpoints", run.id.plain).err
    assert cli("waitpoints", UNKNOWN_ID).code == 1


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


def test_resume_goes_on_whatever_is_waited_for(client: Client) -> None:
    first, second = waiting(client), waiting(client)

    ran = ok("resume", "-", second.id, stdin=ok("suspended", "--limit", "1", "--json").out)

    assert ran.out.splitlines() == [f"{first.id} is resumed.", f"{second.id} is resumed."]
    (again,) = client.engine.claim_many(request("ops", tasks=frozenset({"deploy"})))
    assert client.engine.observe_signals(again.handle).reason is ResumeReason.OPERATOR
    assert cli("resume", first.id).code == 1


def test_resume_after_a_delay_makes_it_wait_for_that(client: Client) -> None:
    one = waiting(client)

    ok("resume", one.id, "--delay", "1h")

    assert client.run(one.id).state() == "delayed"


def test_secrets_rotate_signs_with_another_secret_and_keeps_old_tokens(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = waiting(client)
    monkeypatch.setenv("FLOWFABRIC_WAITPOINT_SECRET", SECRET)

    ran, again = ok("secrets", "rotate", "k2"), ok("secrets", "rotate", "k2", "--json")

    assert ran.out.splitlines()[1].split(maxsplit=1) == ["0", "signs with k2 now; tokens of k1 stay valid for 1d"]
    assert again.document == {"partition": 0, "ok": True, "rotated": False}
    assert ok("waitpoints", waiting(client).id, "--json").document["token_kid"] == "k2"
    signal(client.engine, before.execution_id, before.waitpoints[0])
    assert SECRET not in ran.out + ran.err + again.out


def test_secrets_rotate_reads_stdin_and_ends_old_tokens_with_their_grace(client: Client) -> None:
    before = waiting(client)

    ok("secrets", "rotate", "k2", "-", "--grace", "0", stdin=f" {SECRET}\n")

    with Client(client.url) as other, pytest.raises(Exception, match="token"):
        signal(other.engine, before.execution_id, before.waitpoints[0])


def test_secrets_rotate_says_of_each_partition_what_became_of_it(client: Client) -> None:
    url = f"{client.url}-three&partitions=3"
    ok("secrets", "rotate", "k2", "-", "--url", url, stdin=SECRET)

    ran = cli("secrets", "rotate", "k2", "-", "--url", url, "--json", stdin=OTHER)

    assert ran.code == 4
    assert [(each["partition"], each["code"]) for each in ran.documents] == [(n, "rotation_conflict") for n in range(3)]
    assert OTHER not in ran.out + ran.err


WRONG_SECRETS = {
    "none": (["secrets", "rotate", "k2"], "", "FLOWFABRIC_WAITPOINT_SECRET"),
    "not of digits": (["secrets", "rotate", "k2", "-"], SECRET + "xyz", "hexadecimal"),
    "nothing on stdin": (["secrets", "rotate", "k2", "-"], "", "hexadecimal"),
    "too long": (["secrets", "rotate", "k2", "-"], "ab" * 2000, "hexadecimal"),
    "under a kid with a colon": (["secrets", "rotate", "k:2", "-"], SECRET, "colon"),
    "for too long a grace": (["secrets", "rotate", "k2", "-", "--grace", "366d"], SECRET, "365 days"),
    "on the command line": (["secrets", "rotate", "k2", SECRET], "", "..."),
    "as another argument": (["secrets", "rotate", "k2", "-", SECRET], SECRET, "..."),
    "as the kid": (["secrets", "rotate", SECRET, "k2"], "", "k2"),
    "as a grace": (["secrets", "rotate", "k2", "-", "--grace", SECRET], SECRET, "..."),
    "as an action": (["secrets", SECRET], "", "..."),
}


@pytest.mark.parametrize(("arguments", "stdin", "said"), WRONG_SECRETS.values(), ids=WRONG_SECRETS.keys())
def test_a_wrong_secret_is_refused_and_not_repeated(arguments: list[str], stdin: str, said: str) -> None:
    ran = cli(*arguments, stdin=stdin)

    assert ran.code == 2
    assert said in ran.err
    assert "5e5e5e" not in ran.err
    assert "abab" not in ran.err


MISPLACED = [
    [],
    ["status"],
    ["status", UNKNOWN_ID],
    ["list", "--state"],
    ["list", "--limit"],
    ["submit", "add"],
    ["submit", "add", "--kwargs"],
    ["submit", "add", "--delay"],
    ["submit", "add", "--tag"],
    ["cancel"],
    ["result"],
    ["resume", "--delay"],
    ["waitpoints"],
    ["secrets", "rotate", "k2"],
    ["lanes"],
    ["--url"],
    ["completion"],
]


@pytest.mark.parametrize("arguments", MISPLACED, ids=" ".join)
@pytest.mark.parametrize("length", [None, 60])
def test_a_token_in_a_wrong_place_is_not_repeated(client: Client, arguments: list[str], length: int | None) -> None:
    token = waiting(client).token[:length]

    for further in ([], ["--json"], ["--debug"]):
        ran = cli(*arguments, token, *further)

        assert ran.code != 0
        assert token[:20] not in ran.out + ran.err


def test_a_token_on_stdin_where_ids_belong_is_not_repeated(client: Client) -> None:
    token = waiting(client).token

    ran = cli("cancel", "-", stdin=f"{token}\n{{{token}\n")

    assert ran.code == 2
    assert token[:20] not in ran.err
