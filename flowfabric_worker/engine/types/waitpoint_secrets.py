"""The arguments and results of rotating the secrets that sign waitpoint tokens."""

from __future__ import annotations

from datetime import timedelta

import attrs

from flowfabric_worker.engine.errors import EngineError, ValidationError
from flowfabric_worker.engine.ids import check_name
from flowfabric_worker.engine.limits import MAX_GRACE_MS, MAX_SECRET_BYTES
from flowfabric_worker.engine.types import checks


def _kid(_record: object, _field: attrs.Attribute[str], value: str) -> None:
    if ":" in check_name(value, "A secret's kid"):
        raise ValidationError("invalid_kid", "The kid of a secret must not have a colon, which ends it in a token.")


def _secret(_record: object, _field: attrs.Attribute[bytes], value: object) -> None:
    if not isinstance(value, bytes) or not 1 <= len(value) <= MAX_SECRET_BYTES:
        raise ValidationError(
            "invalid_secret", f"A secret is 1 to {MAX_SECRET_BYTES} bytes; 32 random ones are advised."
        )


def _grace(record: object, field: attrs.Attribute[timedelta], value: timedelta) -> None:
    checks.duration()(record, field, value)
    if value > timedelta(milliseconds=MAX_GRACE_MS):
        raise ValidationError("invalid_input", "The grace of a secret is at most 365 days.")


@attrs.frozen(kw_only=True)
class RotateWaitpointHmacSecretAllArgs:
    """The secret that signs tokens from now on.

    Attributes:
        new_kid: its id, without a colon.
        new_secret: its bytes; never shown.
        grace: how long tokens of the secret before it stay valid, at most 365 days.
    """

    new_kid: str = attrs.field(validator=_kid)
    new_secret: bytes = attrs.field(repr=False, validator=_secret)
    grace: timedelta = attrs.field(default=timedelta(days=1), validator=_grace)


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
