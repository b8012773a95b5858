"""Executions that wait, for the tests of the command line, and the tokens of their waitpoints."""

from __future__ import annotations

from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.suspension import IssuedWaitpoint
from flowfabric_worker.engine.waitpoint_tokens import to_bearer
from tests.support.executions import request
from tests.support.suspensions import waiting_for


class Waiting:
    """An execution that waits, and its waitpoints."""

    def __init__(self, found: Claimed, waitpoints: tuple[IssuedWaitpoint, ...]) -> None:
        self.execution_id = found.execution_id
        self.id = found.execution_id.plain
        self.waitpoints = waitpoints

    @property
    def token(self) -> str:
        """The token of its first waitpoint, as a bearer has it."""
        return to_bearer(self.execution_id, self.waitpoints[0].waitpoint_id, self.waitpoints[0].token)


def claimed(client: Client, task: str = "deploy", lane: str = "ops") -> Claimed:
    """Return a new execution that a worker holds."""
    client.submit(task, force=True, lane=lane)
    (found,) = client.engine.claim_many(request(lane, tasks=frozenset({task})))
    return found


def waiting(client: Client, *keys: str, task: str = "deploy", lane: str = "ops", **changes: object) -> Waiting:
    """Return a new execution that waits at some waitpoints, by default at one."""
    found = claimed(client, task, lane)
    outcome = client.engine.suspend(found.handle, waiting_for(*keys or ("go",), **changes))
    return Waiting(found, outcome.details.waitpoints)
