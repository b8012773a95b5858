"""An application whose tasks leave nothing behind, for tests that measure what a worker keeps all the same."""

from __future__ import annotations

from flowfabric_worker import Worker

worker = Worker("forgetting")


@worker.task
def nothing() -> None: ...


@worker.task
def fail() -> None:
    megabyte = bytearray(1_000_000)
    raise ValueError(f"There were {len(megabyte)} bytes at hand.")
