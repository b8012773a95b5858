"""The callers that handle what is due, and the durations by which tests move the clock."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TypeAlias

import pytest

from flowfabric_worker.engine.engine import Engine
from tests.support.executions import request, upkeep_all

MILLISECOND = timedelta(milliseconds=1)
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)

HandleDue: TypeAlias = Callable[[Engine], None]


def by_keeper(engine: Engine) -> None:
    """Handle what is due as a lease keeper does."""
    upkeep_all(engine)


def by_claim(engine: Engine) -> None:
    """Handle what is due by a claim of another lane."""
    engine.claim_many(request("elsewhere", worker="passer-by"))


handled = pytest.mark.parametrize("handle_due", [by_keeper, by_claim])
