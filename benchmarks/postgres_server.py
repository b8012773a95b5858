"""The Postgres server that is measured on: that of the wheel, with the durability that Postgres has by default."""

from __future__ import annotations

from typing import Any, Self

from tests.support.postgres import PostgresServer

_STOCK = ("fsync=on", "synchronous_commit=on", "full_page_writes=on", "shared_buffers=128MB")
_OURS = r"^(ff|dbos|public)"


class PostgresBench(PostgresServer):
    """A server for the length of a `with` block, on a unix socket, which all peers can use."""

    def __init__(self, *settings: str) -> None:
        super().__init__(*_STOCK, *settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def version(self) -> str:
        """Such as 18.1."""
        return str(self.rows("SHOW server_version")[0][0])

    def clear(self) -> None:
        """Remove all data, with the schemas that hold it."""
        with self.session() as session:
            names = session.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ %s", (_OURS,)).fetchall()
            for (name,) in names:
                session.execute(f'DROP SCHEMA "{name}" CASCADE')  # type: ignore[arg-type]
            session.execute("CREATE SCHEMA public")

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows that a query gives."""
        with self.session() as session:
            return session.execute(query).fetchall()  # type: ignore[arg-type]
