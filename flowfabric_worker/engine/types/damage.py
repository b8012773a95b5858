"""How a listing shows a record that cannot be decoded."""

from __future__ import annotations

import attrs

from flowfabric_worker.engine.ids import ExecutionId


@attrs.frozen
class DamagedRow:
    """A row whose stored record is damaged; the other rows of the page are not affected.

    Attributes:
        row_id: the id of the damaged record.
        corruption: which field is damaged, and why.
    """

    row_id: str
    corruption: str


@attrs.frozen(kw_only=True)
class ListDamagedPage:
    """A page of executions whose records are damaged, by id; `next_cursor` is None on the last one."""

    executions: tuple[DamagedRow, ...]
    next_cursor: ExecutionId | None
