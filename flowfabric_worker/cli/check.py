"""The command `check`: check that the store can be used, and say what to do if it cannot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

import attrs
import click

from flowfabric_worker._version import __version__
from flowfabric_worker.cli.exit_codes import CommandError, exit_code_of
from flowfabric_worker.cli.options import json_option, with_client
from flowfabric_worker.cli.output import print_json
from flowfabric_worker.cli.tables import print_facts
from flowfabric_worker.cli.trial_store import trial_client
from flowfabric_worker.client import Client
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.types.claiming import ClaimPolicy, ClaimRequest, LaneRequest
from flowfabric_worker.engine.types.reads import LaneInfo
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.workers import WorkerInfo

_TRIAL: Final = "check"
_TRIAL_LEASE: Final = timedelta(seconds=10)

# A larger difference between the clocks of the store and this machine is a warning.
_MOST_SKEW_MS: Final = 1000
_CLOCK_READINGS: Final = 5

_ADVICE: Final = {
    "transport": "Check that the server is running, and that the URL has the right host and port.",
    "store_timeout": "Check whether the server is overloaded, or a firewall drops the connection.",
    "store_busy": "Wait until the server has loaded its data or the failover is over.",
}


@attrs.frozen(kw_only=True)
class Finding:
    """The result of one check.

    Attributes:
        what: the name of the check.
        text: what was found.
        advice: what to do; empty if nothing is wrong.
    """

    what: str
    text: str
    advice: str = ""


@click.command()
@json_option()
@with_client
def check(client: Client, *, as_json: bool) -> None:
    """Check that the store can be used, or say what to do.

    The store must be reachable, supported and set up, and its user needs some rights. A small execution is run under a
    separate prefix, schema or namespace, and removed again. Warnings do not change the exit code.
    """
    findings: list[Finding] = []
    failure: EngineError | None = None
    try:
        findings.extend(_look(client))
    except EngineError as error:
        failure = error
    if as_json:
        print_json({"ok": failure is None, "error": failure and str(failure), "findings": findings})
    elif findings:
        print_facts([(each.what, f"{each.text} {each.advice}".rstrip()) for each in findings])
    if failure is not None:
        raise CommandError(f"{failure} {_ADVICE.get(failure.code, '')}".rstrip(), exit_code_of(failure)) from failure


def _look(client: Client) -> Iterator[Finding]:
    """Run the checks in order; each needs the earlier ones to succeed."""
    engine = client.engine
    prepared = engine.prepare()
    yield Finding(what="store", text=f"{prepared.product} {prepared.version}, reachable")
    # prepare() has asked each server, because slots that move to another server do not take the functions along.
    places = f" on {prepared.servers} servers" if prepared.servers > 1 else ""
    loaded = "loaded now" if prepared.loaded else "loaded"
    yield Finding(what="functions", text=f"of release {__version__}, {loaded}{places}")
    partitions = f"{prepared.partitions} partition{'s' if prepared.partitions != 1 else ''}"
    yield Finding(what="set-up", text=f"{partitions}, set up now" if prepared.created else partitions)
    yield from (Finding(what="warning", text=warning) for warning in prepared.warnings)
    if prepared.testing:
        yield Finding(
            what="warning",
            text="The store was prepared for tests: any client can set its clock.",
            advice="Use another store for real work.",
        )
    yield _clock(client)
    yield _trial(client)
    workers = [worker for worker in client.workers() if isinstance(worker, WorkerInfo) and worker.alive]
    threads = sum(worker.threads for worker in workers)
    yield Finding(what="workers", text=f"{len(workers)} alive, {threads} threads")
    served = {lane for worker in workers for lane in worker.lanes}
    yield from (_lane(lane, lane.lane in served) for lane in client.lanes())


def _clock(client: Client) -> Finding:
    """Compare the store's clock with this machine's, by the reading with the fastest answer."""
    readings = []
    for _ in range(_CLOCK_READINGS):
        before, asked = time.time(), time.monotonic()
        server = client.engine.server_time()
        took = time.monotonic() - asked
        readings.append((took, server - (before + took / 2) * 1000))
    took, skew = min(readings)
    text = f"{round(skew):+d} ms from this machine's; a call takes {took * 1000:.1f} ms"
    if abs(skew) <= _MOST_SKEW_MS:
        return Finding(what="clock", text=text)
    return Finding(
        what="clock",
        text=f"{text}.",
        advice="Synchronize the clocks, for example by NTP: times such as at= are compared with the store's clock.",
    )


def _trial(client: Client) -> Finding:
    """Run an execution from submission to purge, which needs every right of producers and workers."""
    began = time.monotonic()
    with trial_client(client.url, "check") as trial:
        engine = trial.engine
        run = trial.submit(_TRIAL, force=True, lane=_TRIAL)
        policy = ClaimPolicy(worker_id=_TRIAL, worker_instance_id=_TRIAL, lease=_TRIAL_LEASE)
        lanes = (LaneRequest(lane=_TRIAL),)
        for claimed in engine.claim_many(ClaimRequest(lanes=lanes, policy=policy, limit=1, tasks=frozenset({_TRIAL}))):
            engine.renew(claimed.handle)
            engine.complete(claimed.handle, b"null")
        run.result(_TRIAL_LEASE)
        # Read the feed as well, because listening needs a right of its own.
        list(trial.completions(timeout=timedelta()))
        engine.purge(run.id)
    took = (time.monotonic() - began) * 1000
    return Finding(what="rights", text=f"submit, claim, complete, listen, purge: all granted, in {took:.0f} ms")


def _lane(lane: LaneInfo, is_served: bool) -> Finding:
    depths = [f"{depth} {state}" for state, depth in lane.depths.items() if depth and not state.is_terminal]
    what, text = f"lane {lane.lane}", ", ".join(depths) or "empty"
    if lane.corruption is not None:
        return Finding(
            what=what,
            text=f"{text}. {lane.corruption}",
            advice="They count from zero again as work comes and goes; list --lane shows what the lane holds.",
        )
    if lane.paused_since_ms is not None:
        return Finding(
            what=what,
            text=f"{text}, paused.",
            advice=f"Resume it with: flowfabric-worker lanes resume {lane.lane!r}",
        )
    if lane.depths[PublicState.WAITING] and not is_served:
        return Finding(
            what=what,
            text=f"{text}; no running worker serves it.",
            advice="Start one with: flowfabric-worker run",
        )
    return Finding(what=what, text=text)
