"""The page on the architecture names what exists, and every part of a worker process."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "flowfabric_worker"
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_paths_on_the_architecture_page_exist() -> None:
    paths = [path for path in re.findall(r"`([\w./]+/[\w./]*)`", PAGE) if "*" not in path]
    missing = [path for path in paths if not (ROOT / path).exists() and not (PACKAGE / path).exists()]

    assert len(paths) > 20
    assert missing == []


def test_the_architecture_page_names_every_part_of_a_worker_process() -> None:
    parts = {path.name for path in (PACKAGE / "_runtime").glob("*.py")} - {"__init__.py"}

    assert parts - set(re.findall(r"`(\w+\.py)`", PAGE)) == set()


def test_the_architecture_page_names_every_area() -> None:
    areas = {path.stem for path in (PACKAGE / "engine" / "backend").glob("*.py")} - {"__init__"}
    rows = re.search(r"\| area \| what it does \|\n(.*?)\n\n", PAGE, re.DOTALL)

    assert rows is not None
    assert areas - set(re.findall(r"\w+", rows.group(1))) == set()
