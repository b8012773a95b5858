"""The command `budgets`."""

from __future__ import annotations

import pytest

from flowfabric_worker.engine.engine import open_engine
from flowfabric_worker.engine.ids import BudgetId
from flowfabric_worker.engine.types.budgets import UsageDimensions
from tests.support.cli import cli, ok

pytestmark = pytest.mark.usefixtures("url")


def test_budgets_are_created_shown_changed_and_removed() -> None:
    create = ("budgets", "create", "team", "--limit", "tokens=100", "--soft", "tokens=80", "--reset-every", "1h")
    assert ok(*create).out == "team: created.\n"
    assert ok(*create).out == "team: exists already, with these limits.\n"
    headers, row = ok("budgets").out.splitlines()
    assert headers.split() == ["NAME", "USED", "RESERVED", "RESET", "STATE"]
    assert row.split()[:6] == ["team", "tokens", "0", "of", "100", "-"]
    assert row.split()[-1] == "open"

    assert ok("budgets", "update", "team", "--limit", "tokens=7", "--on-hard-limit", "fail").out == "team: updated.\n"
    shown = ok("budgets", "show", "team").out
    assert "0 used, 0 reserved, hard 7" in shown
    assert "fail" in shown
    assert ok("budgets", "reset", "team", "--json").document["usage"] == {"tokens": 0}
    assert ok("budgets", "remove", "team").out == "team: removed.\n"
    assert "No budgets found" in ok("budgets").err


def test_live_prints_which_limit_is_reached(url: str) -> None:
    ok("budgets", "create", "team", "--limit", "tokens=5")
    engine = open_engine(url)
    engine.report_usage_admin(BudgetId("team"), UsageDimensions(custom={"tokens": 5}))
    engine.close()

    lines = ok("budgets", "live", "team", "--every", "10ms", "--times", "2").out.splitlines()

    assert len(lines) == 4
    assert "full of tokens" in lines[-1]


def test_an_unknown_budget_and_wrong_limits_are_refused() -> None:
    ok("budgets", "create", "team-a", "--limit", "tokens=1")
    assert "Did you mean 'team-a'?" in cli("budgets", "show", "team-b").err
    assert "such as tokens=1000" in cli("budgets", "create", "b", "--limit", "often").err
    assert "at least one --limit" in cli("budgets", "create", "b").err
    assert "Name the budgets to reset" in cli("budgets", "reset").err
