"""Help texts, and what a terminal gets to see."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys

import pytest

from flowfabric_worker import __version__
from flowfabric_worker.cli import main
from flowfabric_worker.cli.exits import ExitCode
from tests.cli.driving import cli, ok, submitted

ESCAPE = "\x1b["


@pytest.mark.parametrize("command", [[], *([name] for name in main.commands)], ids=lambda command: " ".join(command))
def test_help_fits_into_80_columns(command: list[str]) -> None:
    text = ok(*command, "--help").out

    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.replace("]...", "").replace("[ARGS]...", "")


def test_the_help_at_the_top_documents_every_exit_code() -> None:
    text = ok("--help").out

    documented = re.findall(r"^ +(\d+)  \S", text, re.MULTILINE)
    assert [int(code) for code in documented] == [*ExitCode]


def test_every_command_can_show_tracebacks() -> None:
    assert [name for name in main.commands if "--debug" not in ok(name, "--help").out] == []


def test_no_command_at_all_shows_the_help() -> None:
    assert "Usage:" in cli().out + cli().err


def test_the_version_is_told() -> None:
    assert ok("--version").out == f"flowfabric_worker {__version__}\n"


def test_a_terminal_of_80_columns_gets_a_table_that_keeps_ids_whole(url: str) -> None:
    execution_id = submitted("a_task_with_quite_a_long_name", "--lane", "l" * 64)

    text = on_terminal("list", url=url)

    assert ESCAPE in text
    lines = without_escapes(text).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(execution_id in line for line in lines)


def test_no_color_is_respected(url: str) -> None:
    submitted("add")

    assert ESCAPE not in re.sub(r"\x1b\[[01]?m", "", on_terminal("list", url=url, NO_COLOR="1"))


def on_terminal(*arguments: str, url: str, **environment: str) -> str:
    """What a command prints on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "flowfabric_worker", *arguments],
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "FLOWFABRIC_URL": url, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
    )
    os.close(theirs)
    printed = b""
    while select.select([ours], [], [], 20)[0]:
        try:
            printed += os.read(ours, 65536)
        except OSError:  # on Linux the end of a terminal is an error
            break
    os.close(ours)
    assert process.wait(20) == 0, printed
    return printed.decode()


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
