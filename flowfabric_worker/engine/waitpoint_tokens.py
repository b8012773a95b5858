"""Waitpoint tokens: how they are signed and checked, and how they are handed out as one opaque text.

A token is `kid:hex`: the id of the secret that signed it, and the HMAC-SHA256 of the waitpoint under that secret. These
texts are signed, each preceded by its length in bytes and a colon (`pack` in `engine/wire.py`):

    version ("1"), kid, execution id, waitpoint id, creation time of the waitpoint in ms since 1970

The creation time is part of the waitpoint id, which is a UUIDv7, so a token is checked without reading the waitpoint.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import Final, NamedTuple
from uuid import UUID

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import ExecutionId, WaitpointId
from flowfabric_worker.engine.wire import pack, unpack_text

_VERSION: Final = "1"
_BEARER_PREFIX: Final = "ffw1_"
_TOKEN = re.compile(r"([^:]+):([0-9a-f]{64})")
# The digits of a digest that may be shown to distinguish tokens.
FINGERPRINT_DIGITS: Final = 16


class BearerToken(NamedTuple):
    """The contents of an opaque token, which are all that a delivery needs."""

    execution_id: ExecutionId
    waitpoint_id: WaitpointId
    token: str


def sign(secret: bytes, kid: str, execution_id: ExecutionId, waitpoint_id: WaitpointId) -> str:
    """Return the token `kid:hex` of a waitpoint.

    Args:
        secret: the secret's bytes.
        kid: the secret's id, without a colon.
        execution_id: the execution that the waitpoint belongs to.
        waitpoint_id: a UUIDv7.
    """
    signed = pack((_VERSION, kid, str(execution_id), waitpoint_id, str(created_at_ms(waitpoint_id))))
    return f"{kid}:{hmac.new(secret, signed, hashlib.sha256).hexdigest()}"


def kid_of(token: object) -> str:
    """Return the id of the secret that signed a token.

    Raises:
        ValidationError: `invalid_token`, the text is not a token.
    """
    match = _TOKEN.fullmatch(token) if isinstance(token, str) and token.isascii() else None
    if match is None:
        raise invalid_token()
    return match[1]


def check(token: str, secret: bytes, execution_id: ExecutionId, waitpoint_id: WaitpointId) -> None:
    """Check a token against the secret of its kid, in constant time.

    Raises:
        ValidationError: `invalid_token`, the token was not signed for this waitpoint with this secret.
    """
    kid = kid_of(token)
    try:
        expected = sign(secret, kid, execution_id, waitpoint_id)
    except ValueError:
        # Answer a waitpoint id that is not a UUIDv7 like any other unknown id.
        expected = ""
    if not hmac.compare_digest(token.encode(), expected.encode()):
        raise invalid_token()


def invalid_token() -> ValidationError:
    """Return the error for every invalid token; it reveals nothing about the waitpoint."""
    return ValidationError("invalid_token", "The token is not valid for that waitpoint.")


def fingerprint(token: str) -> str:
    """Return the first hexadecimal digits of a token's digest, by which operators distinguish tokens."""
    return token.rpartition(":")[2][:FINGERPRINT_DIGITS]


def created_at_ms(waitpoint_id: str) -> int:
    """Return the creation time in a waitpoint id, in ms since 1970.

    Raises:
        ValueError: the id is not the canonical text of a UUIDv7.
    """
    value = UUID(waitpoint_id)
    if value.version != 7 or str(value) != waitpoint_id:
        raise ValueError("a waitpoint id is a UUIDv7")
    return value.int >> 80


def to_bearer(execution_id: ExecutionId, waitpoint_id: WaitpointId, token: str) -> str:
    """Return the opaque text whose bearer can signal a waitpoint; it is safe in a URL."""
    packed = pack((str(execution_id), waitpoint_id, token))
    return _BEARER_PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")


def from_bearer(text: object) -> BearerToken:
    """Decode the text of `to_bearer`.

    Raises:
        ValidationError: `invalid_token`, the text is cut short or not such a text.
    """
    if not isinstance(text, str) or not text.startswith(_BEARER_PREFIX):
        raise invalid_token()
    encoded = text.removeprefix(_BEARER_PREFIX)
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        execution_id, waitpoint_id, token = unpack_text(data)
        created_at_ms(waitpoint_id)
        parts = BearerToken(ExecutionId.parse(execution_id), WaitpointId(waitpoint_id), token)
    except (binascii.Error, ValueError, ValidationError):
        raise invalid_token() from None
    kid_of(token)
    return parts
