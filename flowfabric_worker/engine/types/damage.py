"""How a listing shows a record that cannot be read."""

from __future__ import annotations

import attrs

from flowfabric_worker.engine.ids import ExecutionId


@attrs.frozen
class DamagedRow:
    """A row whose stored record is damaged; the rest of its page is whole.

    Attributes:
        row_id: the id of what is damaged.
        corruption: which field is at fault, and why.
    """

    row_id: str
    corruption: str


@attrs.frozen(kw_only=True)
class ListDamagedPage:
    """A page of executions whose records are damaged, by id; `next_cursor` is None on the last one."""

    executions: tuple[DamagedRow, ...]
    next_cursor: ExecutionId | None
