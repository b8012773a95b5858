"""Words of messages that depend on a number."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, such as `1 outcome` or `2,000 outcomes`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
