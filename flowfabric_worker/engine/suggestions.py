"""Suggestions for misspelled names in error messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

_NONE: Final[Mapping[str, str]] = MappingProxyType({})


def did_you_mean(name: str, known: Iterable[str], full_names: Mapping[str, str] = _NONE) -> str:
    """Return a sentence that suggests the known name most similar to an unknown one, after a blank.

    Args:
        name: the unknown name.
        known: the names that exist.
        full_names: for a name that is short for another, the one to suggest.

    Returns:
        The sentence, or "" if no name is similar.
    """
    # Import difflib here, because only errors need it and it takes time to load.
    import difflib

    similar = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {full_names.get(similar[0], similar[0])!r}?" if similar else ""
