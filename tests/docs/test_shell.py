"""The commands that the documentation shows are commands that there are."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import metadata

import click
import pytest

from flowfabric_worker.cli import main
from tests.support.pages import PAGES, ROOT, snippets

_PROGRAM = re.compile(r"(?:^|[\s(\"'/])(?:flowfabric-worker|python -m flowfabric_worker)\s")
_ENDS = re.compile(r"\s(?:\||&&|;)\s|\s#\s.*")
_INLINE = re.compile(r"`((?:flowfabric-worker|python -m flowfabric_worker) [^`]+)`")


def command_lines() -> Iterator[str]:
    """Yield what stands behind the name of the program, wherever a page runs it in a shell or a service."""
    for snippet in [*snippets("sh"), *snippets("ini")]:
        for line in snippet.text.replace("\\\n", " ").splitlines():
            yield from commands_of(line)
    for page in PAGES:
        # The headlines of the reference show the shape of commands, not commands.
        if page.stem != "reference":
            for line in _INLINE.findall(page.read_text("utf-8")):
                yield from commands_of(line.replace("\\|", "|"))
    for snippet in [*snippets("dockerfile"), *snippets("yaml")]:
        for listed in re.findall(r"\[\"flowfabric-worker\".*\]", snippet.text):
            yield shlex.join(json.loads(listed)[1:])


def commands_of(line: str) -> Iterator[str]:
    """Yield the commands of ours in a line of a shell, without the program's name."""
    for part in _ENDS.split(line):
        match = _PROGRAM.search(part)
        if match:
            yield part[match.end() :].rstrip(')"')


def parse(arguments: list[str]) -> None:
    """Parse arguments with the real command, without running it."""
    name, *rest = arguments
    with main.make_context("flowfabric-worker", [name, *rest]) as context:
        command = main.get_command(context, name)
        assert command is not None, f"there is no command {name!r}"
        command.make_context(name, rest, parent=context)


def test_the_pages_show_commands() -> None:
    assert {page.stem for page in PAGES} >= {"README", "guide", "production", "from-celery"}
    assert len(list(command_lines())) > 30


@pytest.mark.parametrize("line", sorted(set(command_lines())))
def test_command_of_the_documentation_is_one(line: str) -> None:
    with contextlib.suppress(click.exceptions.Exit):  # how --help and --version end
        parse(shlex.split(line))


def test_installations_quote_extras_that_exist() -> None:
    # The shell zsh takes an extra without quotes as a pattern, and installs nothing.
    texts = [path.read_text("utf-8") for path in (*PAGES, *(ROOT / "flowfabric_worker").rglob("*.py"))]
    installed = re.findall(r"pip install (\S*flowfabric_worker\[[\w,-]+\]\S?)", "\n".join(texts))
    extras = {extra for each in installed for extra in each.partition("[")[2].rstrip("]'").split(",")}

    assert [each for each in installed if not re.fullmatch(r"'.*'", each)] == []
    assert {"embedded", "memory", "msgpack"} <= extras <= {*metadata("flowfabric_worker").get_all("Provides-Extra", [])}
