"""The decoding of claimed executions in a reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from flowfabric_worker.engine.core import execution_id
from flowfabric_worker.engine.damage import Damage
from flowfabric_worker.engine.flow_replies import decode_inputs
from flowfabric_worker.engine.handle import HANDLE_KINDS, Handle
from flowfabric_worker.engine.ids import ExecutionId, FlowId
from flowfabric_worker.engine.stores.base import Reply
from flowfabric_worker.engine.types.claiming import Claimed, EndedByClaim
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.wire import (
    DAMAGE,
    decode_attempt,
    decode_class,
    decode_fence,
    decode_policy,
    read_optional,
    unpack,
    unpack_pairs,
    unpack_texts,
)

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_NO_FURTHER = (b"",) * 7
# Where the reply to a claim names the quota that the claim has to ask, and where it says what the claim owes.
_ASKS, _OWES = 8, 9


class Decoding(Damage):
    """The decoding of claimed items, in which a damaged item does not affect the others."""

    def decode_items(self, partition: int, items: Reply, claim_id: str, instance: str, lease: int) -> list[Claimed]:
        """Decode the claimed items, and set the damaged ones aside."""
        decoded = []
        for item in items:
            try:
                decoded.append(self.decode_claimed(partition, item, claim_id, instance, lease))
            except DAMAGE as error:
                self.set_aside(execution_id(partition, item[0]), claim_id, error)
        return decoded

    def decode_claimed(self, partition: int, item: Reply, claim_id: str, instance: str, lease: int) -> Claimed:
        """Decode one item that was claimed under a lease of `lease` ms."""
        uuid, fence, attempt, expires, class_data, priority, created, payload, codec, policy, further = item
        work_class = decode_class(class_data)
        _, epoch, attempt_id = decode_fence(fence)
        now = decode_attempt(attempt)
        tags, deadline, timeout, retries, reclaims, headers, flow, *_ = (
            [*unpack(further[0]), b""] if further else _NO_FURTHER
        )
        inputs, cursor = decode_inputs(partition, further[2]) if flow and len(further) > 2 else ((), None)
        return Claimed(
            handle=Handle(
                backend=self.store.label,
                kind=HANDLE_KINDS[now.came],
                execution_id=ExecutionId(partition, uuid.decode()),
                attempt_index=now.index,
                attempt_id=attempt_id,
                lease_id=claim_id,
                lease_epoch=epoch,
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
            attempt_type=now.kind,
            created_at_ms=int(created),
            lease_expires_at_ms=int(expires),
            deadline_at_ms=int(deadline) if deadline else None,
            timeout_at_ms=int(timeout) if timeout else None,
            retry_count=int(retries) if retries else 0,
            reclaim_count=int(reclaims) if reclaims else 0,
            journal=unpack_pairs(further[1]) if further and further[1] else _NOTHING,
            flow_id=FlowId(flow.decode()) if flow else None,
            inputs=inputs,
            inputs_cursor=cursor,
        )


def decode_end(partition: int, row: Reply, namespace: str) -> EndedByClaim | None:
    """Decode an execution that a claim ended; return None if it is damaged, or in another namespace."""
    try:
        uuid, class_data, outcome, attempt, retries, tags, error, detail = row
        work_class = decode_class(class_data)
        if work_class.namespace != namespace:
            return None
        return EndedByClaim(
            execution_id=ExecutionId(partition, uuid.decode()),
            task=work_class.task,
            lane=work_class.lane,
            outcome=PublicState(outcome.decode()),
            attempt_index=int(attempt),
            retry_count=int(retries),
            tags=unpack_texts(tags) if tags else _NOTHING,
            error=b": ".join(filter(None, (error, detail))).decode("utf-8", "replace"),
        )
    except DAMAGE:
        return None


def asked_by_claim(reply: Reply) -> Sequence[bytes]:
    """Return the quota that a claim has to ask before it can take more; nothing if it has none to ask."""
    return reply[_ASKS] if len(reply) > _ASKS else ()


def owed_by_claim(reply: Reply) -> Sequence[bytes]:
    """Return what a claim owes to other partitions."""
    return reply[_OWES] if len(reply) > _OWES else ()
