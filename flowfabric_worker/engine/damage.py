"""Executions with damaged records, and how they are set aside."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from flowfabric_worker.engine.attempts import cut
from flowfabric_worker.engine.core import EngineCore, execution_id
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_DAMAGED, MAX_MESSAGE_BYTES
from flowfabric_worker.engine.pages import page_size, read_rows
from flowfabric_worker.engine.stores.base import Reply
from flowfabric_worker.engine.types.damage import DamagedRow, ListDamagedPage
from flowfabric_worker.engine.wire import unpack

log = logging.getLogger(__name__)


class Damage(EngineCore):
    """The operations of the area damage."""

    def list_damaged(
        self, partition: str | None = None, cursor: ExecutionId | None = None, limit: int = 100
    ) -> ListDamagedPage:
        count = page_size(limit)
        rows: list[DamagedRow] = []
        last = cursor
        for number in self.partitions_behind(partition, cursor) if count else ():
            after = cursor.uuid.encode() if cursor and cursor.partition_number == number else b""
            for uuid, entry in self._damaged(number, after):
                each = execution_id(number, uuid)
                field, namespace = unpack(entry) if entry else (b"record", b"")
                # List an execution in every namespace if its class is damaged, because its namespace is unknown then.
                if namespace in (b"", self._packed_namespace):
                    if len(rows) == count:
                        return ListDamagedPage(executions=tuple(rows), next_cursor=last)
                    rows.append(DamagedRow(str(each), f"{each}: {field.decode('utf-8', 'replace')} is damaged."))
                    last = each
        return ListDamagedPage(executions=tuple(rows), next_cursor=None)

    def _damaged(self, partition: int, after: bytes) -> Iterator[Reply]:
        return read_rows(lambda place, most: self.call("list_damaged", partition, [place, most]), after, MAX_DAMAGED)

    def set_aside(self, damaged: ExecutionId, claim_id: str, error: Exception) -> str:
        """Set aside a claimed execution that cannot be decoded; return what is wrong with it."""
        problem = f"the claimed record ({error})"
        log.error("%s is damaged and was set aside: %s. See list_damaged; purge removes it.", damaged, error)
        try:
            self.call("set_aside", damaged.partition_number, [damaged.uuid, claim_id, cut(problem, MAX_MESSAGE_BYTES)])
        except EngineError as failure:
            # Continue: the lease will expire, and the next claim will find the execution again.
            log.warning("%s could not be set aside: %s", damaged, failure)
        return problem
