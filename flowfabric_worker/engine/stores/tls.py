"""Connections over TLS, on which the server, and a client with a certificate, prove their identities.

The server's certificate is always verified, because a connection to an unknown server protects nothing. A self-signed
certificate is its own authority, so `ca` may name the file of that certificate.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

import redis
from redis.connection import Connection

# OpenSSL's numbers for a valid certificate of another host.
_WRONG_NAME = (62, 64)
# Errors that mean the end of a connection, not a failed handshake.
_CUT = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class HandshakeTimeoutError(redis.TimeoutError):
    """A server accepted the connection, but did not finish the handshake."""


class TlsConnection(Connection):
    """A connection of the driver over TLS.

    Args:
        tls: which authorities to trust and which certificate to show, read once for all connections.
        settings: the settings of the driver's connection.
    """

    def __init__(self, *, tls: ssl.SSLContext, **settings: Any) -> None:
        self._tls = tls
        super().__init__(**settings)  # type: ignore[no-untyped-call]  # the driver leaves it untyped

    def can_read(self, timeout: float = 0) -> bool:
        try:
            return super().can_read(timeout)
        except redis.ConnectionError:
            # Read, because a server that hung up may have sent the reason.
            self.read_response()
            raise

    def _connect(self) -> socket.socket:
        plain: socket.socket = super()._connect()  # type: ignore[no-untyped-call]  # as above
        try:
            return self._tls.wrap_socket(plain, server_hostname=self.host)
        except TimeoutError as error:
            plain.close()
            raise HandshakeTimeoutError("no handshake") from error
        except OSError:
            plain.close()
            raise


def tls_context(*, ca: str = "", cert: str = "", key: str = "") -> ssl.SSLContext:
    """Create the TLS context: the authorities to trust, and the certificate to present.

    Args:
        ca: the file with the certificates of the authorities to trust, instead of the system's.
        cert: the file with the client's certificate and its chain.
        key: the file with the key of `cert`, if it is not in the same file.

    Raises:
        ValueError: a file cannot be used; the message says which.
    """
    if key and not cert:
        raise ValueError("the option key needs cert, the certificate that the key belongs to")
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except OSError:
        raise ValueError("the file of the option ca cannot be read, or holds no certificate (PEM)") from None
    if cert:
        try:
            # Pass a password, even if it is empty, so that OpenSSL does not ask for one at the terminal.
            context.load_cert_chain(cert, key or None, password="")
        except OSError:
            raise ValueError(
                "the files of the options cert and key cannot be read, do not belong together, or need a password (PEM)"
            ) from None
    return context


def failed_handshake(error: BaseException) -> ssl.SSLError | None:
    """Return the failed handshake that caused an error of the driver, or None.

    A client learns only at its first answer that the server wants another certificate.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return None if isinstance(seen, _CUT) else seen
        seen = seen.__cause__ or seen.__context__
    return None


def advice(refusal: ssl.SSLError) -> str:
    """Describe what failed in a handshake and what to do, as the end of a sentence."""
    reason = refusal.reason or "no reason given"
    if isinstance(refusal, ssl.SSLCertVerificationError):
        said = refusal.verify_message.rstrip(".")
        if refusal.verify_code in _WRONG_NAME:
            return f"its certificate is not for that host ({said}); use a host name that the certificate holds"
        return f"its certificate is not trusted ({said}); name the file of its authority with the option ca"
    if reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS there; use its TLS port, or leave TLS out"
    if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason:
        return f"it wants a certificate that it trusts ({reason}); name its files with the options cert and key"
    return f"it and this client do not agree ({reason}); compare the TLS versions and ciphers that they allow"
