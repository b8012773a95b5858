"""Measure the code of a tree, and draw a sample of it: `python scripts/code_sizes.py [--sample SEED] DIRECTORY...`.

Prints the median, the 90th and 99th percentile and the maximum of the lines of files and of functions. With `--sample`
it also prints ten functions and ten comments, drawn by that seed, so that a reader judges the code by chance and not by
choice.
"""

from __future__ import annotations

import ast
import io
import math
import random
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

SAMPLE = 10


class Piece(NamedTuple):
    """A function or a comment, and where it is."""

    place: str
    text: str

    @property
    def lines(self) -> int:
        return self.text.count("\n") + 1


def functions(path: Path) -> Iterator[Piece]:
    """Yield every function of a module, with its decorators left out."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno])
            yield Piece(f"{path}:{node.lineno}", text)


def comments(path: Path) -> Iterator[Piece]:
    """Yield every comment of a module; lines of comments that follow each other are one comment."""
    block: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != block[-1].start[0] + 1:
                yield _comment(path, block)
                block = []
            block.append(token)
    if block:
        yield _comment(path, block)


def _comment(path: Path, block: Sequence[tokenize.TokenInfo]) -> Piece:
    return Piece(f"{path}:{block[0].start[0]}", "\n".join(token.string for token in block))


def percentile(values: Sequence[int], share: float) -> int:
    """Return the smallest value that at least this share of the values does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def summary(what: str, sizes: Sequence[int]) -> str:
    """Return the sizes in one line."""
    figures = ", ".join(f"{name} {percentile(sizes, share)}" for name, share in (("p90", 0.9), ("p99", 0.99)))
    return f"{what}: {len(sizes)}, median {percentile(sizes, 0.5)}, {figures}, max {max(sizes)} lines"


def main(arguments: Sequence[str]) -> int:
    """Print the sizes of the code in some directories, and a sample if a seed is given."""
    seed, directories = (arguments[1], arguments[2:]) if "--sample" in arguments[:1] else (None, arguments)
    paths = sorted(path for directory in directories for path in Path(directory).rglob("*.py"))
    if not paths:
        print(__doc__)
        return 2
    found = [piece for path in paths for piece in functions(path)]
    print(summary("files", [len(path.read_text().splitlines()) for path in paths]))
    print(summary("functions", [piece.lines for piece in found]))
    if seed is not None:
        chance = random.Random(seed)
        for pieces in (found, [piece for path in paths for piece in comments(path)]):
            for piece in chance.sample(pieces, min(SAMPLE, len(pieces))):
                print(f"\n{piece.place}\n{piece.text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
