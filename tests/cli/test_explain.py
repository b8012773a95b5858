"""The command `explain`."""

from __future__ import annotations

import pytest

from tests.support.cli import ok, submitted

pytestmark = pytest.mark.usefixtures("url")


def test_explain_gives_the_reason_as_text_and_as_json() -> None:
    execution_id = submitted("add")

    assert ok("explain", execution_id).out == "No worker is alive; start one.\n"
    assert ok("explain", execution_id, "--json").document["code"] == "no_worker"
