"""What from-celery.md names on our side of its tables is there."""

from __future__ import annotations

import inspect
import re

import attrs
import pytest

import flowfabric_worker
from flowfabric_worker import Middleware, RetryPolicy, TaskOptions, Worker
from tests.support.cli import COMMANDS
from tests.support.pages import code, rows, section

PAGE = "from-celery.md"
TABLES = ("Feature by feature", "From Dramatiq", "From RQ", "From Huey")
_KEYWORD = re.compile(r"(?<![\w-])(\w+)=")
_CALLED = re.compile(r"(?<![\w.])([A-Z]\w+)\(")
_HOOK = re.compile(r"\bon_\w+|\baround\b")


def ours(heading: str) -> str:
    """Return everything that the right side of a table sets as code."""
    return "\n".join(word for row in rows(section(PAGE, heading)) for word in code(row[1]))


@pytest.mark.parametrize("heading", TABLES)
def test_every_keyword_is_an_option(heading: str) -> None:
    known = {
        *attrs.fields_dict(TaskOptions),
        *attrs.fields_dict(RetryPolicy),
        *inspect.signature(Worker).parameters,
        *inspect.signature(Worker.task).parameters,
        *("hours", "minutes", "seconds"),  # of timedelta
        *("b", "after", "mail"),  # an argument of a task, of Retry, and a lane with its weight
    }

    assert set(_KEYWORD.findall(ours(heading))) <= known


@pytest.mark.parametrize("heading", TABLES)
def test_every_class_is_public(heading: str) -> None:
    assert set(_CALLED.findall(ours(heading))) <= set(flowfabric_worker.__all__)


@pytest.mark.parametrize("heading", TABLES)
def test_every_option_of_the_command_line_exists(heading: str) -> None:
    known = {option for command in COMMANDS.values() for each in command.params for option in each.opts}

    assert set(re.findall(r"(?<!\w)--[a-z-]+", ours(heading))) <= known


@pytest.mark.parametrize("heading", TABLES)
def test_every_hook_exists(heading: str) -> None:
    # Django has a hook of its own in the table.
    assert set(_HOOK.findall(ours(heading))) - {"on_commit"} <= set(vars(Middleware))
