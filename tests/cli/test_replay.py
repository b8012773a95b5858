"""The command `replay`."""

from __future__ import annotations

import pytest

from flowfabric_worker.client import Client
from tests.support.cli import cli, ok, submitted

pytestmark = pytest.mark.usefixtures("url")


def test_replay_runs_a_cancelled_execution_again(client: Client) -> None:
    execution_id = submitted("add")

    ok("cancel", execution_id, "--reason", "not needed")
    cancelled = client.get(execution_id)
    ok("replay", execution_id)
    replayed = client.get(execution_id)

    assert cancelled is not None
    assert replayed is not None
    assert (cancelled.public_state, cancelled.cancel_reason) == ("cancelled", "not needed")
    assert (replayed.public_state, replayed.replay_count) == ("waiting", 1)
    assert cli("replay", execution_id).code == 1
