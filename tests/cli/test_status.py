"""The command `status`."""

from __future__ import annotations

import attrs
import pytest

from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.reads import PastAttempt
from tests.support.cli import cli, ok, serving, submitted

pytestmark = pytest.mark.usefixtures("url")


def test_status_prints_text_and_json(url: str) -> None:
    execution_id = submitted("stumble", "--lane", "sums", "--retries", 3, "--tag", "a=b")
    with serving(url):
        ok("result", execution_id)

    shown = ok("status", execution_id).out
    document = ok("status", execution_id, "--json").document

    lines = dict(line.split(maxsplit=1) for line in shown.splitlines() if not line.startswith("attempt "))
    assert (lines["id"], lines["state"], lines["tags"], lines["retries"]) == (execution_id, "completed", "a=b", "1")
    assert "ValueError: stumbled" in shown
    assert (document["public_state"], document["retry_count"], document["tags"]) == ("completed", 1, {"a": "b"})
    assert document["policy"]["retry"]["max_retries"] == 3
    assert document["past_attempts"][0]["error"] == "ValueError: stumbled"


def test_status_prints_the_detail_of_a_failure(url: str) -> None:
    execution_id = submitted("refuse", '"no tea"', "--lane", "sums")
    with serving(url):
        cli("result", execution_id)

    shown = ok("status", execution_id).out

    assert "no tea" in shown
    assert shown.endswith("\nmore of it\n")


def test_status_says_which_attempts_are_no_longer_stored(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    execution_id = submitted("add")
    info = client.get(execution_id)
    assert info is not None
    kept = PastAttempt(
        attempt_index=7,
        attempt_type="retry",
        ending="failed",
        started_at_ms=0,
        ended_at_ms=5,
        worker_instance_id="w",
        error_class=None,
        error="boom",
    )
    monkeypatch.setattr(Client, "get", lambda *_: attrs.evolve(info, past_attempts=(kept,)))

    assert "attempts 0 to 6  not kept" in ok("status", execution_id).out
