"""The plain form of execution ids, in texts for people."""

from __future__ import annotations

import re

_IN_BRACES = re.compile(r"\{fp:([0-9]{1,5})\}:([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


def with_plain_ids(text: str) -> str:
    """Return a text for people, with the plain form of each execution id in it."""
    return _IN_BRACES.sub(r"\1-\2", text)
