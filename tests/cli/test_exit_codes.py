"""Errors are one sentence on stderr, with an exit code for their kind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flowfabric_worker.client import Client
from tests.support.cli import UNKNOWN_ID, cli
from tests.support.cli_suspensions import waiting
from tests.support.servers import ValkeyServer

WRONG_USE = {
    "an unknown command": (["sbumit"], "no command 'sbumit'. Did you mean 'submit'?"),
    "an unknown option": (["list", "--limt", "1"], "--limit"),
    "a missing argument": (["status"], "ID"),
    "a limit that no machine counts to": (["list", "--limit", "9" * 30], "--limit"),
    "an argument that is not JSON": (["submit", "add", "x"], """'"x"'"""),
    "arguments by name that are not an object": (["submit", "add", "--kwargs", "[1]"], "not a JSON object"),
    "a number that JSON does not have": (["submit", "add", "NaN"], "NaN"),
    "a tag without a value": (["submit", "add", "--tag", "a"], "NAME=VALUE"),
    "a duration that is not one": (["submit", "add", "--delay", "soon"], "duration"),
    "a duration that is too long": (["submit", "add", "--delay", "999999999999d"], "too long"),
    "a state that does not exist": (["list", "--state", "asleep"], "asleep"),
    "a lane with an invalid name": (["submit", "--force", "add", "--lane", "ä"], "lane"),
    "a task without a name": (["submit", ""], "task"),
    "an id that is not one": (["status", "abc"], "abc"),
    "a payload over the limit": (["submit", "--force", "add", '"' + "x" * 2**20 + '"'], "1048576"),
    "an empty namespace": (["list", "--namespace", ""], "namespace"),
    "a URL of no store": (["list", "--url", "http://x"], "must begin with"),
    "a misspelled kind of store": (["list", "--url", "valky://x"], "Did you mean 'valkey'?"),
    "a misspelled option of a URL": (["list", "--url", "memory://?prefx=a"], "Did you mean 'prefix'?"),
    "a weight of 0": (["run", "x:y", "--lanes", "a=0"], "weight"),
    "an invalid capability": (["run", "x:y", "--capabilities", "a b"], "capability"),
    "a lease of 0 s": (["run", "tests.support.cli_app:worker", "--lease", "0"], "--lease"),
    "no threads": (["run", "x:y", "--threads", "0"], "--threads"),
    "an application that is not named": (["run", "application"], "MODULE:NAME"),
}
BAD_APPS = {
    "no such module": ("nowhere_at_all:worker", "no module 'nowhere_at_all'"),
    "no such module in a package": ("tests.cli.nowhere:worker", "no module 'tests.cli.nowhere'"),
    "no such name": ("tests.support.cli_app:wroker", "its workers are worker, without_tasks"),
    "not a worker": ("tests.support.cli_app:number", "not a Worker; its type is int"),
    "no tasks": ("tests.support.cli_app:without_tasks", "has no tasks"),
}


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize(("arguments", "said"), WRONG_USE.values(), ids=WRONG_USE.keys())
def test_usage_error_exits_2_and_names_the_mistake(arguments: list[str], said: str) -> None:
    ran = cli(*arguments)

    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize("command", ["status", "result", "explain", "cancel", "replay"])
def test_unknown_execution_exits_1(command: str) -> None:
    ran = cli(command, UNKNOWN_ID)

    assert ran.code == 1
    assert "does not exist" in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("command", [["list"], ["submit", "add"], ["check"], ["run", "tests.support.cli_app:worker"]])
def test_unreachable_store_exits_3(command: list[str]) -> None:
    ran = cli(*command, "--url", "valkey://127.0.0.1:1")

    assert ran.code == 3
    assert "127.0.0.1:1 cannot be reached" in ran.err


def test_wrong_password_exits_4_and_is_not_printed(valkey: ValkeyServer) -> None:
    ran = cli("list", "--url", f"unix://default:hunter2@{valkey.socket}?db=0")
    valkey.client().acl_setuser("reader", enabled=True, passwords=["+right"], categories=["+@all"], keys=["*"])
    ran = cli("list", "--url", f"unix://reader:hunter2@{valkey.socket}")

    assert ran.code == 4
    assert "refused the user or the password" in ran.err
    assert "hunter2" not in ran.err


def test_store_with_other_settings_exits_4(url: str) -> None:
    assert cli("lanes").code == 0

    ran = cli("lanes", "--url", f"{url}&partitions=3")

    assert ran.code == 4
    assert "1 partitions, not 3" in ran.err


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize(("app", "said"), BAD_APPS.values(), ids=BAD_APPS.keys())
def test_unusable_application_exits_5(app: str, said: str) -> None:
    ran = cli("run", app)

    assert ran.code == 5
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1


BROKEN = {
    "raises": ("raise RuntimeError('no database')", "RuntimeError: no database"),
    "does not compile": ("def", "SyntaxError"),
    "lacks a module": ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
    "ends the process": ("raise SystemExit(3)", "SystemExit: 3"),
}


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize(("source", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_failing_import_exits_5_and_debug_shows_its_traceback(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"broken_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(source)
    # The application is imported from the working directory.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    short, long = cli("run", f"{name}:worker"), cli("run", f"{name}:worker", "--debug")

    assert (short.code, long.code) == (5, 5)
    assert said in short.err
    assert len(short.err.splitlines()) == 1
    assert f'{name}.py", line 1' in long.err


def test_debug_shows_the_traceback_of_an_error() -> None:
    ran = cli("list", "--url", "http://x", "--debug")

    assert ran.code == 2
    assert "Traceback" in ran.err


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
