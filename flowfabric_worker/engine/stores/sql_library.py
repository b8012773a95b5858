"""The SQL of this release: numbered migrations of the tables, and functions that are installed beside older ones.

Each release has its functions in a schema whose name carries the major of the engine's contract and the hash of the SQL
files, so workers of two releases can use the same tables during an upgrade.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping

import attrs

from flowfabric_worker.engine.stores.library import CONTRACT_MAJOR

_ENTRY = re.compile(r"^CREATE FUNCTION fn\.(\w+)\(partition int, args bytea\[\]\)", re.MULTILINE)
_MIGRATION = re.compile(r"([0-9]{4})_(\w+)\.sql")


@attrs.frozen
class Migration:
    """One step of the tables' history."""

    version: int
    name: str
    text: str


@attrs.frozen
class SqlLibrary:
    """The functions and the migrations of a release.

    Attributes:
        name: `v<major>_<hash>`, the end of the name of the schema that holds the functions.
        text: the SQL that creates the functions.
        operations: the functions that a store may call.
        migrations: in order.
    """

    name: str
    text: str
    operations: frozenset[str]
    migrations: tuple[Migration, ...]

    def schema_of(self, schema: str) -> str:
        """Return the schema of this release's functions beside a schema of tables."""
        return f"{schema}_{self.name}"

    def functions_in(self, schema: str) -> str:
        """Return the SQL that creates the functions for a schema of tables."""
        return _placed(self.text, schema, self.schema_of(schema))

    def migration_in(self, migration: Migration, schema: str) -> str:
        """Return the SQL of a migration for a schema of tables."""
        return _placed(migration.text, schema, self.schema_of(schema))


def _placed(text: str, schema: str, functions: str) -> str:
    names: Mapping[str, str] = {"db.": f'"{schema}".', "fn.": f'"{functions}".'}
    placed = re.sub(r"(?<![\w.])(?:db|fn)\.", lambda found: names[found[0]], text)
    return placed.replace("@SCHEMA@", schema)


def _files(folder: str) -> Iterator[tuple[str, str]]:
    # The import stands here, because reading the files is not part of importing the package.
    from importlib import resources

    place = resources.files("flowfabric_worker").joinpath(folder)
    for name in sorted(entry.name for entry in place.iterdir() if entry.name.endswith(".sql")):
        yield name, place.joinpath(name).read_text("utf-8")


@functools.cache
def sql_library() -> SqlLibrary:
    """Return the SQL of this release; the files are read once."""
    # Functions name each other only when they run, but types must exist; prelude.sql has those of all files.
    texts = sorted(_files("sql"), key=lambda file: not file[0].startswith("prelude"))
    body = "\n".join(text for _, text in texts)
    migrations = tuple(
        Migration(int(found[1]), found[2], text)
        for name, text in _files("sql/migrations")
        if (found := _MIGRATION.fullmatch(name))
    )
    name = f"v{CONTRACT_MAJOR}_{hashlib.sha256(body.encode()).hexdigest()[:12]}"
    return SqlLibrary(name, body, frozenset(_ENTRY.findall(body)), migrations)
