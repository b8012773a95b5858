"""Fixtures of the fault tests: stores with workers to disturb, and separate servers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from tests.support.embedded import eventually, nothing_runs
from tests.support.executions import raw_client
from tests.support.measuring import Measuring
from tests.support.operations import START
from tests.support.postgres import PostgresServer
from tests.support.servers import ValkeyServer, running
from tests.support.site import Site, opened_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Provide a site on an embedded store."""
    with opened_site(f"embedded://{tmp_path}/store", tmp_path) as site:
        yield site


@pytest.fixture
def schema() -> str:
    """Provide the name of a Postgres schema that no other test uses."""
    return f"t{uuid4().hex[:12]}"


@pytest.fixture
def session(postgres: PostgresServer, schema: str) -> Iterator[psycopg.Connection[Any]]:
    """Provide a plain session whose tables are those of that schema."""
    with postgres.session() as session:
        session.execute(f"SET search_path = {schema}")
        yield session


@pytest.fixture
def served_site(valkey: ValkeyServer, tmp_path: Path) -> Iterator[Site]:
    """Provide a site on a server that lives on."""
    with opened_site(f"{valkey.url}?prefix=t{uuid4().hex[:12]}", tmp_path) as site:
        yield site


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    """Provide a server of this test's own, which keeps what it acknowledged."""
    with running(ValkeyServer("--appendfsync", "always")) as server:
        yield server


@pytest.fixture
def home() -> Iterator[Path]:
    """Provide a directory for an embedded store, with a short path, that does not exist yet; nothing may be left
    running.
    """
    with tempfile.TemporaryDirectory(prefix="ff") as parent:
        directory = Path(parent).resolve() / "store"
        yield directory
        eventually(lambda: nothing_runs(directory))


@pytest.fixture
def measured(valkey: ValkeyServer) -> Iterator[Engine]:
    """Provide an engine on a server, whose calls are measured."""
    behind = open_engine(f"{valkey.url}?prefix=m{uuid4().hex[:12]}")
    store = Measuring(behind.store, raw_client(behind))
    engine = Engine(lambda: (store, None))
    engine.prepare(testing=True)
    engine.set_clock(START)
    yield engine
    behind.close()
