"""Check the language of code and documentation: no banned words, and docstrings that begin with a verb.

Usage: lint_english.py [--count] PATH...

Each breach is printed as `file:line: what to write instead`; the exit code is 1 if there is any. `--count` prints how
often each rule is broken, and never fails. A line that quotes a banned word on purpose says `lint-english: quoted`.
CONTRIBUTING.md explains the rules, with examples.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# What to write instead of each word. A word is matched whole, in any case.
BANNED = {
    "whoever": "name the subject: the worker, the caller, the holder",
    "whomever": "name the subject",
    "whosoever": "name the subject",
    "nobody": "name the subject: no worker, no caller",
    "somebody": "name the subject: a worker, another process",
    "anybody": "name the subject",
    "everybody": "name the subjects: every waiter",
    "someone": "name the subject",
    "anyone": "name the subject",
    "anew": "again",
    "shall": "must, or the plain present",
    "whereof": "of which",
    "thereof": "of it",
    "hereby": "by this",
    "herewith": "with this",
    "hence": "so",
    "thus": "so",
    "amongst": "among",
    "whilst": "while",
    "he": "name the subject: the worker, the caller",
    "him": "name the subject",
    "his": "name the subject",
    "himself": "itself",
    "she": "name the subject",
    "guilty": "faulty",
    "suffer": "fail, be delayed",
    "suffers": "fails, is delayed",
    "bury": "reap",
    "buries": "reaps",
    "buried": "reaped",
    "farewell": "stop, deregister",
    "farewells": "deregistrations",
    "goodbye": "deregister",
    "of its own accord": "by itself",
}
# Coined words for what the field has a word for.
COINED = {
    "room": "area, capacity",
    "rooms": "areas",
    "floor": "layer, minimum",
    "floors": "layers, minimums",
    "house": "layout, codebase",
    "contestant": "peer",
    "contestants": "peers",
}
RULES = {**BANNED, **COINED}
SUFFIXES = ("py", "lua", "sql", "md")
QUOTED = "lint-english: quoted"
# Behind a dot stands a name of another library, such as `math.floor`.
WORDS = re.compile(
    r"(?<![\w'.-])(" + "|".join(sorted(map(re.escape, RULES), key=len, reverse=True)) + r")(?![\w'-])", re.IGNORECASE
)

# The first words that a docstring of a function may have. Add a verb when a new one is needed; never a noun.
VERB_LINES = """
abort accept acquire add adjust advance allow analyze announce answer append apply approve archive
arm ask assemble assert assign attach attempt await back begin bind block bound bring build cache
calculate call cancel capture change charge check choose claim clamp clean clear close collect
combine compare complete compose compute configure connect consume convert copy count crawl create
cut decide declare decode decorate deduplicate defer delay delete deliver deregister derive describe
detach detect determine disable disarm discard dispatch distribute divide do download drain draw
drive drop dump echo emit empty enable encode end enforce enqueue ensure enter erase escape
establish estimate evaluate exclude execute exit expand expect expire explain export expose extend
extract fail feed fetch fill filter find finish fit fix flatten flush follow force forget fork
format forward free fulfil gather gauge generate get give go greet group grow guard hand handle hash
hide hit hold identify ignore import include increase increment index inform inherit initialize
insert inspect install interpret interrupt invoke issue iterate join judge keep kill label launch
lay leave lend let limit link lint list listen load lock log look loop lose make map mark match
measure merge mint mirror model modify monitor move multiply name note notify obtain offer omit open
order override own pack parametrize parse pass patch pause pay peek perform persist pick place plan
play poll pop post postpone prefer prefix prepare present preserve prevent print process produce
promise promote propagate protect prove provide prune publish pull purge push put queue quote raise
range rank rate read reap rebalance rebuild recall receive reclaim recognize recompute reconnect
record recover redeem reduce refresh refund refuse register reject release reload remain remember
remove rename render renew repeat replace replay reply report represent request require reschedule
reserve reset resize resolve respond restart restore restrict resume retain retrieve retry return
reuse reverse revoke rewrite ring rotate round route run sample save scan schedule seal search seed
select send separate serialize serve set settle share shift ship shorten show shut sign signal
simulate skip sleep snapshot sort spawn specify split spread stage stamp start state stop store
stream strip submit subscribe subtract sum summarize supply suspend sweep switch synchronize tail
take tell terminate test tick tidy time total trace track transcode transform translate traverse
treat trim try turn unbind unblock undo unlock unpack unregister unsubscribe unwrap update upgrade
use validate verify visit wait wake walk warn watch weigh wrap write yield
"""
VERBS = frozenset(VERB_LINES.split())


class Breach(NamedTuple):
    """One place that breaks a rule."""

    path: str
    line: int
    rule: str
    message: str


def banned_words(path: str, text: str) -> Iterator[Breach]:
    """Find every banned word of a text."""
    for number, line in enumerate(text.splitlines(), 1):
        if QUOTED in line:
            continue
        for match in WORDS.finditer(line):
            word = match.group(1).lower()
            yield Breach(path, number, word, f"{match.group(1)!r}: write instead: {RULES[word]}")


def docstrings(path: str, source: str) -> Iterator[Breach]:
    """Find every docstring of a public function that does not begin with a verb in the imperative."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_property(node):
            continue
        text = ast.get_docstring(node)
        if node.name.startswith("_") or not text:
            continue
        first = re.match(r"\W*(\w+)", text)
        if first is None or first.group(1).lower() not in VERBS:
            word = first.group(1) if first else ""
            yield Breach(
                path,
                node.body[0].lineno,
                "docstring",
                f"{node.name}: begin with a verb in the imperative, not {word!r}",
            )


def names(path: str, source: str) -> Iterator[Breach]:
    """Find every banned word in the name of a function or a class."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for word in re.findall(r"[A-Z]?[a-z]+", node.name):
                if word.lower() in RULES:
                    yield Breach(path, node.lineno, word.lower(), f"{node.name}: write instead: {RULES[word.lower()]}")


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    names = {ast.unparse(each) for each in node.decorator_list}
    return any(
        name in {"property", "cached_property", "functools.cached_property"} or name.endswith(".setter")
        for name in names
    )


def check(path: Path) -> Iterator[Breach]:
    """Check one file."""
    text = path.read_text()
    yield from banned_words(str(path), text)
    if path.suffix == ".py":
        yield from docstrings(str(path), text)
        yield from names(str(path), text)


def files(paths: list[str]) -> Iterator[Path]:
    """List the files below some paths whose language is checked."""
    for name in paths:
        path = Path(name)
        found = [path] if path.is_file() else [each for suffix in SUFFIXES for each in path.rglob(f"*.{suffix}")]
        # This file holds the list of the words.
        yield from sorted(each for each in found if each.resolve() != Path(__file__).resolve())


def main(arguments: list[str]) -> int:
    """Print every breach, or with `--count` how often each rule is broken."""
    counting = "--count" in arguments
    breaches = [breach for path in files([a for a in arguments if a != "--count"]) for breach in check(path)]
    if counting:
        for rule, count in Counter(breach.rule for breach in breaches).most_common():
            print(f"{count:6} {rule}")
        print(f"{len(breaches):6} in all")
        return 0
    for breach in breaches:
        print(f"{breach.path}:{breach.line}: {breach.message}")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
