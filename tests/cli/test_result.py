"""The command `result`."""

from __future__ import annotations

import pytest

from tests.support.cli import cli, ok, serving, submitted

pytestmark = pytest.mark.usefixtures("url")


def test_result_prints_the_return_value_or_the_failure(url: str) -> None:
    good, bad = submitted("add", 1, 2, "--lane", "sums"), submitted("refuse", '"no tea"', "--lane", "sums")
    with serving(url):
        assert ok("result", good).document == 3
        failed = cli("result", bad, "--json")

    assert failed.code == 1
    assert failed.document == {
        "execution_id": bad,
        "state": "failed",
        "error": "no tea",
        "error_detail": "more of it",
    }
    assert ok("result", good, "--json").document == {"execution_id": good, "state": "completed", "result": 3}


@pytest.mark.parametrize("command", ["result", "submit"])
def test_wait_that_times_out_exits_6(command: str) -> None:
    arguments = ("result", submitted("add", 1)) if command == "result" else ("submit", "--force", "add", "1", "--wait")

    ran = cli(*arguments, "--timeout", "50ms")

    assert ran.code == 6
    assert "it continues" in ran.err
