"""The lint of the language of code and documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

import lint_english

BAD = {
    "a banned word in a comment": ("a.py", "# Wakes whoever waits.\n", "a.py:1: 'whoever': "),  # lint-english: quoted
    "a banned word in capitals": ("a.md", "One\nNOBODY waits.\n", "a.md:2: 'NOBODY': "),  # lint-english: quoted
    "a banned word in Lua": ("a.lua", "-- Read anew.\n", "a.lua:1: 'anew': "),  # lint-english: quoted
    "a coined word": ("a.md", "The room `feed`.\n", "a.md:1: 'room': "),  # lint-english: quoted
    "a statement for a docstring": ("a.py", 'def f():\n    """Whether it ends."""\n', "f: begin with a verb"),
    "a noun for a docstring": ("a.py", 'class A:\n    def f(self):\n        """The lease."""\n', "not 'The'"),
    "a verb in the third person": ("a.py", 'async def f():\n    """Returns it."""\n', "not 'Returns'"),
    "a banned word in a name": ("a.py", "def wake_whoever_waits():\n    pass\n", "wake_whoever_waits: write"),
    "a banned word in the name of a class": ("a.py", "class NobodyWaits:\n    pass\n", "NobodyWaits: write"),
}

GOOD = {
    "an imperative": ("a.py", 'def f():\n    """Return the lease."""\n'),
    "a property": ("a.py", 'class A:\n    @property\n    def f(self):\n        """The lease."""\n'),
    "a private function": ("a.py", 'def _f():\n    """The lease."""\n'),
    "a function without a docstring": ("a.py", "def f():\n    pass\n"),
    "a part of a word": ("a.md", "The mushroom of Hershey.\n"),
    "a name of another library": ("a.lua", "return math.floor(1.5)\n"),
    "a quoted word": ("a.md", "Not whoever. <!-- lint-english: quoted -->\n"),
}


@pytest.mark.parametrize(("name", "text", "message"), BAD.values(), ids=BAD.keys())
def test_the_english_lint_rejects_forbidden_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)

    assert lint_english.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(("name", "text"), GOOD.values(), ids=GOOD.keys())
def test_the_english_lint_accepts_plain_sentences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)

    assert lint_english.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""


def test_the_english_lint_counts_each_rule_and_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.md").write_text("whoever\nanew, Anew\n")  # lint-english: quoted

    assert lint_english.main(["--count", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == ["2", "anew", "1", "whoever", "3", "in", "all"]  # lint-english: quoted
