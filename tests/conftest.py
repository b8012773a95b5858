"""Fixtures of all tests: the stores, and an engine on each of them whose clock a test can move."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.stores.memory import forget_memory
from tests.support import leaks
from tests.support.cli import Process
from tests.support.dumps import Dump, dump_of
from tests.support.servers import ValkeyCluster, ValkeyServer, running

if TYPE_CHECKING:
    from tests.support.postgres import PostgresServer

# A shell that runs the tests in the background ignores SIGINT, and every process of the tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

STORES = ("memory", "memory5", "embedded", "valkey", "cluster", "postgres", "postgres5")
# The conformance suite runs on these unless others are asked for; the embedded store is a Valkey on a unix socket.
DEFAULT_STORES = ("memory", "memory5", "embedded", "cluster", "postgres")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store", action="append", choices=STORES, help="run store tests on this store only; may repeat")
    parser.addoption(
        "--server", choices=("valkey", "postgres"), default="valkey", help="run worker and cli tests on such a server"
    )


def pytest_configure() -> None:
    leaks.install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail every test that let a token or a secret be written; show what the processes of a failed test do."""
    report = yield
    leaks.judge(report)
    if report.failed and report.when == "call":
        report.sections.extend(Process.explain())
    return report


def _uses_server(item: pytest.Item) -> bool:
    """Return True if a test uses a store on a server, by a fixture or as one of its places."""
    places = item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
    return "server_url" in getattr(item, "fixturenames", ()) or "server" in places


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a case by its argument where its value is an execution id, which differs between processes."""
    return argname if isinstance(val, ExecutionId) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "store_name" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--store") or DEFAULT_STORES
        metafunc.parametrize("store_name", chosen, scope="session")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Spread the files of each folder over the whole run, so tests that wait run beside tests that compute.

    If a server is asked for, keep only the tests that use one: the others run without that option.
    """
    if config.getoption("--server") != "valkey":
        items[:] = [item for item in items if _uses_server(item)]
    folders: dict[Path, list[list[pytest.Item]]] = {}
    for path, tests in itertools.groupby(items, key=lambda item: item.path):
        folders.setdefault(path.parent, []).append(list(tests))
    placed = []
    for files in folders.values():
        starts = list(itertools.accumulate(map(len, files), initial=0))
        placed += [(start / starts[-1], file) for start, file in zip(starts, files, strict=False)]
    items[:] = [item for _, file in sorted(placed, key=lambda entry: entry[0]) for item in file]


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """Provide a Valkey server for the whole run."""
    with running(ValkeyServer("--appendfsync", "no")) as server:
        yield server


@pytest.fixture(scope="session")
def cluster() -> Iterator[ValkeyCluster]:
    """Provide a Valkey cluster of three nodes for the whole run."""
    with running(ValkeyCluster()) as servers:
        yield servers


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Provide a Postgres server for the whole run."""
    from tests.support.postgres import PostgresServer
    from tests.support.reused_connections import close_idle_connections

    with running(PostgresServer()) as server:
        yield server
        close_idle_connections()


@pytest.fixture
def server_url(request: pytest.FixtureRequest) -> str | None:
    """Provide the URL of an empty store on the Postgres server if the tests run with --server=postgres, else None."""
    if request.config.getoption("--server") != "postgres":
        return None
    postgres: PostgresServer = request.getfixturevalue("postgres")
    postgres.empty_schema("ff")
    return postgres.url


@pytest.fixture
def store_url(store_name: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """Provide the URL of a store for one test: its own prefix keeps tests apart on one server."""
    mark = uuid4().hex[:12]
    with _reused_connections(store_name):
        yield _url_of(store_name, mark, request)
    # A store in this process takes almost 2 MiB.
    forget_memory(mark)


def _reused_connections(store_name: str) -> AbstractContextManager[None]:
    """Provide a block whose stores on Postgres use the connections of earlier tests."""
    if store_name not in ("postgres", "postgres5"):
        return nullcontext()
    from tests.support.reused_connections import reusing_connections

    return reusing_connections()


def _url_of(store_name: str, mark: str, request: pytest.FixtureRequest) -> str:
    if store_name in ("memory", "memory5"):
        return f"memory://{mark}?partitions={5 if store_name == 'memory5' else 1}"
    if store_name == "embedded":
        directory: Path = request.getfixturevalue("embedded_directory")
        return f"embedded://{directory}?prefix=t{mark}"
    if store_name in ("postgres", "postgres5"):
        postgres: PostgresServer = request.getfixturevalue("postgres")
        postgres.empty_schema("ff")
        return f"{postgres.url}&schema=ff&partitions={5 if store_name == 'postgres5' else 1}"
    server = request.getfixturevalue(store_name)
    return f"{server.url}?prefix=t{mark}"


@pytest.fixture(scope="session")
def embedded_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Provide the directory of an embedded store whose server lives for the whole run."""
    from flowfabric_worker.engine.stores.embedded_server import EmbeddedServer

    directory = tmp_path_factory.mktemp("embedded")
    member = EmbeddedServer.join(directory)
    yield directory
    member.leave()


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    """Provide an engine on an empty store that was prepared for tests: its clock can be set."""
    engine = open_engine(store_url)
    engine.prepare(testing=True)
    yield engine
    engine.close()


class Clock:
    """The clock of a store for tests: it stands still until it is moved."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.now = datetime(2030, 1, 1, tzinfo=UTC)
        engine.set_clock(self.now)

    @property
    def ms(self) -> int:
        return int(self.now.timestamp() * 1000)

    def move(self, duration: timedelta) -> None:
        """Set the clock forward (or back)."""
        self.now += duration
        self._engine.set_clock(self.now)


@pytest.fixture
def clock(engine: Engine) -> Clock:
    """Provide the engine's clock, stopped."""
    return Clock(engine)


@pytest.fixture
def dump(engine: Engine) -> Dump:
    """Provide everything that the engine's store holds, at each call."""
    return lambda: dump_of(engine)


@pytest.fixture
def names() -> Iterator[str]:
    """Name that no other test uses."""
    return (f"n{number}" for number in itertools.count())
