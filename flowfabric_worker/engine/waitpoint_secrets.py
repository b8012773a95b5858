"""The secrets that sign waitpoint tokens: their cache in an engine, and the first secret of a store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Sequence
from typing import Final

import attrs

from flowfabric_worker.engine.errors import ContentionError, ValidationError
from flowfabric_worker.engine.limits import MAX_SECRET_BYTES
from flowfabric_worker.engine.wire import DAMAGE

FIRST_KID: Final = "k1"
FIRST_SECRET_VARIABLE: Final = "FLOWFABRIC_WAITPOINT_SECRET"


@attrs.frozen
class Secret:
    """A secret with its kid; its bytes are never shown."""

    kid: str
    value: bytes = attrs.field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Return a digest that distinguishes two secrets of one kid without revealing them."""
        return hashlib.sha256(b"flowfabric waitpoint secret\0" + self.value).hexdigest()[:32]

    @property
    def stored(self) -> tuple[str, str, str]:
        """Encode the kid, the bytes as hexadecimal digits, and the fingerprint for a stored function."""
        return self.kid, self.value.hex(), self.fingerprint


@attrs.frozen
class SecretRing:
    """The valid secrets of one partition by kid, and which of them signs."""

    signing: Secret
    by_kid: dict[str, Secret] = attrs.field(repr=False)

    @classmethod
    def read(cls, reply: Sequence[bytes]) -> SecretRing:
        """Decode the reply of the stored function `read_secrets`."""
        known: dict[str, Secret] = {}
        for kid, value in zip(reply[1::3], reply[2::3], strict=True):
            # No token names a damaged secret.
            with contextlib.suppress(*DAMAGE):
                known[kid.decode()] = Secret(kid.decode(), bytes.fromhex(value.decode()))
        signing = known.get(reply[0].decode("utf-8", "replace"))
        if signing is None:
            raise ContentionError(message="The secrets of waitpoints are being rotated; send the call again.")
        return cls(signing, known)

    @classmethod
    def of(cls, signing: Secret) -> SecretRing:
        """Return a ring with only the signing secret."""
        return cls(signing, {signing.kid: signing})


def first_secret() -> Secret:
    """Return the first secret of a new store: the one in the environment, or a random one.

    Raises:
        ValidationError: `invalid_secret`, the one in the environment is not valid; the message does not show it.
    """
    return secret_of_environment() or Secret(FIRST_KID, secrets.token_bytes(32))


def secret_of_environment() -> Secret | None:
    """Return the secret in the environment, where it is in hexadecimal digits, or None."""
    text = os.environ.get(FIRST_SECRET_VARIABLE)
    return Secret(FIRST_KID, secret_of_digits(text, f"${FIRST_SECRET_VARIABLE}")) if text else None


def secret_of_digits(text: str, where: str) -> bytes:
    """Return the bytes of a secret that is written in hexadecimal digits.

    Args:
        text: the digits.
        where: where they were found, for the error.

    Raises:
        ValidationError: `invalid_secret`; the message does not show the digits.
    """
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if not 1 <= len(value) <= MAX_SECRET_BYTES:
        raise ValidationError("invalid_secret", f"{where} must be 2 to {2 * MAX_SECRET_BYTES} hexadecimal digits.")
    return value
