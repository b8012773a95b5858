"""The embedded Postgres store: a Postgres server that this library starts, with its data in one directory."""

from __future__ import annotations

from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from flowfabric_worker.engine.errors import EngineError, UnavailableError
from flowfabric_worker.engine.stores.embedded_guard import Postgres
from flowfabric_worker.engine.stores.embedded_server import Membership, runs_as_this_user
from flowfabric_worker.engine.stores.pool import Pool
from flowfabric_worker.engine.stores.postgres import PostgresStore, shared_size
from flowfabric_worker.engine.stores.postgres_connection import PostgresConnection, ServerError
from flowfabric_worker.engine.stores.postgres_errors import ends_connection


class OwnPostgresConnection(PostgresConnection):
    """A connection that refuses a server which runs as another user."""

    def connect(self) -> None:
        if self._connection is None:
            super().connect()
            connected = self._sock
            if connected is not None and not runs_as_this_user(connected):
                self.disconnect()
                raise psycopg.OperationalError("the server of the directory runs as another user")


class EmbeddedPostgresStore(PostgresStore):
    """A store on the server of a directory, which the first process that uses it starts, and the last one stops.

    Args:
        directory: the directory of the data; it is created if it does not exist.
        schema: the schema of the tables.
        pool_size: the most connections.
        timeout: how long to wait for a connection, in seconds.
    """

    def __init__(self, directory: Path, *, schema: str, pool_size: int, timeout: float) -> None:
        if "," in str(directory):
            raise UnavailableError(
                "embedded",
                f"{directory}: Postgres takes no directory with a comma in its name.",
                "embedded_unavailable",
            )
        self._membership = Membership(directory, Postgres)
        socket_path = self._membership.socket_path
        conninfo = make_conninfo(
            host=str(socket_path.parent),
            port=5432,
            user="postgres",
            dbname="postgres",
            application_name="flowfabric_worker",
        )
        pool = Pool(
            OwnPostgresConnection,
            {"conninfo": conninfo, "timeout": timeout},
            size=shared_size(pool_size),
            retry_for=timeout,
            saves=True,
        )
        super().__init__(pool, schema=schema, address=f"embedded+postgresql://{directory}")

    def translate(self, error: Exception) -> EngineError:
        if isinstance(error, psycopg.OperationalError) or (isinstance(error, ServerError) and ends_connection(error)):
            self._membership.renew()
        return super().translate(error)

    def close(self) -> None:
        super().close()
        self._membership.end()
