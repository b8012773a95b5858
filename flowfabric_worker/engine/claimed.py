"""What a claim hands out, as it comes from the store."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flowfabric_worker.engine.core import execution_id
from flowfabric_worker.engine.damage import Damage
from flowfabric_worker.engine.handle import HANDLE_KINDS, Handle
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.stores.base import Reply
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.wire import (
    DAMAGE,
    decode_class,
    decode_policy,
    read_optional,
    unpack_pairs,
    unpack_texts,
)

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Decoding(Damage):
    """Decodes claimed items, each by itself."""

    def decode_items(self, partition: int, items: Reply, claim_id: str, instance: str, lease: int) -> list[Claimed]:
        """Decode each claimed item by itself; set aside in the store what is damaged."""
        decoded = []
        for item in items:
            try:
                decoded.append(self.decode_claimed(partition, item, claim_id, instance, lease))
            except DAMAGE as error:
                self.set_aside(execution_id(partition, item[0]), claim_id, error)
        return decoded

    def decode_claimed(self, partition: int, item: Reply, claim_id: str, instance: str, lease: int) -> Claimed:
        """Decode what a claim handed out under a lease of so many ms."""
        (
            uuid, kind, epoch, attempt_id, attempt, attempt_type, expires, class_data, priority, created, payload,
            codec, policy, tags, deadline, timeout, retries, reclaims, journal, headers,
        ) = item  # fmt: skip
        work_class = decode_class(class_data)
        return Claimed(
            handle=Handle(
                backend=self.store.label,
                kind=HANDLE_KINDS[kind],
                execution_id=ExecutionId(partition, uuid.decode()),
                attempt_index=int(attempt),
                attempt_id=attempt_id.decode(),
                lease_id=claim_id,
                lease_epoch=int(epoch),
                lease_ttl_ms=lease,
                lane=work_class.lane,
                worker_instance_id=instance,
            ),
            namespace=work_class.namespace,
            task=work_class.task,
            payload=read_optional(payload),
            codec=codec.decode() if codec else "",
            priority=int(priority),
            tags=unpack_texts(tags) if tags else _NOTHING,
            headers=unpack_texts(headers) if headers else _NOTHING,
            policy=decode_policy(policy, work_class),
            attempt_type=attempt_type.decode(),
            created_at_ms=int(created),
            lease_expires_at_ms=int(expires),
            deadline_at_ms=int(deadline) if deadline else None,
            timeout_at_ms=int(timeout) if timeout else None,
            retry_count=int(retries),
            reclaim_count=int(reclaims),
            journal=unpack_pairs(journal) if journal else _NOTHING,
        )
