"""Partitions, the unit of atomicity and of order; a store has one, except on a cluster.

Every execution id contains the number of its partition, so that no id is hashed to find a record.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable
from uuid import UUID

from flowfabric_worker.engine.errors import ValidationError

DEFAULT_CLUSTER_PARTITIONS = 16
MAX_PARTITIONS = 1024

_KEY = re.compile(r"\{fp:(0|[1-9][0-9]{0,4})\}")


def crc16(data: bytes) -> int:
    """Return the CRC16/XMODEM of `data`: polynomial 0x1021, initial value 0, not reflected."""
    return binascii.crc_hqx(data, 0)


def partition_of_uuid(uuid: UUID, partitions: int) -> int:
    """Return the partition of an execution that has neither an idempotency key nor a flow."""
    return crc16(uuid.bytes) % partitions


def partition_of_names(names: Iterable[str], partitions: int) -> int:
    """Return the partition that is chosen by some names.

    An execution with an idempotency key is placed by namespace, task and key, in any lane; a schedule is placed by
    namespace and name.
    """
    return crc16("\0".join(names).encode()) % partitions


def partition_of_quota(namespace: str, quota: str, partitions: int) -> int:
    """Return the partition of a quota policy."""
    return partition_of_names((namespace, "quota", quota), partitions)


def partition_key(partition: int) -> str:
    """Return the text of a partition, `{fp:N}`, which is the hash tag of all its keys on a cluster."""
    return f"{{fp:{partition}}}"


def parse_partition_key(text: str) -> int:
    """Return the number of a partition from its text.

    Raises:
        ValidationError: `invalid_partition_key`, the text is not `{fp:N}` with a canonical number.
    """
    match = _KEY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValidationError("invalid_partition_key", f"{text!a:.200} is not a partition key such as '{{fp:0}}'.")
    return int(match[1])
