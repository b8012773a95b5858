"""Sentences of messages that several parts write."""

from __future__ import annotations

import re

# What a stored function tells of a key that many executions share and that holds another type of value.
_MISTYPED = re.compile(r"MISTYPED (\S+) (\S+) (.*)", re.DOTALL)


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, such as `1 outcome` or `2,000 outcomes`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def read_mistyped(text: str) -> tuple[str, str] | None:
    """Return the key that holds another type of value, and a sentence about it; None if the text tells of none.

    Args:
        text: what a stored function tells of a key that many executions share.
    """
    told = _MISTYPED.fullmatch(text)
    if told is None:
        return None
    found, wanted, key = told.groups()
    return key, (
        f"The key {key!r} holds a {found} instead of a {wanted}, so calls that use it fail. Restore it from a backup, "
        "or delete it; what it held is then lost."
    )
