"""The command `completion`: the scripts, and what a shell gets from them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flowfabric_worker.cli.completion import VARIABLE
from tests.support.cli import COMMANDS, ROOT, cli, ok


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_uses_the_variable_that_click_reads(shell: str) -> None:
    script = ok("completion", shell).out

    assert f"{VARIABLE}={shell}_complete" in script
    assert "flowfabric-worker" in script


def test_completion_help_names_the_file_of_each_shell() -> None:
    text = ok("completion", "--help").out

    assert all(file in text for file in ("~/.bashrc", "~/.zshrc", "config.fish"))


def test_completion_refuses_an_unknown_shell() -> None:
    assert cli("completion", "tcsh").code == 2


def completed(*words: str) -> list[str]:
    """Return what bash gets for the last of some words."""
    ran = subprocess.run(
        [sys.executable, "-c", "from flowfabric_worker.cli import main; main(prog_name='flowfabric-worker')"],
        cwd=ROOT,
        env={
            **os.environ,
            VARIABLE: "bash_complete",
            "COMP_WORDS": " ".join(("flowfabric-worker", *words)),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.partition(",")[2] for line in ran.stdout.splitlines()]


def test_commands_are_completed() -> None:
    assert set(completed("")) == set(COMMANDS)
    assert completed("re") == ["result", "replay", "resume"]


def test_options_and_choices_are_completed() -> None:
    assert {"--reason", "--json", "--url"} <= set(completed("cancel", "--"))
    assert completed("list", "--state", "fa") == ["failed"]
    assert completed("completion", "z") == ["zsh"]
