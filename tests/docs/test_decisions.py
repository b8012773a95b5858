"""Every page on a decision has the parts that a reader looks for, and is listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "decisions"
PAGES = sorted(FOLDER.glob("0*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_decision_has_status_date_question_decision_and_alternatives(page: Path) -> None:
    text = page.read_text()

    assert re.search(r"^(?:- )?Status: \w+", text, re.MULTILINE)
    assert re.search(r"Date: 20\d\d-\d\d-\d\d\b", text)
    for heading in ("Question", "Decision", "Alternatives"):
        assert re.search(rf"^## {heading}$", text, re.MULTILINE), heading


def test_the_list_of_decisions_names_every_page() -> None:
    listed = re.findall(r"^(\d+)\. \[.+\]\((\d{4})-.+\.md\)$", (FOLDER / "README.md").read_text(), re.MULTILINE)

    assert [(f"{int(number):04}", page) for number, page in listed] == [(page.name[:4],) * 2 for page in PAGES]


def test_the_site_has_every_page() -> None:
    docs = FOLDER.parent
    named = set(re.findall(r"- (?:[^:\n]+: )?(\S+\.md)$", (docs.parent / "mkdocs.yml").read_text(), re.MULTILINE))

    assert named == {str(page.relative_to(docs)) for page in docs.rglob("*.md")}
