"""The snippets of the documentation run as they stand."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import DOCS, PAGES, ROOT, Snippet, snippets

_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^):]+)\)")


def by_name(snippet: Snippet) -> str:
    return snippet.name


@pytest.mark.parametrize("snippet", list(snippets("python")), ids=by_name)
def test_python_snippet_runs(snippet: Snippet, tmp_path: Path) -> None:
    script = tmp_path / "snippet.py"
    # Snippets that show a producer would wait for a worker; importing runs everything else.
    script.write_text(snippet.text.replace('if __name__ == "__main__":', "def producer() -> None:"), "utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("snippet", list(snippets("py")), ids=by_name)
def test_code_for_other_libraries_is_python(snippet: Snippet) -> None:
    ast.parse(snippet.text)


def test_every_link_between_pages_leads_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [*PAGES, *sorted((DOCS / "decisions").glob("*.md"))]
        for target in _LINK.findall(page.read_text("utf-8"))
        if not _exists(page, target)
    ]
    assert broken == []


def _exists(page: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    found = page.parent / name if name else page
    return found.exists() and (not anchor or anchor in _anchors(found))


def _anchors(page: Path) -> set[str]:
    """Return what the headings of a page are called in links to them."""
    headings = _HEADING.findall(page.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
