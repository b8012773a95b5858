"""The help texts of commands."""

from __future__ import annotations

import re

import pytest

from flowfabric_worker import __version__
from flowfabric_worker.cli.exit_codes import ExitCode
from tests.support.cli import COMMANDS, cli, ok


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=lambda command: " ".join(command))
def test_help_fits_into_80_columns(command: list[str]) -> None:
    text = ok(*command, "--help").out

    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.replace("]...", "").replace("[ARGS]...", "")


def test_main_help_documents_every_exit_code() -> None:
    text = ok("--help").out

    documented = re.findall(r"^ +(\d+)  \S", text, re.MULTILINE)
    assert [int(code) for code in documented] == [*ExitCode]


def test_every_command_has_debug() -> None:
    assert [name for name in COMMANDS if "--debug" not in ok(name, "--help").out] == []


def test_no_command_shows_the_help() -> None:
    assert "Usage:" in cli().out + cli().err


def test_version_is_printed() -> None:
    assert ok("--version").out == f"flowfabric_worker {__version__}\n"
