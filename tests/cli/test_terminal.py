"""What a terminal of 80 columns gets to see."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from tests.support.cli import ok, on_terminal, submitted, without_escapes

pytestmark = pytest.mark.usefixtures("url")

ESCAPE = "\x1b["
HOSTILE = "a\u202eb\u2028c"
WIDE = "茶を送る" * 10


def lines_on_terminal(*arguments: str, url: str) -> list[str]:
    text = without_escapes(on_terminal(*arguments, url=url))
    return text.replace("\r\n", "\n").splitlines()


def test_list_keeps_each_execution_on_one_line_with_its_id_whole(url: str, client: Client) -> None:
    runs = client.submit_many("a_task_with_quite_a_long_name", [()] * 60, force=True, lane="l" * 64)

    header, *rows = lines_on_terminal("list", "--limit", "60", url=url)

    assert header.split() == ["ID", "STATE", "AGE", "LANE", "TASK"]
    assert [row.split()[0] for row in rows] == [run.id.plain for run in runs]
    assert max(map(len, rows)) <= 80


def test_names_of_wide_letters_and_of_hostile_ones_keep_their_columns(url: str) -> None:
    for task in (WIDE, HOSTILE, "é" * 80, "[bold red]x"):
        submitted(task)

    header, *rows = lines_on_terminal("list", url=url)

    assert len(rows) == 4
    assert {row[header.index("STATE") :].split()[0] for row in rows} == {"waiting"}
    assert any("[bold" in row for row in rows)
    assert not re.search("[\u202e\u2028]", "".join(rows))


def test_columns_are_aligned_without_a_terminal_too() -> None:
    ids = [submitted(task, "--lane", lane) for task, lane in ((WIDE, "a"), ("x", "b" * 30))]

    header, first, second = ok("list").out.splitlines()

    assert [first.split()[0], second.split()[0]] == ids
    assert header.index("TASK") == first.index(WIDE) == second.index(" x") + 1


def test_there_is_colour_on_a_terminal_and_none_where_it_is_not_wanted(url: str) -> None:
    submitted("add")

    assert ESCAPE in on_terminal("list", url=url)
    assert ESCAPE not in re.sub(r"\x1b\[[01]?m", "", on_terminal("list", url=url, NO_COLOR="1"))
    assert ESCAPE not in ok("list").out


@pytest.mark.parametrize("command", ["list", "lanes", "workers"])
def test_where_there_is_nothing_that_is_said(url: str, command: str) -> None:
    assert "There are none" in on_terminal(command, url=url)


def test_lanes_are_told_in_words_where_the_numbers_do_not_fit(url: str) -> None:
    submitted("add", "--lane", "mail")
    narrow = lines_on_terminal("lanes", url=url)
    submitted("add", "--lane", "l" * 64)
    ok("lanes", "pause", "mail")

    crowded = lines_on_terminal("lanes", url=url)

    assert narrow[0].split()[:3] == ["LANE", "IS", "WAITING"]
    assert crowded[0].split() == ["LANE", "IS", "HOLDS"]
    assert re.search(r"^mail +paused \ds +1 waiting", crowded[-1])
    assert max(map(len, crowded)) <= 80


def test_a_worker_with_a_long_name_keeps_its_id_whole(url: str, client: Client) -> None:
    name = "shop-of-sweets-host-0123456789-12345-0cc39a3e"
    args = RegisterWorkerArgs(worker_id="shop", worker_instance_id=name, lanes=("mail", "etl", "thumbnails"))
    client.engine.register_worker(args)

    header, row, *_ = lines_on_terminal("workers", url=url)

    assert header.split() == ["WORKER", "STATE", "STARTED", "THREADS", "LANES"]
    assert row.split()[:2] == [name, "alive"]


def test_workers_that_are_gone_say_why_and_since_when(client: Client) -> None:
    for name in ("stopped-itself", "went-silent"):
        short = timedelta(milliseconds=1)
        client.engine.register_worker(RegisterWorkerArgs(worker_id="w", worker_instance_id=name, alive_for=short))
    client.engine.mark_worker_dead("stopped-itself", "stopped")

    _, stopped, silent = ok("workers").out.splitlines()

    assert re.search(r"stopped-itself +stopped \ds ago", stopped)
    assert re.search(r"went-silent +lost: silent for \ds", silent)


def test_status_folds_long_texts_beside_their_names(url: str, client: Client) -> None:
    run = client.submit("add", lane="sums")
    client.cancel(run.id, "a reason " * 30)

    lines = lines_on_terminal("status", str(run.id), url=url)

    assert max(map(len, lines)) <= 80
    assert any(run.id.plain in line for line in lines)
    assert any(line.startswith(" " * 10) and "reason" in line for line in lines)
