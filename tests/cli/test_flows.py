"""The commands `flows` and `flow`."""

from __future__ import annotations

import pytest

from flowfabric_worker import Client, FlowRun
from tests.support.cli import cli, ok, on_terminal
from tests.support.cli_app import worker

pytestmark = pytest.mark.usefixtures("url")


def submitted(client: Client, name: str = "sums", right: int = 2) -> FlowRun:
    with client.flow(name, tags={"day": "monday"}) as flow:
        first = client.node("add", [1], {"right": right})
        client.node("refuse", ["no luck"], key="refused", after=first)
        client.node("add", [first], key="last")
    return flow.submit()


def run_all(client: Client) -> None:
    worker.url = client.url
    try:
        worker.run_until_idle()
    finally:
        worker.close()
        worker.url = None


def test_flows_lists_flows_by_name_and_state(client: Client) -> None:
    done, other = submitted(client), submitted(client, "others")
    run_all(client)
    waiting = submitted(client)

    headers, *rows = (line.split() for line in ok("flows").out.splitlines())
    assert headers == ["ID", "STATE", "AGE", "NAME"]
    assert {row[0]: (row[1], row[3]) for row in rows} == {
        done.id: ("failed", "sums"),
        other.id: ("failed", "others"),
        waiting.id: ("open", "sums"),
    }
    assert [line.split()[0] for line in ok("flows", "--name", "others").out.splitlines()[1:]] == [other.id]
    found = ok("flows", "--state", "open", "--json").document
    assert (found["flow_id"], found["state"], found["kind"]) == (waiting.id, "open", "sums")
    cut = ok("flows", "--limit", 1)
    assert len(cut.out.splitlines()) == 2
    assert cut.err == "There are more than 1 flows; set --limit to see more.\n"


def test_flows_of_an_empty_store_prints_nothing() -> None:
    assert ok("flows").out == ok("flows", "--json").out == ""


def test_flow_show_draws_the_graph_with_its_states(client: Client) -> None:
    run = submitted(client)
    run_all(client)

    facts, _, drawing = ok("flow", "show", run.id).out.partition("\n\n")
    said = dict(line.split(maxsplit=1) for line in facts.splitlines())
    assert (said["name"], said["state"], said["edges"], said["tags"]) == ("sums", "failed", "2", "day=monday")
    assert said["nodes"] == "3 (2 completed, 1 failed)"
    assert said["failed"] == run.node("refused").id.plain
    assert drawing.splitlines() == [
        "sums (3 nodes)",
        "- add (add) [completed]",
        "  - last (add) [completed] <- add",
        "  - refused (refuse) [failed] <- after add",
    ]
    document = ok("flow", "show", run.id, "--json").document
    assert (document["node_count"], document["member_counts"]["failed"]) == (3, 1)
    short = ok("flow", "show", run.id, "--limit", 1)
    assert "- last" not in short.out
    assert short.err == "There are 2 more nodes; set --limit to see more.\n"


@pytest.mark.parametrize(("form", "beginning"), [("text", "sums (3"), ("mermaid", "flowchart LR"), ("svg", "<")])
def test_flow_show_prints_a_picture_alone(client: Client, form: str, beginning: str) -> None:
    assert ok("flow", "show", submitted(client).id, "--picture", form).out.startswith(beginning)


def test_flow_cancel_cancels_the_members(client: Client) -> None:
    run = submitted(client)

    said = ok("flow", "cancel", run.id, "--reason", "not needed", "--wait", "5s")
    assert said.out == f"{run.id} is cancelled (cancel_all, 3 members: cancelled).\n"
    again = ok("flow", "cancel", run.id, "--json").document
    assert (again["policy"], again["status"]) == ("cancel_all", "cancelled")
    shown = ok("flow", "show", run.id).out
    assert "not needed" in shown
    assert "- add (add) [cancelled]" in shown


@pytest.mark.parametrize("action", ["show", "cancel"])
def test_a_flow_that_does_not_exist_fails(action: str) -> None:
    missing = cli("flow", action, "01a22226-85e2-7000-8000-426eaeed7343")

    assert missing.code == 1
    assert "does not exist" in missing.err
    assert cli("flow", action, "seven").code == 2


def test_flow_show_colours_states_on_a_terminal(client: Client, url: str) -> None:
    run = submitted(client)
    run_all(client)

    printed = on_terminal("flow", "show", run.id, url=url)
    assert "\x1b[32m[completed]\x1b[0m" in printed
    assert "\x1b[1;31m[failed]\x1b[0m" in printed
