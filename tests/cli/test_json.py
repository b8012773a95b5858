"""The option --json: stdout holds only JSON, and the error that ends a command is one document on stderr."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.cli import COMMANDS, UNKNOWN_ID, Ran, cli, ok, serving, submitted

pytestmark = pytest.mark.usefixtures("url")

# The commands whose output no program reads.
WITHOUT = {"run", "completion"}

FAILING = {
    "an execution that does not exist": (["status", UNKNOWN_ID], "failed", 1),
    "an unknown option": (["list", "--wrong"], "usage", 2),
    "an unknown command": (["sbumit"], "usage", 2),
    "a missing argument": (["explain"], "usage", 2),
    "a duration that is not one": (["submit", "add", "--delay", "soon"], "usage", 2),
    "an id that is not one": (["status", "abc"], "invalid_execution_id", 2),
    "a URL of no store": (["list", "--url", "http://x"], "invalid_url", 2),
    "an unreachable store": (["lanes", "--url", "valkey://127.0.0.1:1"], "transport", 3),
    "a wait that timed out": (["submit", "--force", "add", "--wait", "--timeout", "10ms"], "timeout", 6),
}


def error_of(ran: Ran) -> dict[str, Any]:
    """Return the one document on stderr."""
    (line,) = ran.err.splitlines()
    document: dict[str, Any] = json.loads(line)
    return document


@pytest.mark.parametrize(("arguments", "code", "exit_code"), FAILING.values(), ids=FAILING.keys())
def test_an_error_is_one_document_on_stderr(arguments: list[str], code: str, exit_code: int) -> None:
    ran = cli(*arguments, "--json")

    document = error_of(ran)
    assert (document["code"], document["exit_code"]) == (code, exit_code)
    assert document["error"]
    assert ran.code == exit_code
    assert ran.out == ""


@pytest.mark.parametrize(("arguments", "code", "exit_code"), FAILING.values(), ids=FAILING.keys())
def test_an_error_without_json_is_text_with_the_same_exit_code(arguments: list[str], code: str, exit_code: int) -> None:
    ran = cli(*arguments)

    assert ran.code == exit_code
    assert "Error: " in ran.err


def test_json_after_two_dashes_is_an_argument() -> None:
    assert cli("status", "--", "--json").err.startswith("Error: ")


def test_a_failed_execution_is_reported_on_stdout_and_stderr(url: str) -> None:
    execution_id = submitted("refuse", '"no tea"', "--lane", "sums")
    with serving(url):
        ran = cli("result", execution_id, "--json")

    assert ran.document["error"] == "no tea"
    assert error_of(ran)["exit_code"] == ran.code == 1


def test_every_command_that_prints_data_has_json() -> None:
    without = {name for name in COMMANDS if "--json" not in ok(name, "--help").out}

    assert without <= WITHOUT


def test_stdout_holds_only_json() -> None:
    execution_id = submitted("add", "--lane", "sums")

    for arguments in (
        ["submit", "--force", "add"],
        ["status", execution_id],
        ["list"],
        ["explain", execution_id],
        ["lanes"],
        ["lanes", "pause", "sums"],
        ["lanes", "resume", "sums"],
        ["workers"],
        ["cancel", execution_id],
        ["replay", execution_id],
        ["check"],
        ["migrate"],
        ["migrate", "--prune"],
        ["bench", "--tasks", "5", "--seconds", "0.1"],
    ):
        ran = ok(*arguments, "--json")
        assert ran.documents or arguments == ["workers"]
        assert ran.err == ""
