"""A proxy that speaks TLS to its clients and passes on to a server that does not, and certificates for both sides."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from pathlib import Path

import attrs
import trustme

from tests.support.proxy import CHUNK, Listener


@attrs.frozen
class Certificates:
    """Files of one authority, and what it signed.

    Attributes:
        authority: signs more of them.
        ca: the authority's own certificate.
        cert: a client's certificate.
        key: its key.
    """

    authority: trustme.CA
    ca: Path
    cert: Path
    key: Path

    @classmethod
    def made_in(cls, folder: Path) -> Certificates:
        folder.mkdir()
        authority = trustme.CA()
        client = authority.issue_cert("worker@shop.example")
        files = cls(authority, folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
        authority.cert_pem.write_to_path(str(files.ca))
        client.cert_chain_pems[0].write_to_path(str(files.cert))
        client.private_key_pem.write_to_path(str(files.key))
        return files

    def server_context(self, host: str = "127.0.0.1", *, wants_client: bool = False) -> ssl.SSLContext:
        """Return the TLS settings of a server at `host`; `wants_client` demands a certificate of its clients."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert(host).configure_cert(context)
        if wants_client:
            self.authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class TlsProxy(Listener):
    """Speaks TLS, with what is set up in a context, and passes on to the unix socket of a server that does not."""

    def __init__(self, target: Path, context: ssl.SSLContext) -> None:
        self._target = target
        self._context = context
        self._lock = threading.Lock()
        self._clients: list[socket.socket] = []
        super().__init__()

    def cut(self) -> int:
        with self._lock:
            clients, self._clients = self._clients, []
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        return len(clients)

    def _serve(self, client: socket.socket) -> None:
        threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        # Whichever side ends, or does not like the other one, the connection ends.
        with (
            contextlib.suppress(OSError),
            client,
            self._context.wrap_socket(client, server_side=True) as secured,
            socket.socket(socket.AF_UNIX) as server,
        ):
            server.connect(str(self._target))
            with self._lock:
                self._clients.append(secured)
            while True:
                # One thread for both directions: a TLS socket is for one thread at a time.
                ready = [secured] if secured.pending() else select.select([secured, server], [], [])[0]
                for source in ready:
                    chunk = source.recv(CHUNK)
                    if not chunk:
                        return
                    (server if source is secured else secured).sendall(chunk)
