"""A proxy that speaks TLS to its clients and passes on to a server that does not, and certificates for both sides."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import trustme

_CHUNK = 65536


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
        """What a server at `host` is set up with; `wants_client` makes it demand a certificate of its clients."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert(host).configure_cert(context)
        if wants_client:
            self.authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class TlsProxy:
    """Listens on a port of the loopback.

    Attributes:
        port: where it listens.
    """

    def __init__(self, target: Path, context: ssl.SSLContext) -> None:
        self._target = target
        self._context = context
        self._lock = threading.Lock()
        self._clients: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="tls-proxy", daemon=True)
        self._thread.start()

    def cut(self) -> int:
        """Ends every connection; how many there were."""
        with self._lock:
            clients, self._clients = self._clients, []
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        return len(clients)

    def close(self) -> None:
        """Ends listening and every connection."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(5)
        self.cut()

    def _accept(self) -> None:
        # Closing the listening socket ends this.
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
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
                    chunk = source.recv(_CHUNK)
                    if not chunk:
                        return
                    (server if source is secured else secured).sendall(chunk)


@contextmanager
def tls_proxy_to(target: Path, context: ssl.SSLContext) -> Iterator[TlsProxy]:
    """A proxy for the length of a block."""
    proxy = TlsProxy(target, context)
    try:
        yield proxy
    finally:
        proxy.close()
