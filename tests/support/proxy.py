"""A proxy between a worker and its server that passes everything on, or behaves as bad networks do."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path

CHUNK = 65536


class Listener(ABC):
    """A thread that listens on a port of the loopback and serves every connection.

    Attributes:
        port: where it listens.
    """

    def __init__(self) -> None:
        """A subclass calls this last: from now on it has clients to serve."""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._thread.start()

    @abstractmethod
    def cut(self) -> int:
        """End every connection; how many there were."""

    @abstractmethod
    def _serve(self, client: socket.socket) -> None:
        """Begin to pass on what a client says; return before it has ended."""

    def close(self) -> None:
        """End listening and every connection."""
        _end((self._listening,))
        self._thread.join(5)
        self.cut()

    def _accept(self) -> None:
        # Closing the listening socket ends this.
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._serve(client)


class Proxy(Listener):
    """Passes on to the unix socket of a server.

    A connection that lost a byte in one direction carries nothing in that direction any more, as after a firewall
    has forgotten it: what comes later would make no sense without what was lost.

    Attributes:
        delay: for how many seconds every chunk is held up, in both directions.
    """

    def __init__(self, target: Path) -> None:
        self.delay = 0.0
        self._target = target
        self._swallows_calls = False
        self._swallows_replies = False
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        super().__init__()

    @property
    def connections(self) -> int:
        """How many connections were opened and not cut."""
        return len(self._pairs)

    # Behaviour

    def swallow(self, *, calls: bool = True, replies: bool = True) -> None:
        """Start to drop what the client sends, what the server sends, or both; new connections are accepted.

        When it returns, nothing that came later is on its way.
        """
        with self._lock:
            self._swallows_calls, self._swallows_replies = calls, replies

    def pass_on(self) -> None:
        """Stop dropping, except on connections that have lost something."""
        self.swallow(calls=False, replies=False)

    def cut(self) -> int:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _end(pair)
        return len(pairs)

    # Its threads

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(str(self._target))
        except OSError:
            # The server is away: the client finds its connection closed.
            _end((client, server))
            return
        with self._lock:
            self._pairs.append((client, server))
        for source, sink, is_call in ((client, server, True), (server, client, False)):
            threading.Thread(target=self._carry, args=(source, sink, is_call), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, is_call: bool) -> None:
        broken = False
        # Whichever side ends, the connection ends.
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK):
                time.sleep(self.delay)
                with self._lock:
                    broken = broken or (self._swallows_calls if is_call else self._swallows_replies)
                    if not broken:
                        sink.sendall(chunk)
        _end((source, sink))


def _end(sockets: tuple[socket.socket, ...]) -> None:
    """Close sockets, and wake the threads that wait on them."""
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
