"""How a listing shows a record that cannot be read."""

from __future__ import annotations

import attrs


@attrs.frozen
class DamagedRow:
    """A row whose stored record is damaged; the rest of its page is whole.

    Attributes:
        row_id: the id of what is damaged.
        corruption: which field is at fault, and why.
    """

    row_id: str
    corruption: str
