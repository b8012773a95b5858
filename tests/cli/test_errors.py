"""Errors are one sentence on stderr, with an exit code that says what kind they are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.cli import UNKNOWN_ID, cli
from tests.support.servers import ValkeyServer

WRONG_USE = {
    "an unknown command": (["sbumit"], "sbumit"),
    "an unknown option": (["list", "--wrong"], "--wrong"),
    "a missing argument": (["status"], "ID"),
    "an argument that is no JSON": (["submit", "add", "x"], """'"x"'"""),
    "arguments by name that are no object": (["submit", "add", "--kwargs", "[1]"], "no JSON object"),
    "a number that JSON does not have": (["submit", "add", "NaN"], "NaN"),
    "a tag without a value": (["submit", "add", "--tag", "a"], "NAME=VALUE"),
    "a duration without a sense": (["submit", "add", "--delay", "soon"], "duration"),
    "a duration beyond all bounds": (["submit", "add", "--delay", "999999999999d"], "too long"),
    "a state that does not exist": (["list", "--state", "asleep"], "asleep"),
    "a lane that cannot be one": (["submit", "--force", "add", "--lane", "ä"], "lane"),
    "a task without a name": (["submit", ""], "task"),
    "an id that is none": (["status", "abc"], "abc"),
    "a payload over the limit": (["submit", "--force", "add", '"' + "x" * 2**20 + '"'], "1048576"),
    "a namespace that cannot be one": (["list", "--namespace", ""], "namespace"),
    "a URL of no store": (["list", "--url", "http://x"], "must begin with"),
    "a weight of no sense": (["run", "x:y", "--lanes", "a=0"], "weight"),
    "an offer that is none": (["run", "x:y", "--capabilities", "a b"], "capability"),
    "no time for a lease": (["run", "tests.support.cli_app:worker", "--lease", "0"], "--lease"),
    "no thread": (["run", "x:y", "--threads", "0"], "--threads"),
    "an application that is not named": (["run", "application"], "MODULE:NAME"),
}
BAD_APPS = {
    "no such module": ("nowhere_at_all:worker", "no module 'nowhere_at_all'"),
    "no such module in a package": ("tests.cli.nowhere:worker", "no module 'tests.cli.nowhere'"),
    "no such name": ("tests.support.cli_app:wroker", "its workers are worker, without_tasks"),
    "not a worker": ("tests.support.cli_app:number", "no Worker; it is of type int"),
    "no tasks": ("tests.support.cli_app:without_tasks", "has no tasks"),
}


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize(("arguments", "said"), WRONG_USE.values(), ids=WRONG_USE.keys())
def test_wrong_use_exits_2_and_names_what_is_wrong(arguments: list[str], said: str) -> None:
    ran = cli(*arguments)

    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize("command", ["status", "result", "explain", "cancel", "replay"])
def test_an_execution_that_does_not_exist_exits_1(command: str) -> None:
    ran = cli(command, UNKNOWN_ID)

    assert ran.code == 1
    assert "does not exist" in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("command", [["list"], ["submit", "add"], ["check"], ["run", "tests.support.cli_app:worker"]])
def test_a_store_that_cannot_be_reached_exits_3(command: list[str]) -> None:
    ran = cli(*command, "--url", "valkey://127.0.0.1:1")

    assert ran.code == 3
    assert "127.0.0.1:1 cannot be reached" in ran.err


def test_a_wrong_password_exits_4_and_is_not_repeated(valkey: ValkeyServer) -> None:
    ran = cli("list", "--url", f"unix://default:hunter2@{valkey.socket}?db=0")
    valkey.client().acl_setuser("reader", enabled=True, passwords=["+right"], categories=["+@all"], keys=["*"])
    ran = cli("list", "--url", f"unix://reader:hunter2@{valkey.socket}")

    assert ran.code == 4
    assert "refused the user or the password" in ran.err
    assert "hunter2" not in ran.err


def test_a_store_that_was_set_up_otherwise_exits_4(url: str) -> None:
    assert cli("lanes").code == 0

    ran = cli("lanes", "--url", f"{url}&partitions=3")

    assert ran.code == 4
    assert "1 partitions, not 3" in ran.err


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize(("app", "said"), BAD_APPS.values(), ids=BAD_APPS.keys())
def test_an_application_that_cannot_be_run_exits_5(app: str, said: str) -> None:
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
def test_an_application_whose_import_fails_exits_5_and_debug_shows_where(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"broken_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(source)
    # The working directory is where an application is looked for.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    short, long = cli("run", f"{name}:worker"), cli("run", f"{name}:worker", "--debug")

    assert (short.code, long.code) == (5, 5)
    assert said in short.err
    assert len(short.err.splitlines()) == 1
    assert f'{name}.py", line 1' in long.err


def test_debug_shows_where_an_error_came_from() -> None:
    ran = cli("list", "--url", "http://x", "--debug")

    assert ran.code == 2
    assert "Traceback" in ran.err
