"""The reference names everything that the code has, and nothing else."""

from __future__ import annotations

import ast
import inspect
import re

import attrs
import click
import pytest

import flowfabric_worker
from flowfabric_worker import TaskOptions, WorkerSettings
from flowfabric_worker.cli.exit_codes import ExitCode
from flowfabric_worker.engine.errors import CODES, ValidationError
from flowfabric_worker.engine.stores.urls import open_store
from flowfabric_worker.task import Submission
from tests.support.cli import COMMANDS
from tests.support.pages import ROOT, code, first_codes, rows, section

PAGE = "reference.md"
PACKAGE = ROOT / "flowfabric_worker"
_VARIABLE = re.compile(r"_?FLOWFABRIC_[A-Z_]+")


def options_in(text: str) -> set[str]:
    """Return the options that a text sets as code, without what stands behind them."""
    return {word.split()[0] for word in code(text) if word.startswith("--")}


def first_cells(heading: str) -> set[str]:
    """Return what the first cells below a heading set as code."""
    return set(first_codes(section(PAGE, heading)))


def test_every_public_name_stands_in_the_reference() -> None:
    assert sorted(first_codes(section(PAGE, "Public names"))) == sorted(flowfabric_worker.__all__)


@pytest.mark.parametrize(("name", "words"), [(code(row[0])[0], code(row[1])) for row in rows(section(PAGE, "Members"))])
def test_every_member_stands_in_the_reference(name: str, words: list[str]) -> None:
    kind = getattr(flowfabric_worker, name)
    parts = [
        kind,
        *(
            base
            for base in kind.__mro__
            if base.__module__.startswith(("flowfabric_worker._tasks", "flowfabric_worker.budgets"))
        ),
    ]
    members = {each for part in parts for each in vars(part) if not each.startswith("_") and each != "reset_after_fork"}
    annotated = {each for each in inspect.get_annotations(kind) if not each.startswith("_")}
    slots = set() if attrs.has(kind) else {each for each in vars(kind).get("__slots__", ()) if each[0] != "_"}
    own_attributes = assigned_in_constructor(kind)

    # What only a constructor knows may be named, and need not be.
    assert (members | annotated | slots) - own_attributes <= set(words)
    assert set(words) <= members | annotated | slots | own_attributes


def assigned_in_constructor(kind: type) -> set[str]:
    """Return the public attributes that the code of a class assigns to its instances."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and not node.attr.startswith("_")
    }


def test_every_option_of_a_task_stands_in_the_reference_and_the_guide() -> None:
    known = set(attrs.fields_dict(TaskOptions))

    assert first_cells("Options of a task") == known
    assert set(first_codes(section("guide.md", "Options"))) - {"name"} == known


def test_the_reference_says_which_options_belong_to_the_task() -> None:
    (sentence,) = re.findall(r"^`lease`.*?belong to the task", section(PAGE, "Options of a task"), re.S | re.M)
    fixed = set()
    for name in attrs.fields_dict(TaskOptions):
        try:
            a_submission().options(**{name: getattr(TaskOptions(), name)})
        except TypeError:
            fixed.add(name)

    assert set(code(sentence)) == fixed


def a_submission() -> Submission[..., None]:
    def nothing() -> None: ...

    return flowfabric_worker.Worker("reference", "memory://").task(nothing).options()


def test_every_setting_stands_in_the_reference_beside_its_option() -> None:
    table = {code(row[0])[0]: code(row[1]) for row in rows(section(PAGE, "Settings of a worker process"))}
    of_run = {parameter.name: parameter.opts[0] for parameter in COMMANDS["run"].params}

    assert table.keys() == attrs.fields_dict(WorkerSettings).keys()
    assert table == {name: [of_run[name]] if name in of_run else [] for name in table}


def test_every_environment_variable_stands_in_the_reference() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))

    assert first_cells("Environment variables") == {*_VARIABLE.findall(sources), "NO_COLOR"}


def test_every_command_stands_in_the_reference_and_the_guide() -> None:
    headings = re.findall(r"^### (\w+)$", section(PAGE, "Commands"), re.M)
    table = {word.split()[0] for word in first_codes(section("guide.md", "The command line"))}

    assert headings == list(COMMANDS)
    assert table == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_stands_in_the_reference(name: str) -> None:
    parameters = [each for each in COMMANDS[name].params if isinstance(each, click.Option)]

    assert options_in(section(PAGE, name)) == {each for one in parameters for each in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_sentence_of_each_command_stands_in_the_reference(name: str) -> None:
    help_text = COMMANDS[name].help
    assert help_text is not None
    sentence = " ".join(help_text.split("\n\n")[0].split())

    assert f": {sentence}" in " ".join(section(PAGE, name).split())


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_of_options_stand_in_the_reference(name: str) -> None:
    said = {code(row[0])[0].split()[0]: code(row[1]) for row in rows(section(PAGE, name))}
    parameters = {each.opts[0]: each for each in COMMANDS[name].params if isinstance(each, click.Option)}
    shown = {
        option: [str(parameters[option].default)] if parameters[option].show_default else said[option]
        for option in said
    }

    assert said == shown


def test_every_exit_code_stands_in_the_reference_and_the_guide() -> None:
    table = {row[0] for row in rows(section(PAGE, "Exit codes"))}
    (sentence,) = re.findall(
        r"The exit code says what happened: (.*?)\.", section("guide.md", "The command line"), re.S
    )

    assert table == {str(each.value) for each in ExitCode}
    assert set(re.findall(r"\d+", sentence)) == table


def test_every_error_code_stands_in_the_reference_with_its_class() -> None:
    table = {code(row[0])[0]: (code(row[1])[0], row[2] == "yes") for row in rows(section(PAGE, "Errors"))}

    assert table == {name: (row.error.__name__, row.retryable) for name, row in CODES.items()}


def schemes() -> list[str]:
    """Return the kinds of URL that the error for an unknown kind lists."""
    with pytest.raises(ValidationError) as refused:
        open_store("nonsense://")
    return re.findall(r"([\w+]+)://", str(refused.value))


def test_every_kind_of_url_stands_in_the_reference() -> None:
    kinds, _ = section(PAGE, "Stores").split("Percent-encode")

    assert {word.partition("://")[0] for word in first_codes(kinds)} == set(schemes())


@pytest.mark.parametrize("scheme", schemes())
def test_every_option_of_a_url_stands_in_the_reference(scheme: str) -> None:
    with pytest.raises(ValidationError) as refused:
        open_store(f"{scheme}://host?nonsense=1")
    known = str(refused.value).partition("known are ")[2].rstrip(".").split(", ")

    assert set(known) <= first_cells("Stores")
