"""Installing the tables and functions in a database, and what the server tells about itself."""

from __future__ import annotations

from flowfabric_worker.engine.errors import TransportError, UnavailableError
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, StoreInfo
from flowfabric_worker.engine.stores.postgres_connection import PostgresConnection, ServerError
from flowfabric_worker.engine.stores.sql_library import SqlLibrary

OLDEST = 14
# Migrations of large tables take their time.
_MIGRATION_TIMEOUT = 3600.0

# Callers need the right to execute the operations and nothing else: these run with the rights of their owner, and find
# names in the server's own schema only. Plans are made once for every value, and statistics may be older than the rows,
# so what is quick only while a table is small is switched off.
_GUARD = """
DO $guard$
DECLARE
  operation regprocedure;
BEGIN
  FOR operation IN
    SELECT oid FROM pg_catalog.pg_proc WHERE pronamespace = '"{functions}"'::regnamespace
      AND proargtypes = '23 1001'::oidvector
  LOOP
    EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER SET search_path = pg_catalog, pg_temp', operation);
    EXECUTE format('ALTER FUNCTION %s SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off '
      'SET plan_cache_mode = force_generic_plan', operation);
  END LOOP;
END $guard$
"""


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _has_functions(connection: PostgresConnection, library: SqlLibrary, schema: str) -> bool:
    found = connection.execute(
        "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1",
        library.schema_of(schema),
        timeout=CALL_TIMEOUT,
    )
    return bool(found)


def install(connection: PostgresConnection, library: SqlLibrary, schema: str, address: str) -> bool:
    """Bring the tables up to date and add this release's functions; return False if there was nothing to do.

    Raises:
        UnavailableError: `store_not_supported`, the server is too old or a replica, or its tables are of a newer
            release.
        TransportError: `permission_denied`, the user may not create what is missing.
    """
    _check_server(connection, address)
    if _has_functions(connection, library, schema):
        return False
    try:
        connection.execute("BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0", timeout=CALL_TIMEOUT)
        # One process migrates at a time; the others wait and find everything done.
        connection.execute(
            "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended($1, 0))",
            f"flowfabric {schema}",
            timeout=_MIGRATION_TIMEOUT,
        )
        added = not _has_functions(connection, library, schema)
        if added:
            _migrate(connection, library, schema, address)
            _add_functions(connection, library, schema)
        connection.execute("COMMIT", timeout=_MIGRATION_TIMEOUT)
    except ServerError as error:
        if error.code != "42501":
            raise
        raise TransportError(
            "permission_denied",
            f"The user of {address} may not create what is missing in the schema {schema!r} ({error}). Run "
            "'flowfabric-worker check' once as the owner of the schema.",
            backend="postgresql",
        ) from error
    return added


def _migrate(connection: PostgresConnection, library: SqlLibrary, schema: str, address: str) -> None:
    home = _quoted(schema)
    connection.execute(
        f"SET LOCAL client_min_messages = warning; CREATE SCHEMA IF NOT EXISTS {home};"
        f"CREATE TABLE IF NOT EXISTS {home}.migrations (version int PRIMARY KEY, name text NOT NULL, "
        "applied_at timestamptz NOT NULL DEFAULT now())",
        timeout=CALL_TIMEOUT,
    )
    rows = connection.execute(f"SELECT max(version) FROM {home}.migrations", timeout=CALL_TIMEOUT)
    done = int(rows[0][0] or 0)
    newest = library.migrations[-1].version
    if done > newest:
        raise UnavailableError(
            "prepare",
            f"The tables in the schema {schema!r} of {address} are of version {done}, and this release knows {newest}: "
            "upgrade flowfabric_worker.",
            "store_not_supported",
        )
    for migration in library.migrations:
        if migration.version > done:
            connection.execute(library.migration_in(migration, schema), timeout=_MIGRATION_TIMEOUT)
            connection.execute(
                f"INSERT INTO {home}.migrations (version, name) VALUES ($1::int, $2)",
                str(migration.version),
                migration.name,
                timeout=CALL_TIMEOUT,
            )


def _add_functions(connection: PostgresConnection, library: SqlLibrary, schema: str) -> None:
    functions = library.schema_of(schema)
    # The bodies are checked when they are called: they name functions that come later.
    connection.execute(
        f"CREATE SCHEMA {_quoted(functions)}; SET LOCAL check_function_bodies = off; "
        "SET LOCAL search_path = pg_catalog, pg_temp",
        timeout=CALL_TIMEOUT,
    )
    connection.execute(library.functions_in(schema), timeout=_MIGRATION_TIMEOUT)
    connection.execute(_GUARD.format(functions=functions), timeout=_MIGRATION_TIMEOUT)


def check_rights(connection: PostgresConnection, library: SqlLibrary, schema: str, address: str) -> None:
    """Check that the user may call this release's functions, if they are installed.

    Raises:
        TransportError: `permission_denied`; the message says what to grant.
    """
    functions = library.schema_of(schema)
    rows = connection.execute(
        "SELECT pg_catalog.has_schema_privilege(oid, 'USAGE'), current_user FROM pg_catalog.pg_namespace "
        "WHERE nspname = $1",
        functions,
        timeout=CALL_TIMEOUT,
    )
    if rows and rows[0][0] == "f":
        raise TransportError(
            "permission_denied",
            f"The user of {address} may not call the functions. Grant it: GRANT USAGE ON SCHEMA {_quoted(functions)} "
            f"TO {_quoted(rows[0][1])}",
            backend="postgresql",
        )


def other_releases(connection: PostgresConnection, library: SqlLibrary, schema: str) -> tuple[str, ...]:
    """Return the schemas that hold the functions of other releases."""
    rows = connection.execute(
        "SELECT nspname FROM pg_catalog.pg_namespace WHERE nspname ~ ('^' || $1 || '_v[0-9]+_[0-9a-f]{12}$') "
        "ORDER BY nspname",
        schema,
        timeout=CALL_TIMEOUT,
    )
    return tuple(name for (name,) in rows if name != library.schema_of(schema))


def remove_schema(connection: PostgresConnection, name: str) -> None:
    """Remove a schema: that with the functions of a release, or that with the tables."""
    connection.execute(
        "SET client_min_messages = warning; SET statement_timeout = 0; SET lock_timeout = 0; "
        f"DROP SCHEMA IF EXISTS {_quoted(name)} CASCADE; "
        "RESET client_min_messages; RESET statement_timeout; RESET lock_timeout",
        timeout=_MIGRATION_TIMEOUT,
    )


def _check_server(connection: PostgresConnection, address: str) -> None:
    (row,) = connection.execute(
        "SELECT current_setting('server_version_num'), pg_catalog.pg_is_in_recovery(), "
        "current_setting('server_encoding'), current_setting('transaction_read_only')",
        timeout=CALL_TIMEOUT,
    )
    problem = ""
    if int(row[0]) < OLDEST * 10000:
        problem = f"is Postgres {int(row[0]) // 10000}; Postgres {OLDEST} or newer is needed"
    elif row[1] == "t":
        problem = "is a replica, which cannot be written to; name the primary"
    elif row[3] == "on":
        problem = "takes no writes (default_transaction_read_only is on); name the primary, or turn it off"
    elif row[2] != "UTF8":
        problem = f"has a database in the encoding {row[2]}; create one in UTF8"
    if problem:
        raise UnavailableError("prepare", f"{address} {problem}.", "store_not_supported")


def read_info(connection: PostgresConnection, address: str, schema: str) -> StoreInfo:
    """Return what the server tells about itself.

    Raises:
        UnavailableError: `store_not_supported`.
    """
    _check_server(connection, address)
    (row,) = connection.execute(_FACTS, schema, timeout=CALL_TIMEOUT)
    version, calls, *facts = row
    warnings = [text.format(address=address, fact=fact) for text, fact in zip(_WARNINGS, facts, strict=True) if fact]
    return StoreInfo(product="postgresql", version=version.split()[0], warnings=tuple(warnings), calls=int(calls or 0))


# A snapshot of so many seconds keeps dead rows from being removed for too long.
_OLD_SNAPSHOT = 60
# The version, the number of transactions, and what each warning is about, empty if nothing is wrong. A user without
# pg_monitor does not see the transactions of other users.
_FACTS = f"""
SELECT current_setting('server_version'),
  (SELECT xact_commit FROM pg_catalog.pg_stat_database WHERE datname = current_database()),
  CASE WHEN 'off' IN (current_setting('fsync'), current_setting('full_page_writes')) THEN 'off' END,
  CASE WHEN current_setting('autovacuum') = 'off' THEN 'off' END,
  (SELECT string_agg(relname, ', ' ORDER BY relname) FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = relnamespace
    WHERE nspname = $1 AND reloptions && ARRAY['autovacuum_enabled=false', 'autovacuum_enabled=off']),
  (SELECT format('%s s (process %s, user %s, application %s)', seconds, pid, usename, application_name) FROM (
    SELECT *, (extract(epoch FROM clock_timestamp() - xact_start))::int AS seconds FROM pg_catalog.pg_stat_activity
    WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND datname = current_database()
  ) AS a WHERE seconds >= {_OLD_SNAPSHOT} ORDER BY seconds DESC LIMIT 1),
  (SELECT string_agg(slot_name, ', ' ORDER BY slot_name) FROM pg_catalog.pg_replication_slots WHERE NOT active),
  (SELECT string_agg(gid, ', ' ORDER BY gid) FROM pg_catalog.pg_prepared_xacts
    WHERE database = current_database() AND prepared < clock_timestamp() - interval '{_OLD_SNAPSHOT} s')
"""
_WARNINGS = (
    "{address} does not write to its disk in time (fsync is off): a crash may damage its data.",
    "{address} has no autovacuum: tables grow and calls become slow. Turn it on.",
    "{address} has no autovacuum for {fact}: these tables grow and calls become slow. Turn it on.",
    "{address} has a transaction that has been open for {fact}: dead rows cannot be removed meanwhile. End it.",
    "{address} has replication slots that no replica uses: {fact}. They keep old data: drop them.",
    "{address} has prepared transactions that wait to be ended: {fact}. Commit them, or roll them back.",
)
