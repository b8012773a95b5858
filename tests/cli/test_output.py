"""The output of commands: what a terminal of 80 columns shows, and what is printed without one."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from flowfabric_worker.cli.output import plain, shown, span
from flowfabric_worker.client import Client
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from tests.support.cli import cli, ok, on_terminal, serving, submitted, without_escapes

ESCAPE = "\x1b["
HOSTILE = "a\u202eb\u2028c"
WIDE = "茶を送る" * 10
pytestmark = pytest.mark.usefixtures("url")


def test_stored_text_cannot_control_the_terminal(url: str) -> None:
    execution_id = submitted("refuse", r'"\u001b[2J\u202e"', "--lane", "sums", "--tag", "a=\x1b[31m")
    with serving(url):
        failed = cli("result", execution_id)

    for text in (failed.err, ok("status", execution_id).out, ok("list").out, ok("list", "--json").out):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert ok("list", "--json").document["tags"] == {"a": "\x1b[31m"}


def lines_on_terminal(*arguments: str, url: str) -> list[str]:
    text = without_escapes(on_terminal(*arguments, url=url))
    return text.replace("\r\n", "\n").splitlines()


def test_list_prints_each_execution_on_one_line_with_its_whole_id(url: str, client: Client) -> None:
    runs = client.submit_many("a_task_with_quite_a_long_name", [()] * 60, force=True, lane="l" * 64)

    header, *rows = lines_on_terminal("list", "--limit", "60", url=url)

    assert header.split() == ["ID", "STATE", "AGE", "LANE", "TASK"]
    assert [row.split()[0] for row in rows] == [run.id.plain for run in runs]
    assert max(map(len, rows)) <= 80


def test_wide_and_hostile_characters_keep_columns_aligned(url: str) -> None:
    for task in (WIDE, HOSTILE, "é" * 80, "[bold red]x"):
        submitted(task)

    header, *rows = lines_on_terminal("list", url=url)

    assert len(rows) == 4
    assert {row[header.index("STATE") :].split()[0] for row in rows} == {"waiting"}
    assert any("[bold" in row for row in rows)
    assert not re.search("[\u202e\u2028]", "".join(rows))


def test_columns_are_aligned_without_a_terminal() -> None:
    ids = [submitted(task, "--lane", lane) for task, lane in ((WIDE, "a"), ("x", "b" * 30))]

    header, first, second = ok("list").out.splitlines()

    assert [first.split()[0], second.split()[0]] == ids
    assert header.index("TASK") == first.index(WIDE) == second.index(" x") + 1


def test_colour_is_used_on_a_terminal_unless_no_color_is_set(url: str) -> None:
    submitted("add")

    assert ESCAPE in on_terminal("list", url=url)
    assert ESCAPE not in re.sub(r"\x1b\[[01]?m", "", on_terminal("list", url=url, NO_COLOR="1"))
    assert ESCAPE not in ok("list").out


@pytest.mark.parametrize("command", ["list", "lanes", "workers"])
def test_empty_tables_say_that_nothing_was_found(url: str, command: str) -> None:
    assert re.search(rf"No ({command}|executions) found", on_terminal(command, url=url))


def test_lanes_are_described_in_words_if_the_table_does_not_fit(url: str) -> None:
    submitted("add", "--lane", "mail")
    narrow = lines_on_terminal("lanes", url=url)
    submitted("add", "--lane", "l" * 64)
    ok("lanes", "pause", "mail")

    crowded = lines_on_terminal("lanes", url=url)

    assert narrow[0].split()[:3] == ["LANE", "IS", "WAITING"]
    assert crowded[0].split() == ["LANE", "IS", "HOLDS"]
    assert re.search(r"^mail +paused \ds +1 waiting", crowded[-1])
    assert max(map(len, crowded)) <= 80


def test_worker_with_a_long_name_keeps_its_id_whole(url: str, client: Client) -> None:
    name = "shop-of-sweets-host-0123456789-12345-0cc39a3e"
    args = RegisterWorkerArgs(worker_id="shop", worker_instance_id=name, lanes=("mail", "etl", "thumbnails"))
    client.engine.register_worker(args)

    header, row, *_ = lines_on_terminal("workers", url=url)

    assert header.split() == ["WORKER", "STATE", "STARTED", "THREADS", "LANES"]
    assert row.split()[:2] == [name, "alive"]


def test_status_folds_long_texts_beside_their_labels(url: str, client: Client) -> None:
    run = client.submit("add", lane="sums")
    client.cancel(run.id, "a reason " * 30)

    lines = lines_on_terminal("status", str(run.id), url=url)

    assert max(map(len, lines)) <= 80
    assert any(run.id.plain in line for line in lines)
    assert any(line.startswith(" " * 10) and "reason" in line for line in lines)


@pytest.mark.parametrize(
    ("milliseconds", "text"), [(-5, "0s"), (59_999, "59s"), (60_000, "1m"), (3_600_000, "1h"), (172_800_000, "2d")]
)
def test_span_is_printed_in_its_largest_unit(milliseconds: int, text: str) -> None:
    assert span(milliseconds) == text


def test_shown_keeps_letters_and_lines_and_escapes_the_rest() -> None:
    assert shown("a é 茶\n\t\x1b\x9b\u202e\x00") == "a é 茶\n\t\\u001b\\u009b\\u202e\\u0000"


def test_plain_converts_records_to_json_values() -> None:
    policy = ExecutionPolicy(
        retry=RetryPolicy(initial=timedelta(seconds=1.5), retryable_categories={FailureClass.TIMEOUT}),
        requires={"b", "a"},
    )
    identity = ExecutionId.parse("{fp:0}:01890000-0000-7000-8000-000000000000")

    document = plain({"id": identity, "policy": policy, "data": b"x\xff", "pair": (1, None)})

    assert document["id"] == identity.plain
    assert document["policy"]["requires"] == ["a", "b"]
    assert document["policy"]["retry"]["initial"] == 1.5
    assert document["policy"]["retry"]["retryable_categories"] == ["timeout"]
    assert (document["data"], document["pair"]) == ("x�", [1, None])


def test_a_stored_text_cannot_look_like_a_line_of_a_command(url: str, client: Client) -> None:
    forged = "no\nstate       completed"
    cancelled = submitted("add")
    ok("cancel", cancelled, "--reason", forged)
    failed = submitted("refuse", f'"{forged}"'.replace("\n", "\\n"), "--lane", "sums")
    with serving(url):
        ended = cli("result", failed)

    assert len(ended.err.splitlines()) == 1
    for text in (ok("status", cancelled).out, ok("explain", failed).out):
        assert "state       completed" not in text.splitlines()
    assert any(line.startswith(" " * 10) for line in lines_on_terminal("status", cancelled, url=url))
