"""This library."""

# /// script
# dependencies = []
# [tool.benchmarks]
# server = "any"
# ///

from __future__ import annotations

import importlib.metadata
import sys
import time

from benchmarks.peers import tasks
from benchmarks.peers.base import THREADS, URL, VARIANT, TwoLanes, median_ms, serve
from flowfabric_worker import Client, Run, Worker, __version__
from flowfabric_worker.engine.types.claiming import ClaimPolicy, ClaimRequest, LaneRequest

SHORT_LEASE = 10
_EMPTY_CLAIMS = 2000

worker = Worker("benchmark", URL or None)


TASKS = {task.__name__: worker.task(task) for task in tasks.ALL}


def run_command(url: str) -> list[str]:
    """Return the command that runs one worker process."""
    app = "benchmarks.peers.flowfabric:worker"
    options = ["--url", url, "--threads", str(THREADS), "--log-level", "warning"]
    return [sys.executable, "-m", "flowfabric_worker", "run", app, *options]


class FlowFabric(TwoLanes):
    def __init__(self) -> None:
        worker.engine.prepare()
        self._client = Client(URL)

    def submit(self, task: str, number: int) -> Run[float]:
        return TASKS[task].submit(number)

    def submit_many(self, count: int) -> Run[float]:
        return TASKS["noop"].submit_many((number,) for number in range(count))[-1]

    def result(self, receipt: Run[float]) -> float:
        return receipt.result(timeout=10)

    def unfinished(self) -> int:
        depths = (depth for lane in self._client.lanes() for depth in lane.depths.items())
        return sum(count for state, count in depths if not state.is_terminal)

    def worker_commands(self, processes: int) -> list[list[str]]:
        lease = ["--lease", f"{SHORT_LEASE}s"] if VARIANT == "short lease" else []
        return [[*run_command(URL), *lease]] * processes

    def submit_elsewhere(self, number: int) -> Run[float]:
        return TASKS["stamp"].options(lane="elsewhere").submit(number)

    def elsewhere_commands(self) -> list[list[str]]:
        return [[*run_command(URL), "--lanes", "elsewhere"]]

    def versions(self) -> dict[str, str]:
        packages = ("psycopg", "hiredis") if URL.startswith("postgresql:") else ("redis", "hiredis")
        drivers = {name: importlib.metadata.version(name) for name in packages}
        return {"flowfabric_worker": __version__, **drivers}

    def empty_claim(self, _tasks: int) -> dict[str, float]:
        """Return a claim that finds nothing and does not wait: what the way to the server and back costs; in ms."""
        policy = ClaimPolicy(worker_id="benchmark", worker_instance_id="benchmark")
        request = ClaimRequest(lanes=(LaneRequest(lane="empty"),), policy=policy)
        times = []
        for _ in range(_EMPTY_CLAIMS):
            began = time.perf_counter()
            worker.engine.claim_many(request)
            times.append(time.perf_counter() - began)
        return {"empty_claim": median_ms(times)}


if __name__ == "__main__":
    serve(FlowFabric())
