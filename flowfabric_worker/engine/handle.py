"""Handles, with which a worker shows that it holds a lease.

A handle is not a secret: what protects an execution is its fence, which every call carries and the store compares.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from uuid import UUID

import attrs

from flowfabric_worker.engine.errors import EngineError, ValidationError
from flowfabric_worker.engine.ids import ExecutionId

_VERSION = 1
_FIXED = struct.Struct("<BBHIQQ")


class HandleKind(IntEnum):
    """The kind of work that was claimed."""

    FRESH = 1
    RESUMED = 2
    RECLAIMED = 3
    SUSPENDED = 4


@attrs.frozen(kw_only=True)
class Handle:
    """A lease on an execution.

    Attributes:
        backend: the kind of store that issued the handle.
        lease_ttl_ms: how long a renewal extends the lease, in ms.
    """

    backend: str
    kind: HandleKind
    execution_id: ExecutionId
    attempt_index: int
    attempt_id: str
    lease_id: str
    lease_epoch: int
    lease_ttl_ms: int
    lane: str
    worker_instance_id: str

    @property
    def fence(self) -> str:
        """The lease, the epoch and the attempt, which every call of the holder carries.

        An attempt has the id of its first lease; the fence of that lease leaves the attempt out.
        """
        attempt = "" if self.attempt_id == self.lease_id else self.attempt_id
        return f"{self.lease_id}:{self.lease_epoch}:{attempt}"

    def to_bytes(self) -> bytes:
        """Encode the handle in an opaque form that another process can read."""
        head = _FIXED.pack(
            _VERSION,
            self.kind,
            self.execution_id.partition_number,
            self.attempt_index,
            self.lease_epoch,
            self.lease_ttl_ms,
        )
        texts = (
            self.backend, self.execution_id.uuid, self.attempt_id, self.lease_id, self.lane, self.worker_instance_id
        )  # fmt: skip
        return head + b"".join(struct.pack("<H", len(data)) + data for data in (text.encode() for text in texts))

    @classmethod
    def from_bytes(cls, data: bytes) -> Handle:
        """Decode a handle from the form of `to_bytes`.

        Raises:
            ValidationError: `corruption`, the bytes are not a handle: cut short, too long, or damaged.
        """
        try:
            return cls._read(data)
        except (struct.error, UnicodeDecodeError, ValueError, EngineError) as error:
            raise ValidationError("corruption", f"The handle is damaged: {error}.") from None

    @classmethod
    def _read(cls, data: bytes) -> Handle:
        version, kind, partition, attempt_index, epoch, ttl = _FIXED.unpack_from(data)
        if version != _VERSION:
            raise ValueError(f"version {version} is unknown")
        texts = []
        at = _FIXED.size
        for _ in range(6):
            (size,) = struct.unpack_from("<H", data, at)
            at += 2
            if at + size > len(data):
                raise ValueError("it is cut short")
            texts.append(data[at : at + size].decode())
            at += size
        if at != len(data):
            raise ValueError("it is too long")
        backend, uuid, attempt_id, lease_id, lane, instance = texts
        for text in (attempt_id, lease_id):
            UUID(text)
        return cls(
            backend=backend,
            kind=HandleKind(kind),
            execution_id=ExecutionId.parse(f"{{fp:{partition}}}:{uuid}"),
            attempt_index=attempt_index,
            attempt_id=attempt_id,
            lease_id=lease_id,
            lease_epoch=epoch,
            lease_ttl_ms=ttl,
            lane=lane,
            worker_instance_id=instance,
        )


# The kinds by the words that the stored functions use.
HANDLE_KINDS = {kind.name.lower().encode(): kind for kind in HandleKind}
