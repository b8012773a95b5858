"""The records of rotating the secrets that sign waitpoint tokens."""

from __future__ import annotations

from datetime import timedelta

import attrs

from flowfabric_worker.engine.errors import EngineError, ValidationError
from flowfabric_worker.engine.ids import check_name
from flowfabric_worker.engine.types import checks


def _kid(_record: object, _field: attrs.Attribute[str], value: str) -> None:
    if ":" in check_name(value, "A secret's kid"):
        raise ValidationError("invalid_kid", "A secret's kid holds no colon: a colon ends it in a token.")


def _secret(_record: object, _field: attrs.Attribute[bytes], value: object) -> None:
    if not isinstance(value, bytes) or not value:
        raise ValidationError("invalid_secret", "A secret is bytes, and not empty; 32 random ones are advised.")


@attrs.frozen(kw_only=True)
class RotateWaitpointHmacSecretAllArgs:
    """The secret that signs tokens from now on.

    Attributes:
        new_kid: its id, without a colon.
        new_secret: its bytes; never shown.
        grace: how long tokens of the secret before it stay valid.
    """

    new_kid: str = attrs.field(validator=_kid)
    new_secret: bytes = attrs.field(repr=False, validator=_secret)
    grace: timedelta = attrs.field(default=timedelta(days=1), validator=checks.duration)


@attrs.frozen(kw_only=True)
class SecretRotated:
    """The partition signs with `new_kid` now; `collected` old secrets were past their grace and are gone."""

    new_kid: str
    previous_kid: str | None
    collected: int


@attrs.frozen
class SecretUnchanged:
    """The partition signed with that secret already."""

    kid: str


@attrs.frozen(kw_only=True)
class PartitionRotation:
    """What became of one partition: rotated, unchanged, or the error that stopped it."""

    partition: int
    result: SecretRotated | SecretUnchanged | EngineError


@attrs.frozen(kw_only=True)
class RotateWaitpointHmacSecretAllResult:
    """What became of every partition, in order. The same call again converges those that failed."""

    partitions: tuple[PartitionRotation, ...]
