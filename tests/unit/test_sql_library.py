"""The SQL of a release: its operations, its names, and its migrations."""

from __future__ import annotations

import re

from flowfabric_worker.engine.stores.library import CONTRACT_MAJOR, lua_files
from flowfabric_worker.engine.stores.sql_library import sql_library
from tests.support.postgres import OF_POSTGRES_ALONE, OF_VALKEY_ALONE
from tests.support.site import ROOT

_CREATED = re.compile(r"^CREATE (?:FUNCTION|TYPE|TABLE) fn\.(\w+)", re.MULTILINE)


def sql_files() -> list[tuple[str, str]]:
    return [(path.name, path.read_text()) for path in sorted((ROOT / "flowfabric_worker" / "sql").rglob("*.sql"))]


def test_postgres_has_the_operations_that_valkey_has() -> None:
    text = "".join(text for _, text in lua_files())
    of_lua = set(re.findall(r"^(?:ff\.)?register(?:_single|_read)?\('(\w+)'", text, re.MULTILINE))
    assert of_lua - OF_VALKEY_ALONE | OF_POSTGRES_ALONE == sql_library().operations


def test_an_operation_says_what_it_takes_and_what_it_replies() -> None:
    heads = {
        found[2]: found[1]
        for _, text in sql_files()
        for found in re.finditer(
            r"((?:^--.*\n)+)CREATE FUNCTION fn\.(\w+)\(partition int, args bytea\[\]\)", text, re.MULTILINE
        )
    }
    assert heads.keys() == sql_library().operations
    for name, head in heads.items():
        assert f"-- {name}: " in head, name
        assert "-- Replies" in head, name


def test_every_function_that_is_called_exists() -> None:
    texts = [re.sub(r"--.*", "", text) for _, text in sql_files()]
    created = {name for text in texts for name in _CREATED.findall(text)}
    used = re.compile(r"(?<!CREATE FUNCTION )(?<!CREATE TYPE )(?<!CREATE TABLE )\bfn\.(\w+)")
    called = {name for text in texts for name in used.findall(text)}
    assert called - created == set()
    # What only other functions use is used by one of them.
    assert created - called - sql_library().operations == set()


def test_a_schema_of_functions_is_named_by_contract_and_content() -> None:
    library = sql_library()
    assert re.fullmatch(rf"v{CONTRACT_MAJOR}_[0-9a-f]{{12}}", library.name)
    assert library.schema_of("ff") == f"ff_{library.name}"
    # With the longest name of a schema it is still a name that Postgres does not cut.
    assert len(library.schema_of("s" * 30)) <= 63


def test_functions_name_the_schemas_that_they_are_installed_for() -> None:
    text = re.sub(r"--.*", "", sql_library().functions_in("shop"))
    assert re.findall(r"(?<![\w.\"])(?:db|fn)\.\w+", text) == []
    assert "@SCHEMA@" not in text


def test_migrations_are_numbered_without_gaps() -> None:
    assert [each.version for each in sql_library().migrations] == list(range(1, len(sql_library().migrations) + 1))
