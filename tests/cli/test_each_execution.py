"""Commands such as `cancel` and `replay`, with many ids as arguments or on stdin."""

from __future__ import annotations

import json

import pytest

from flowfabric_worker.client import Client
from tests.support.cli import UNKNOWN_ID, Ran, cli, ok, submitted
from tests.support.executions import request

pytestmark = pytest.mark.usefixtures("url")


def states(client: Client) -> dict[str, str]:
    return {each.execution_id.plain: str(each.public_state) for each in client.list()}


def test_commands_take_many_ids(client: Client) -> None:
    ids = [submitted("add", number) for number in range(3)]

    cancelled = ok("cancel", *ids, "--reason", "not needed")
    after = states(client)
    replayed = ok("replay", *ids)

    assert cancelled.out.splitlines() == [f"{each} is cancelled." for each in ids]
    assert after == dict.fromkeys(ids, "cancelled")
    assert replayed.out.splitlines() == [f"{each} runs again." for each in ids]
    assert states(client) == dict.fromkeys(ids, "waiting")


def test_a_failure_does_not_stop_the_other_executions(client: Client) -> None:
    first, second = submitted("add"), submitted("add")

    ran = cli("cancel", first, UNKNOWN_ID, second)

    assert ran.code == 1
    assert ran.out.splitlines() == [f"{first} is cancelled.", f"{second} is cancelled."]
    (said,) = ran.err.splitlines()
    assert UNKNOWN_ID in said
    assert states(client) == dict.fromkeys([first, second], "cancelled")


def test_each_execution_has_a_json_document(client: Client) -> None:
    execution_id = submitted("add")

    good, bad = cli("cancel", execution_id, UNKNOWN_ID, "--json").documents

    assert good == {"execution_id": execution_id, "ok": True}
    assert (bad["execution_id"], bad["ok"], bad["code"]) == (UNKNOWN_ID, False, "execution_not_found")


def test_a_malformed_id_changes_nothing(client: Client) -> None:
    execution_id = submitted("add")

    ran = cli("cancel", execution_id, "abc")

    assert ran.code == 2
    assert "abc" in ran.err
    assert states(client) == {execution_id: "waiting"}


def test_a_repeated_id_is_handled_once() -> None:
    execution_id = submitted("add")

    assert len(ok("cancel", execution_id, execution_id).out.splitlines()) == 1


def listed(*options: str) -> Ran:
    return ok("list", "--json", *options)


def test_output_of_list_can_be_replayed(client: Client) -> None:
    cancelled, waiting = submitted("add"), submitted("add")
    ok("cancel", cancelled)

    ran = cli("replay", "-", stdin=listed("--state", "cancelled").out)

    assert (ran.code, ran.out) == (0, f"{cancelled} runs again.\n")
    assert states(client) == {cancelled: "waiting", waiting: "waiting"}


def test_output_of_a_long_list_can_be_replayed(client: Client) -> None:
    runs = client.submit_many("add", [()] * 120)
    for run in runs:
        run.cancel()

    ran = cli("replay", "-", stdin=listed("--state", "cancelled").out)

    assert ran.code == 0
    assert set(states(client).values()) == {"waiting"}
    assert len(ran.out.splitlines()) == 120


def test_ids_on_stdin_are_added_to_those_in_arguments(client: Client) -> None:
    ids = [submitted("add") for _ in range(3)]

    ok("cancel", "-", ids[2], stdin=f"{ids[0]}\n\n  {ids[1]}\r\n")

    assert states(client) == dict.fromkeys(ids, "cancelled")


def test_empty_stdin_does_nothing() -> None:
    assert ok("replay", "-", stdin="").out == ""


@pytest.mark.parametrize("line", ["{}", '{"execution_id": 7}', "{broken", "[1]", b"\xff\xfe", "x" * 10_000])
def test_a_line_without_an_id_is_refused_before_any_action(client: Client, line: str | bytes) -> None:
    execution_id = submitted("add")
    given = line if isinstance(line, bytes) else line.encode()

    ran = cli("cancel", "-", stdin=f"{execution_id}\n".encode() + given + b"\n")

    assert ran.code == 2
    assert len(ran.err) < 1000
    assert states(client) == {execution_id: "waiting"}


def test_the_error_of_a_line_is_json_with_json() -> None:
    ran = cli("cancel", "-", "--json", stdin="{}")

    assert json.loads(ran.err)["exit_code"] == ran.code == 2


def ended_after_steps(client: Client) -> str:
    """Return an execution that ended after the steps a and b."""
    run = client.submit("two_steps", force=True, lane="steps")
    (claimed,) = client.engine.claim_many(request("steps", tasks=frozenset({"two_steps"})))
    for step in "ab":
        client.engine.record_step(claimed.handle, step, b"1")
    client.engine.complete(claimed.handle)
    return run.id.plain


def steps_of(client: Client, execution_id: str) -> int:
    info = client.get(execution_id)
    assert info is not None
    return info.step_count


@pytest.mark.parametrize(
    ("options", "left"), [([], 2), (["--steps", "keep"], 2), (["--steps", "forget"], 0), (["--from-step", "b"], 1)]
)
def test_a_replay_keeps_the_steps_that_it_is_asked_to_keep(client: Client, options: list[str], left: int) -> None:
    execution_id = ended_after_steps(client)

    ok("replay", execution_id, *options)

    assert steps_of(client, execution_id) == left


def test_a_replay_from_an_unknown_step_is_refused(client: Client) -> None:
    execution_id = ended_after_steps(client)

    unknown = cli("replay", execution_id, "--from-step", "c")
    both = cli("replay", execution_id, "--from-step", "b", "--steps", "forget")

    assert (unknown.code, both.code) == (1, 2)
    assert "recorded no such step" in unknown.err
    assert states(client) == {execution_id: "completed"}
