"""Reads of an execution from outside, for tests of the SDK."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from flowfabric_worker import Run, Worker
from flowfabric_worker.engine.types.reads import ExecutionInfo
from flowfabric_worker.engine.types.states import PublicState
from tests.support.servers import wait_until


def info_of(worker: Worker, run: Run[Any]) -> ExecutionInfo:
    """Return what the store holds of a run."""
    info = worker.engine.read_execution_info(run.id)
    assert info is not None
    return info


def ended(worker: Worker, run: Run[Any]) -> ExecutionInfo:
    """Return what the store holds of a run that has ended."""
    worker.engine.wait_for_result(run.id, timedelta(seconds=10))
    return info_of(worker, run)


def in_state(worker: Worker, run: Run[Any], state: PublicState) -> ExecutionInfo:
    """Return what the store holds of a run that comes into a state."""
    wait_until(lambda: run.state() is state, f"the run is {state}")
    return info_of(worker, run)


def held_by(worker: Worker, instance: str, runs: Sequence[Run[Any]]) -> set[int]:
    """Return which of the runs are under a lease of a worker, by their places."""
    leases = [info_of(worker, run).current_lease for run in runs]
    return {number for number, lease in enumerate(leases) if lease and lease.worker_instance_id == instance}
