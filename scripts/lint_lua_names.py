"""Find misspelled names in the Lua functions: `python scripts/lint_lua_names.py DIRECTORY`.

Lua takes an unknown name for a global or an empty field, and fails only when the line runs. PyPI has no linter for Lua,
so Lua itself compiles each file behind the prelude, as the library is loaded, and the bytecode shows every access to a
global. Fields of the shared table `ff` are compared with those that any file defines.
"""

from __future__ import annotations

import importlib
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from lint_lua import Token, tokens_of

# The stubs of lupa do not know the interpreters of one version, nor their options.
lua51: Any = importlib.import_module("lupa.lua51")

GLOBALS: Final = frozenset(
    {"error", "ipairs", "math", "next", "pairs", "pcall", "rawget", "redis", "select", "string", "table"}
    | {"setmetatable", "tonumber", "tostring", "type", "unpack"}
)
GETGLOBAL, SETGLOBAL = 5, 7
_HEADER_BYTES = 12
_CONSTANT_SIZES = {0: 0, 1: 1, 3: 8}
_STRING = 4


class Use(NamedTuple):
    """A name and the line where it is used."""

    line: int
    name: str


class _Bytecode:
    """Reads a chunk that Lua 5.1 dumped on a 64-bit little-endian machine, function by function."""

    def __init__(self, dumped: bytes) -> None:
        self._rest = memoryview(dumped)[_HEADER_BYTES:]

    def global_uses(self) -> Iterator[Use]:
        """Yield the globals that the next function and those inside of it read or write."""
        self._string()
        self._take(4 + 4 + 4)
        code = self._integers()
        constants = [self._constant() for _ in range(self._integer())]
        for _ in range(self._integer()):
            yield from self.global_uses()
        lines = self._integers()
        for _ in range(self._integer()):
            self._string()
            self._take(4 + 4)
        for _ in range(self._integer()):
            self._string()
        for instruction, line in zip(code, lines, strict=True):
            if instruction & 0x3F in (GETGLOBAL, SETGLOBAL):
                yield Use(line, constants[instruction >> 14])

    def _take(self, size: int) -> bytes:
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)

    def _integer(self) -> int:
        return int.from_bytes(self._take(4), "little")

    def _integers(self) -> Sequence[int]:
        count = self._integer()
        return struct.unpack(f"<{count}I", self._take(4 * count))

    def _string(self) -> str:
        return self._take(int.from_bytes(self._take(8), "little"))[:-1].decode("latin-1")

    def _constant(self) -> str:
        kind = self._take(1)[0]
        if kind == _STRING:
            return self._string()
        self._take(_CONSTANT_SIZES[kind])
        return ""


def unknown_globals(prelude: str, area: str) -> list[Use]:
    """Return the globals of an area that no server has, by their lines in the area's file.

    Raises:
        lua51.LuaError: the source does not compile; the message counts its lines from the prelude's first.
    """
    runtime = lua51.LuaRuntime(encoding=None)
    dump = runtime.eval(b"function(source) return string.dump(assert(loadstring(source, '=area'))) end")
    first = prelude.count("\n") + 1
    uses = _Bytecode(dump(f"{prelude}\n{area}".encode())).global_uses()
    return sorted(Use(use.line - first, use.name) for use in uses if use.name not in GLOBALS and use.line > first)


def unknown_fields(sources: Sequence[str]) -> list[list[Use]]:
    """Return for each source the fields of `ff` that it uses and no source defines."""
    fields = [list(_fields(tokens_of(source)[0])) for source in sources]
    defined = {use.name for uses in fields for use, defines in uses if defines}
    return [[use for use, _ in uses if use.name not in defined] for uses in fields]


def _fields(tokens: Sequence[Token]) -> Iterator[tuple[Use, bool]]:
    """Yield every `ff.name`, and whether it is defined there."""
    # The first token has nothing before it; anything that is not the word `function` will do.
    padded = [*tokens[:1], *tokens]
    windows = zip(*(padded[shift:] for shift in range(6)), strict=False)
    for before, table, dot, field, behind, equals in windows:
        if table.is_name("ff") and dot.is_symbol("."):
            assigned = behind.is_symbol("=") and not equals.is_symbol("=")
            yield Use(field.line, field.text), assigned or before.is_name("function")


def problems(directory: Path) -> Iterator[str]:
    """Yield what is wrong with the names of the Lua files in a directory, as `file:line: what, what to do`."""
    paths = sorted(directory.glob("*.lua"))
    sources = [path.read_text(encoding="utf-8") for path in paths]
    prelude = (directory / "prelude.lua").read_text(encoding="utf-8")
    for path, source, fields in zip(paths, sources, unknown_fields(sources), strict=True):
        for use in fields:
            yield f"{path}:{use.line}: nothing defines ff.{use.name}, correct the name"
        try:
            for use in unknown_globals("" if path.stem == "prelude" else prelude, source):
                yield f"{path}:{use.line}: {use.name} is no global, correct the name or make it local"
        except lua51.LuaError as error:
            yield f"{path}: it does not compile: {error}"


def main(directory: str) -> int:
    """Check a directory, prints what is wrong, and return the exit code."""
    found = list(problems(Path(directory)))
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
