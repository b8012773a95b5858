"""The function library: the Lua files joined into one, with names by which releases can be loaded side by side.

Function names are global in a server, so every name carries the major of the engine's contract and the hash of the
library. Loading only adds, and workers of two releases can use the same store during an upgrade.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable

import attrs

CONTRACT_MAJOR = 2
_NAMES = "@NAMES@"
_COMMAND = re.compile(r"\bcall(?:\(|,)\s*'([A-Z]+)'|\bchunked\(\s*'([A-Z]+)'")
_OURS = re.compile(r"ff[0-9]+_[0-9a-f]{12}")


@attrs.frozen
class Library:
    """The stored functions in the form in which a server loads them.

    Attributes:
        name: the name of the library, `ff<major>_<hash>`.
        source: the Lua code with its header.
        commands: the commands of the server that the functions use.
    """

    name: str
    source: str
    commands: tuple[str, ...] = ()

    def function(self, name: str) -> str:
        """Return the name under which the server knows a function."""
        return f"{self.name}_{name}"


def lua_files() -> list[tuple[str, str]]:
    """Return the name and text of each Lua file: the preludes and then the areas, each in the order of their names."""
    # Import it here, because importing the package does not read the files.
    from importlib import resources

    folder = resources.files("flowfabric_worker") / "lua"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".lua"))
    names.sort(key=lambda name: not name.startswith("prelude"))
    return [(name, (folder / name).read_text("utf-8")) for name in names]


def joined(files: Iterable[tuple[str, str]]) -> str:
    """Return Lua files as one text: each is a block but the first, whose names the others use.

    Without blocks they would have more local names than the 200 that Lua allows.
    """
    return "".join(text if name == "prelude.lua" else f"\ndo\n{text}end\n" for name, text in files)


def is_ours(name: str) -> bool:
    """Return True if a library belongs to any release of this package."""
    return _OURS.fullmatch(name) is not None


@functools.cache
def library() -> Library:
    """Return the library of this release, whose files are read only once."""
    body = joined(lua_files())
    name = f"ff{CONTRACT_MAJOR}_{hashlib.sha256(body.encode()).hexdigest()[:12]}"
    commands = {called or chunked for called, chunked in _COMMAND.findall(body)}
    return Library(name, f"#!lua name={name}\n{body.replace(_NAMES, name + '_')}", tuple(sorted(commands)))
