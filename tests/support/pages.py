"""The pages of the documentation, with their snippets and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")
_CELL_ENDS = re.compile(r"(?<!\\)\|")


@attrs.frozen(kw_only=True)
class Snippet:
    """A fenced block of a page.

    Attributes:
        number: its place among the blocks of its language, from 1.
    """

    page: Path
    language: str
    number: int
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.stem}-{self.number}"


def snippets(language: str, pages: Sequence[Path] = PAGES) -> Iterator[Snippet]:
    """Yield the fenced blocks of a language, page after page."""
    for page in pages:
        blocks = [text for found, text in _FENCE.findall(page.read_text("utf-8")) if found == language]
        for number, text in enumerate(blocks, 1):
            yield Snippet(page=page, language=language, number=number, text=text)


def snippet(page: str, language: str, containing: str) -> str:
    """Return the one block of a page that contains a text."""
    (found,) = [each.text for each in snippets(language, [DOCS / page]) if containing in each.text]
    return found


def section(page: str, heading: str) -> str:
    """Return what stands below a heading, up to the next one of its level."""
    text = (DOCS / page).read_text("utf-8")
    found = [(len(match[1]), match[2], match.start(), match.end()) for match in _HEADING.finditer(text)]
    for place, (level, title, _, begin) in enumerate(found):
        if title == heading:
            ends = [start for other, _, start, _ in found[place + 1 :] if other <= level]
            return text[begin : ends[0] if ends else len(text)]
    raise AssertionError(f"{page} has no heading {heading!r}")


def rows(text: str) -> list[list[str]]:
    """Return the rows of all tables in a text, without their headers: the cells of each."""
    found: list[list[str]] = []
    lines = text.splitlines()
    for place, line in enumerate(lines):
        if line.startswith("|") and not _is_header(lines, place):
            found.append([cell.strip() for cell in _CELL_ENDS.split(line)[1:-1]])
    return found


def _is_header(lines: Sequence[str], place: int) -> bool:
    following = lines[place + 1] if place + 1 < len(lines) else ""
    return set(lines[place]) <= set("|-: ") or (following.startswith("|-") and set(following) <= set("|-: "))


def code(text: str) -> list[str]:
    """Return what a text sets as code."""
    return _CODE.findall(text)


def first_codes(text: str) -> list[str]:
    """Return what the first cells of all rows set as code."""
    return [word for row in rows(text) for word in code(row[0])]
