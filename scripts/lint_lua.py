"""Keeps the Lua functions bounded and portable: `python scripts/lint_lua.py PATH...`, files or directories.

A stored function stops the whole server while it runs, so each of its commands must have a bound; and it must
run on Valkey, Redis and fakeredis alike, so it uses only what all three have. What breaks a rule is printed
as `file:line: what, what to do`, and the exit code is 1.

A comment `-- bounded: <reason>` on a line of the call lets an `unpack`, a range, or a command whose name is
not written out pass: the reason tells the reader why it cannot grow. Nothing excuses a forbidden command or a
time-out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

_READ_KNOWN = "it reads everything there is; read named members, or a page with a bound"
_NO_TTL = "no key may rely on a time-out of the store; put an entry into the index of due times"
_NOT_HERE = "a stored function has no business with it"

FORBIDDEN_COMMANDS: Final[dict[str, str]] = {
    **dict.fromkeys(("KEYS", "SCAN", "SSCAN", "HSCAN", "ZSCAN", "RANDOMKEY"), _READ_KNOWN),
    **dict.fromkeys(("SMEMBERS", "HGETALL", "HKEYS", "HVALS"), _READ_KNOWN),
    **dict.fromkeys(("SINTER", "SUNION", "SDIFF", "ZINTER", "ZUNION", "ZDIFF"), _READ_KNOWN),
    **dict.fromkeys(("SORT", "SORT_RO"), "it costs more than its answer; keep a sorted set"),
    **dict.fromkeys(("EXPIRE", "PEXPIRE", "EXPIREAT", "PEXPIREAT", "GETEX", "SETEX", "PSETEX"), _NO_TTL),
    **dict.fromkeys(("HEXPIRE", "HPEXPIRE", "HEXPIREAT", "HPEXPIREAT", "HSETEX", "HGETEX"), _NO_TTL),
    **dict.fromkeys(("FLUSHALL", "FLUSHDB", "SWAPDB", "MIGRATE", "CONFIG", "SCRIPT", "FUNCTION"), _NOT_HERE),
    **dict.fromkeys(("EVAL", "EVAL_RO", "EVALSHA", "EVALSHA_RO", "FCALL", "FCALL_RO"), _NOT_HERE),
}
FORBIDDEN_LIBRARIES: Final[dict[str, str]] = {
    "cjson": "it changes empty lists and large integers; pass arrays, and do JSON in Python",
    "cmsgpack": "fakeredis has none; pass arrays of strings",
    "bit": "fakeredis has none; use arithmetic",
    "struct": "fakeredis has none; pass arrays of strings",
}
# fakeredis has no acl_check_cmd; who uses it looks whether it is there.
SHARED_API: Final = frozenset({"call", "pcall", "error_reply", "status_reply", "register_function", "acl_check_cmd"})
RANKED: Final = frozenset({"LRANGE", "ZRANGE", "ZREVRANGE", "ZREMRANGEBYRANK"})
LIMITED: Final = frozenset({"ZRANGEBYSCORE", "ZREVRANGEBYSCORE", "ZRANGEBYLEX", "ZREVRANGEBYLEX"})
COUNTED: Final = frozenset({"XRANGE", "XREVRANGE", "XREAD", "XPENDING"})
UNBOUNDABLE: Final = frozenset({"ZREMRANGEBYSCORE", "ZREMRANGEBYLEX", "ZRANGESTORE"})

_TOKEN = re.compile(
    r"""
      (?P<comment> --\[(?P<ceq>=*)\[ .*? \](?P=ceq)\] | --[^\n]* )
    | (?P<string>  \[(?P<seq>=*)\[ .*? \](?P=seq)\] | "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' )
    | (?P<name>    [A-Za-z_]\w* )
    | (?P<number>  0[xX][0-9A-Fa-f]+ | \d+\.?\d*(?:[eE][-+]?\d+)? )
    | (?P<space>   \s+ )
    | (?P<symbol>  . )
    """,
    re.VERBOSE | re.DOTALL,
)
_BOUNDED = re.compile(r"--\s*bounded:\s*\S")


class Token(NamedTuple):
    """A word of Lua: a name, a string (without its quotes), a number, or a symbol of one character."""

    kind: str
    text: str
    line: int

    def is_name(self, *texts: str) -> bool:
        return self.kind == "name" and self.text in texts

    def is_symbol(self, *texts: str) -> bool:
        return self.kind == "symbol" and self.text in texts


_NOTHING = Token("nothing", "", 0)


class Breach(NamedTuple):
    """One broken rule: where, what, and what to do."""

    line: int
    message: str


class CommandCall(NamedTuple):
    """A `call('COMMAND', ...)`: its arguments, the command's name first, and the lines that it covers."""

    arguments: list[list[Token]]
    first_line: int
    last_line: int

    def literal(self, index: int) -> str:
        """Return the argument in capitals if it is written out as a string, else nothing."""
        if index < len(self.arguments) and [token.kind for token in self.arguments[index]] == ["string"]:
            return self.arguments[index][0].text.upper()
        return ""

    def find(self, *options: str, behind: int) -> int | None:
        """Return where one of these words is written out behind the first `behind` arguments."""
        places = (index for index in range(behind, len(self.arguments)) if self.literal(index) in options)
        return next(places, None)

    def bounds(self, index: int) -> bool:
        """Return whether the argument is there and not negative: a negative rank or count stands for all."""
        return index < len(self.arguments) and not self.arguments[index][0].text.startswith("-")


def tokens_of(source: str) -> tuple[list[Token], frozenset[int]]:
    """Return the words of a Lua source without its comments, and the lines that carry a `bounded:` comment."""
    tokens: list[Token] = []
    bounded: set[int] = set()
    line = 1
    for match in _TOKEN.finditer(source):
        kind, text = str(match.lastgroup), match.group()
        if kind == "comment" and _BOUNDED.match(text):
            bounded.add(line)
        elif kind == "string":
            tokens.append(Token(kind, _unquoted(text), line))
        elif kind not in ("comment", "space"):
            tokens.append(Token(kind, text, line))
        line += text.count("\n")
    return tokens, frozenset(bounded)


def lint(source: str) -> list[Breach]:
    """Return every rule that a Lua source breaks, in the order of its lines."""
    tokens, bounded = tokens_of(source)
    breaches = {
        *_libraries(tokens),
        *_uses_of_redis(tokens),
        *_forbidden_commands(tokens),
        *_unpacks(tokens, bounded),
        *(breach for call in _calls(tokens) for breach in _breaches_of(call, bounded)),
    }
    return sorted(breaches)


def _unquoted(text: str) -> str:
    if text[0] in "'\"":
        return text[1:-1]
    width = text.index("[", 1) + 1
    return text[width:-width]


def _at(tokens: Sequence[Token], index: int) -> Token:
    return tokens[index] if 0 <= index < len(tokens) else _NOTHING


def _libraries(tokens: Sequence[Token]) -> Iterator[Breach]:
    for index, token in enumerate(tokens):
        if token.is_name(*FORBIDDEN_LIBRARIES) and not _at(tokens, index - 1).is_symbol(".", ":"):
            yield Breach(token.line, f"{token.text} is used, {FORBIDDEN_LIBRARIES[token.text]}")


def _uses_of_redis(tokens: Sequence[Token]) -> Iterator[Breach]:
    """Yield only what all servers share, each under its own name: under another one its calls would be missed."""
    for index, token in enumerate(tokens):
        if token.is_name("server") and _at(tokens, index + 1).is_symbol("."):
            yield Breach(token.line, "only Valkey knows `server`, write `redis`")
        if not token.is_name("redis") or _at(tokens, index - 1).is_symbol(".", ":"):
            continue
        member = _at(tokens, index + 2).text if _at(tokens, index + 1).is_symbol(".") else ""
        if member not in SHARED_API:
            yield Breach(token.line, f"redis.{member} is used, keep to {', '.join(sorted(SHARED_API))}")
        elif _at(tokens, index - 1).is_symbol("=") and _at(tokens, index - 2).text != member:
            renamed = _at(tokens, index - 2).text
            yield Breach(token.line, f"redis.{member} is renamed {renamed}, write `local {member} = redis.{member}`")


def _forbidden_commands(tokens: Sequence[Token]) -> Iterator[Breach]:
    """Wherever they are written out, so that none is handed to a helper that calls it."""
    for token in tokens:
        if token.kind == "string" and token.text in FORBIDDEN_COMMANDS:
            yield Breach(token.line, f"{token.text} is used, {FORBIDDEN_COMMANDS[token.text]}")


def _unpacks(tokens: Sequence[Token], bounded: frozenset[int]) -> Iterator[Breach]:
    """Lua's own unpack; a function of that name in another table is another function."""
    for index, token in enumerate(tokens):
        elsewhere = _at(tokens, index - 1).is_symbol(".") and not _at(tokens, index - 2).is_name("table")
        if token.is_name("unpack") and not elsewhere and token.line not in bounded:
            yield Breach(token.line, "unpack fails on a long table, send chunks or add `-- bounded: <reason>`")


def _calls(tokens: Sequence[Token]) -> Iterator[CommandCall]:
    """Yield the calls of commands. Lua's own `pcall(function)` looks like one, but begins with no string."""
    for index, token in enumerate(tokens):
        behind = _at(tokens, index + 1)
        if not token.is_name("call", "pcall"):
            continue
        if behind.kind == "string":
            yield CommandCall([[behind]], token.line, behind.line)
        elif behind.is_symbol("("):
            arguments, end = _arguments(tokens, index + 2)
            of_lua = token.text == "pcall" and not _at(tokens, index - 2).is_name("redis")
            if not of_lua or (arguments and arguments[0][0].kind == "string"):
                yield CommandCall(arguments, token.line, _at(tokens, end).line)


def _arguments(tokens: Sequence[Token], start: int) -> tuple[list[list[Token]], int]:
    """Return the arguments from behind an opening bracket, and where its closing bracket stands."""
    arguments: list[list[Token]] = [[]]
    depth, index = 1, start
    while index < len(tokens):
        token = tokens[index]
        depth += token.is_symbol("(", "[", "{") - token.is_symbol(")", "]", "}")
        if depth == 0:
            break
        if depth == 1 and token.is_symbol(","):
            arguments.append([])
        else:
            arguments[-1].append(token)
        index += 1
    return [argument for argument in arguments if argument], index


def _breaches_of(call: CommandCall, bounded: frozenset[int]) -> Iterator[Breach]:
    name = call.literal(0)
    if name in FORBIDDEN_COMMANDS:
        yield Breach(call.arguments[0][0].line, f"{name} is used, {FORBIDDEN_COMMANDS[name]}")
    elif name == "SET" and call.find("EX", "PX", "EXAT", "PXAT", behind=3):
        yield Breach(call.first_line, f"SET with a time-out is used, {_NO_TTL}")
    elif bounded.isdisjoint(range(call.first_line, call.last_line + 1)):
        missing = _missing_bound(name, call)
        if missing:
            yield Breach(call.first_line, missing)


def _missing_bound(name: str, call: CommandCall) -> str:
    """Return what is missing for the call to have a bound that can be seen; empty if nothing is."""
    by_value = name in LIMITED or (name == "ZRANGE" and call.find("BYSCORE", "BYLEX", behind=4))
    if not name:
        return "the command's name is not written out, write it or add `-- bounded: <reason>`"
    if by_value:
        limit = call.find("LIMIT", behind=4)
        if limit is None or not call.bounds(limit + 2):
            return f"{name} has no bound, add 'LIMIT', an offset, and a count that is not negative"
    elif name in RANKED and not call.bounds(3):
        return f"{name} runs to the end, give it a last rank that is counted from the front"
    elif name in COUNTED:
        count = call.find("COUNT", behind=1)
        if count is None or not call.bounds(count + 1):
            return f"{name} has no bound, add 'COUNT' and a number"
    elif name in UNBOUNDABLE:
        return f"{name} has no bound, read a page of members and remove those"
    return ""


def _sources(paths: Sequence[str]) -> Iterator[Path]:
    for path in map(Path, paths):
        if path.is_dir():
            yield from sorted(path.rglob("*.lua"))
        else:
            yield path


def main(paths: Sequence[str]) -> int:
    """Lint files and directories, print what is wrong, and return the exit code."""
    found = [(path, breach) for path in _sources(paths) for breach in lint(path.read_text(encoding="utf-8"))]
    for path, breach in found:
        sys.stdout.write(f"{path}:{breach.line}: {breach.message}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
