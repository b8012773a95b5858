"""What a type checker sees of the decorator, and of what it makes."""

from __future__ import annotations

from pathlib import Path

from mypy import api

ROOT = Path(__file__).parents[2]


def test_a_decorated_function_keeps_its_signature_for_mypy() -> None:
    report, errors, status = api.run(
        ["--strict", "--config-file", str(ROOT / "pyproject.toml"), str(ROOT / "tests" / "typing" / "usage.py")]
    )

    assert status == 0, report + errors
