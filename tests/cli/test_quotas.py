"""The command `quotas`."""

from __future__ import annotations

import pytest

from flowfabric_worker import Worker
from tests.support.cli import cli, ok

pytestmark = pytest.mark.usefixtures("url")


def test_quotas_are_created_shown_changed_and_removed() -> None:
    assert ok("quotas", "create", "api", "--rate", "10/s", "--concurrency", "4").out == "api: created.\n"
    again = ok("quotas", "create", "api", "--rate", "10/s", "--concurrency", "4")
    assert again.out == "api: exists already, with these limits.\n"
    headers, row = ok("quotas").out.splitlines()
    assert headers.split() == ["NAME", "RATE", "IN", "WINDOW", "CONCURRENCY", "RUNNING", "STATE"]
    assert row.split() == ["api", "10", "in", "1s", "0", "4", "0", "open"]

    assert ok("quotas", "update", "api", "--concurrency", "1", "--hold", "run").out == "api: updated.\n"
    shown = ok("quotas", "show", "api").out
    assert "1, 0 running" in shown
    assert "run" in shown
    assert ok("quotas", "reset", "api", "--json").document["policy"]["max_concurrent"] == 1
    assert ok("quotas", "remove", "api").out == "api: removed.\n"
    assert "No quotas found" in ok("quotas").err


def test_live_prints_what_a_closed_quota_waits_for(url: str) -> None:
    ok("quotas", "create", "api", "--rate", "1/h")
    worker = Worker("application", url)
    task = worker.task(name="call", quota="api")(lambda: None)
    task.submit_many([(), ()])
    worker.run_until_idle()
    worker.close()

    lines = ok("quotas", "live", "api", "--every", "10ms", "--times", "2").out.splitlines()
    assert len(lines) == 4
    assert "closed for" in lines[-1]
    assert "api" in cli("quotas", "remove", "api").err


def test_an_unknown_quota_and_wrong_limits_are_refused() -> None:
    ok("quotas", "create", "mail-api", "--rate", "1/s")
    assert "Did you mean 'mail-api'?" in cli("quotas", "show", "mail-ap").err
    assert "such as 10/m" in cli("quotas", "create", "b", "--rate", "often").err
    assert "give one of them" in cli("quotas", "create", "b").err
    assert "Name the quotas to reset" in cli("quotas", "reset").err
