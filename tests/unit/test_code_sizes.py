"""The script that measures the code and draws a sample of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import code_sizes

SOURCE = "# one\n# comment\n\n\ndef short() -> None: ...\n\n\ndef long() -> int:\n    # why\n    return 1\n"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert code_sizes.main(arguments) == 0
    return capsys.readouterr().out.splitlines()


def test_sizes_of_files_and_functions_are_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.py").write_text(SOURCE)

    assert printed(capsys, str(tmp_path)) == [
        "files: 1, median 10, p90 10, p99 10, max 10 lines",
        "functions: 2, median 1, p90 3, p99 3, max 3 lines",
    ]


def test_comments_on_lines_that_follow_each_other_are_one(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(SOURCE)

    assert [piece.text for piece in code_sizes.comments(tmp_path / "a.py")] == ["# one\n# comment", "# why"]


def test_a_seed_draws_the_same_sample_again(capsys: pytest.CaptureFixture[str]) -> None:
    first = printed(capsys, "--sample", "seed", "scripts")

    assert printed(capsys, "--sample", "seed", "scripts") == first
    assert printed(capsys, "--sample", "another", "scripts") != first
