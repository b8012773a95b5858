"""The recipes for submitting in a transaction of the application, run with what they are for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.pages import ROOT, snippets
from tests.support.postgres import PostgresServer

_RECIPES = [each.text for each in snippets("py") if "send_receipt" in each.text and "INSERT INTO orders" in each.text]
_COMPLETIONS = [each.text for each in snippets("py") if "current().transaction()" in each.text]
# The application that the recipes import. At its end the task runs, if there is any.
_TASKS = """
import sys

from django.conf import settings
from sqlalchemy import create_engine

from flowfabric_worker import Worker

HOST, SCHEMA = sys.argv[1:]
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "postgres",
            "HOST": HOST,
            "OPTIONS": {"options": f"-c search_path={SCHEMA}_app"},
        }
    }
)
engine = create_engine(
    f"postgresql+psycopg://postgres@/postgres?host={HOST}",
    connect_args={"options": f"-c search_path={SCHEMA}_app"},
)
worker = Worker("shop", f"postgresql://postgres@/postgres?host={HOST}&schema={SCHEMA}")


@worker.task
def send_receipt(order_id: int) -> None:
    print("receipt", order_id)
"""
# Stands in a recipe for the schema of the test.
_SCHEMA = "SCHEMA"
_FAIL = "    raise RuntimeError('the application fails')\n"
_RUN = """
from tasks import worker

worker.run_until_idle()
"""


def run_recipe(recipe: str, postgres: PostgresServer, folder: Path) -> tuple[str, str, int]:
    """Run a recipe and then the worker; return the output, the errors, and the number of rows."""
    schema = f"t{uuid4().hex[:12]}"
    recipe = recipe.replace(_SCHEMA, schema)
    with postgres.session() as session:
        session.execute(f"CREATE SCHEMA {schema}_app")  # type: ignore[arg-type]
        session.execute(f"CREATE TABLE {schema}_app.orders (id int)")  # type: ignore[arg-type]
        where = f"host={postgres.folder} user=postgres dbname=postgres options='-c search_path={schema}_app'"
        (folder / "tasks.py").write_text(_TASKS, "utf-8")
        text = recipe.replace('"postgresql://shop@db.example/shop"', repr(where))
        body = "".join(f"    {line}\n" for line in text.splitlines())
        script = f"import tasks\n\ntry:\n{body}except RuntimeError as error:\n    print(error)\n{_RUN}"
        (folder / "app.py").write_text(script, "utf-8")
        done = subprocess.run(
            [sys.executable, "app.py", str(postgres.folder), schema],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        row = session.execute(f"SELECT count(*) FROM {schema}_app.orders").fetchone()  # type: ignore[arg-type]
    assert row is not None
    return done.stdout, done.stderr, row[0]


def test_there_is_a_recipe_for_each_kind_of_application() -> None:
    assert (len(_RECIPES), len(_COMPLETIONS)) == (4, 2)


@pytest.mark.parametrize("recipe", _RECIPES, ids=["psycopg", "sqlalchemy", "django", "django_on_commit"])
def test_a_recipe_commits_the_task_with_the_rows(recipe: str, postgres: PostgresServer, tmp_path: Path) -> None:
    output, errors, rows = run_recipe(recipe, postgres, tmp_path)
    assert (output, rows) == ("receipt 7\n", 1), errors


@pytest.mark.parametrize("recipe", _RECIPES, ids=["psycopg", "sqlalchemy", "django", "django_on_commit"])
def test_a_recipe_that_fails_leaves_neither_task_nor_rows(
    recipe: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    output, errors, rows = run_recipe(recipe.rstrip() + "\n" + _FAIL, postgres, tmp_path)
    assert (output, rows) == ("the application fails\n", 0), errors


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("recipe", _COMPLETIONS, ids=["psycopg", "sqlalchemy"])
def test_a_handler_of_a_recipe_writes_rows_with_its_result_alone(
    recipe: str, fails: bool, postgres: PostgresServer, tmp_path: Path
) -> None:
    # The user of the store finds the tables of the application by its search path, which only the test sets.
    recipe = recipe.replace("INTO orders", f"INTO {_SCHEMA}_app.orders")
    if fails:
        recipe = recipe.replace('return "shipped"', "raise RuntimeError")
    output, errors, rows = run_recipe(f"{recipe}\nship.submit(7)\n", postgres, tmp_path)
    assert (output, rows) == ("", 0 if fails else 1), errors
