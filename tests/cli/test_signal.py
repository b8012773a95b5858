"""signal and approve: answers from the command line to executions that wait."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.conditions import AllOf, SignalMatcher, Single
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.suspension import SuspendArgs, WaitpointBinding
from flowfabric_worker.engine.waitpoint_tokens import to_bearer
from flowfabric_worker.stream import StreamValue
from tests.support.cli import await_state, cli, ok, serving, submitted
from tests.support.cli_suspensions import claimed, waiting
from tests.support.suspensions import MINUTE

pytestmark = pytest.mark.usefixtures("url")


def token_of(client: Client, execution_id: str) -> str:
    """Return the token that a handler emitted."""
    item: Any = next(client.stream(execution_id, timeout=10))
    assert isinstance(item, StreamValue)
    return str(item.value)


@pytest.mark.parametrize(
    ("payload", "stdin", "result"),
    [
        (['{"amount": 7}'], None, {"amount": 7}),
        (['"text"'], None, "text"),
        (["-"], ' [1, "ä"]\n', [1, "ä"]),
        ([], None, None),
    ],
)
def test_a_handler_gets_the_payload_of_a_signal(
    client: Client, url: str, payload: list[str], stdin: str | None, result: object
) -> None:
    execution_id = submitted("ask", '"paid"', "--lane", "waits")
    with serving(url):
        await_state(client, execution_id, PublicState.SUSPENDED)
        ran = ok("signal", token_of(client, execution_id), "paid", *payload, stdin=stdin)

        assert ok("result", execution_id).document == result
    assert ran.out == f"The signal resumes {execution_id}.\n"


@pytest.mark.parametrize(("decision", "word"), [("--yes", "approved"), ("--no", "rejected")])
def test_a_handler_gets_the_decision_of_an_operator(client: Client, url: str, decision: str, word: str) -> None:
    execution_id = submitted("decide", "--lane", "waits")
    with serving(url):
        ok("approve", token_of(client, execution_id), decision, "--by", "ann", "--reason", "it is Friday")

        assert ok("result", execution_id).document == f"{word} by ann: it is Friday"


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--by", "ann"], "--yes"), (["--yes"], "--by"), (["--yes", "--by", ""], "1 to 256")],
)
def test_a_decision_without_a_word_or_a_name_is_no_decision(client: Client, options: list[str], said: str) -> None:
    one = waiting(client)

    ran = cli("approve", one.token, *options)

    assert ran.code == 2
    assert said in ran.err
    assert client.run(one.id).state() == "suspended"


def test_the_first_decision_stands_and_the_second_is_told_whose_it_is(client: Client) -> None:
    found = claimed(client)
    waitpoint = client.engine.create_waitpoint(found.handle, "go", MINUTE)
    token = to_bearer(found.execution_id, waitpoint.waitpoint_id, waitpoint.token)

    first, again = ok("approve", token, "--no", "--by", "ann"), ok("approve", token, "--no", "--by", "ann")
    second = cli("approve", token, "--yes", "--by", "bob")

    assert first.out == f"The signal is kept until {found.execution_id.plain} waits for it.\n"
    assert again.out == f"The signal came before; nothing changes for {found.execution_id.plain}.\n"
    assert second.code == 1
    assert "ann" in second.err


def test_a_decision_on_an_execution_needs_a_name_where_it_takes_two(client: Client) -> None:
    two = waiting(client, "left", "right", condition=AllOf([Single("left"), Single("right")]))

    ran = cli("approve", two.id, "--yes", "--by", "ann")
    ok("approve", two.id, "--yes", "--by", "ann", "--waitpoint", "right")
    one = ok("approve", waiting(client).id, "--no", "--by", "ann")

    assert (ran.code, "'left', 'right'" in ran.err) == (2, True)
    assert "resumes" in one.out
    assert cli("approve", submitted("add", "[1, 2]"), "--yes", "--by", "ann").code == 1


def test_a_signal_that_matches_nothing_says_what_is_waited_for(client: Client) -> None:
    one = waiting(client, condition=Single("go", SignalMatcher("approved")))

    said, document = cli("signal", one.token, "aproved"), cli("signal", one.token, "aproved", "--json")

    assert (said.code, document.code) == (1, 1)
    assert said.err == f"Error: The signal matches nothing: {one.id} waits for 'approved' there.\n"
    assert (document.document["effect"], document.document["awaited_names"]) == ("no_op", ["approved"])


def test_a_signal_of_several_says_that_more_is_waited_for(client: Client) -> None:
    one = waiting(client, "a", "b", condition=AllOf([Single("a"), Single("b")]))

    assert ok("signal", one.token, "a").out == f"The signal counts; {one.id} waits for more.\n"


def test_a_signal_under_a_key_counts_once(client: Client) -> None:
    found = claimed(client)
    binding = WaitpointBinding(waitpoint_key="go")
    condition = Single("go", SignalMatcher("never"))
    outcome: Any = client.engine.suspend(found.handle, SuspendArgs(condition=condition, waitpoints=[binding]))
    (waitpoint,) = outcome.details.waitpoints
    token = to_bearer(found.execution_id, waitpoint.waitpoint_id, waitpoint.token)

    first = cli("signal", token, "x", "1", "--key", "k", "--by", "jane", "--json").document
    second = ok("signal", token, "x", "2", "--key", "k", "--json").document

    assert second == {"execution_id": first["execution_id"], "signal_id": first["signal_id"], "effect": "duplicate"}


def test_a_signal_to_what_went_on_says_why_nothing_waits(client: Client) -> None:
    one = waiting(client)
    ok("cancel", one.id)

    ran = cli("signal", one.token, "go")

    assert ran.code == 1
    assert "closed" in ran.err
    assert "cancelled" in ran.err


FORGED = {
    "cut short": lambda token: token[:-1],
    "cut to its prefix": lambda _: "ffw1_",
    "without its prefix": lambda token: token[5:],
    "with a letter changed": lambda token: token[:-4] + ("A" if token[-4] != "A" else "B") + token[-3:],
    "longer": lambda token: token + "A",
    "in capitals": lambda token: token.upper(),
    "empty": lambda _: "",
    "of other letters": lambda token: token[:60] + "\u202e\x1b[31m" + token[60:],
    "of another kind": lambda _: "k1:" + "0" * 64,
    "with a line end": lambda token: token + "\n",
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
@pytest.mark.parametrize("command", [["signal"], ["approve", "--yes", "--by", "ann"]], ids=["signal", "approve"])
def test_a_forged_token_is_refused_alike_and_not_repeated(client: Client, command: list[str], forge: Any) -> None:
    one = waiting(client)
    name = ["go"] if command == ["signal"] else []

    ran = cli(*command, forge(one.token), *name)

    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "Error: The token is not valid for that waitpoint.\n"
    assert client.run(one.id).state() == "suspended"


@pytest.mark.parametrize("payload", ["{broken", "NaN", '"' + "x" * 70_000 + '"'], ids=["broken", "NaN", "large"])
def test_a_payload_that_cannot_be_sent_is_refused(client: Client, payload: str) -> None:
    one = waiting(client)

    for ran in (cli("signal", one.token, "go", payload), cli("signal", one.token, "go", "-", stdin=payload)):
        assert ran.code == 2
        assert len(ran.err) < 1000
    assert client.run(one.id).state() == "suspended"


def test_a_payload_on_stdin_that_is_too_large_is_called_that(client: Client) -> None:
    assert "65536 bytes" in cli("signal", waiting(client).token, "go", "-", stdin='"' + "x" * 70_000 + '"').err
