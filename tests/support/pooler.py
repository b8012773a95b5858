"""A stand-in for PgBouncer. In transaction mode, each transaction of a client may run in another session."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Self

from tests.support.proxy import Listener

_SESSIONS = 3
_LENGTH = struct.Struct("!i")
# How PgBouncer refuses settings of a session, which it could not keep.
_REFUSAL = b"SERROR\0C08P01\0Munsupported startup parameter: options\0\0"


class Pooler(Listener):
    """Gives each client sessions of its own, and moves to the next one whenever a transaction has ended.

    Args:
        folder: where the unix socket of the server is.
        mode: "transaction", or "session" for one session per client, which it is never moved from.
    """

    def __init__(self, folder: Path, mode: str = "transaction") -> None:
        self._mode = mode
        self._target = str(folder / ".s.PGSQL.5432")
        self._sockets: list[socket.socket] = []
        super().__init__()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut(self) -> int:
        count = len(self._sockets)
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._sockets.clear()
        return count

    def _serve(self, client: socket.socket) -> None:
        self._sockets.append(client)
        threading.Thread(target=self._pool, args=(client,), daemon=True).start()

    def _pool(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            start = self._startup(client)
            if b"\0options\0" in start:
                client.sendall(_packed(b"E", _REFUSAL))
                client.close()
                return
            sessions = [self._session(start) for _ in range(_SESSIONS if self._mode == "transaction" else 1)]
            client.sendall(sessions[0][1])
            if self._mode == "session":
                threading.Thread(target=_pass_on, args=(sessions[0][0], client), daemon=True).start()
                _pass_on(client, sessions[0][0])
                return
            turn = 0
            while True:
                self._transaction(client, sessions[turn][0])
                turn = (turn + 1) % _SESSIONS

    def _startup(self, client: socket.socket) -> bytes:
        """Return the first message of a session, after refusing encryption."""
        while True:
            length = _read(client, 4)
            start = _read(client, _LENGTH.unpack(length)[0] - 4)
            if start[:2] != b"\x04\xd2":
                return length + start
            client.sendall(b"N")

    def _session(self, start: bytes) -> tuple[socket.socket, bytes]:
        """Open a session; return it and what the server says until it is ready."""
        server = socket.socket(socket.AF_UNIX)
        self._sockets.append(server)
        server.connect(self._target)
        server.sendall(start)
        said = b""
        while True:
            kind, body = _message(server)
            # PgBouncer draws a key for cancelling, because the session changes.
            said += _packed(kind, os.urandom(len(body)) if kind == b"K" else body)
            if kind == b"Z":
                return server, said

    def _transaction(self, client: socket.socket, server: socket.socket) -> None:
        """Pass messages on until the server is ready for another transaction."""
        waiting = 0
        while True:
            kind, body = _message(client)
            server.sendall(_packed(kind, body))
            if kind in b"QS":
                waiting += 1
                while waiting:
                    kind, body = _message(server)
                    client.sendall(_packed(kind, body))
                    waiting -= kind == b"Z"
                if body == b"I":
                    return


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Pass everything on until one side hangs up, and then hang up on the other."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def _read(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = source.recv(count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def _message(source: socket.socket) -> tuple[bytes, bytes]:
    kind = _read(source, 1)
    return kind, _read(source, _LENGTH.unpack(_read(source, 4))[0] - 4)


def _packed(kind: bytes, body: bytes) -> bytes:
    return kind + _LENGTH.pack(len(body) + 4) + body
