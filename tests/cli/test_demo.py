"""The command `demo`: its proof, and that it leaves nothing behind."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from flowfabric_worker.cli.demo import shop as demo_shop
from flowfabric_worker.cli.demo.proof import Ended, Proof, Submitted, prove
from flowfabric_worker.client import Client
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.reads import ExecutionInfo
from flowfabric_worker.engine.types.states import TerminalOutcome
from tests.support.cli import Process, lives, ok
from tests.support.servers import wait_until

KINDS = {f"demo.{name}" for name in ("greet", "pack_parcel", "charge_card", "send_reminder", "ship_to_atlantis")}


def test_demo_proves_that_every_execution_ended_exactly_once(start: Callable[..., Process], tmp_path: Path) -> None:
    process = start("demo", "--count", 60, "--dir", tmp_path / "kept")

    assert process.wait(60) == 0
    assert "killed with SIGKILL while it held" in process.log
    assert "Proved: each of the 60 executions ended exactly once." in process.log
    assert max(len(line) for line in process.log.splitlines() if str(tmp_path) not in line) < 120
    assert process.log.count("\n") < 30
    url, namespace = process.log.split("--url ")[1].split(" --namespace ")
    rows = ok("list", "--url", url, "--namespace", namespace.strip(), "--limit", 100, "--json").documents
    assert len(rows) == 60
    assert {row["task"] for row in rows} == KINDS


def test_demo_runs_on_another_store_and_prints_json(start: Callable[..., Process], url: str) -> None:
    process = start("demo", "--count", 20, "--url", url, "--json")

    assert process.wait(60) == 0
    (document,) = (json.loads(line) for line in process.log.splitlines() if line.startswith("{"))
    assert document["proved"] is True
    assert {kind["name"]: kind["missing"] for kind in document["kinds"]} == dict.fromkeys(KINDS, 0)
    assert document["interrupted"] > 0
    assert sum(document["completed_by"].values()) == 19
    with Client(url) as client:
        assert list(client.list()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_stops_its_workers(start: Callable[..., Process], number: int) -> None:
    process = start("demo", "--count", 2000)
    process.await_log("are submitted")
    workers = process.children()
    assert len(workers) == 2

    process.signal(number)

    assert process.wait() == 130
    assert "Traceback" not in process.log
    assert not any(map(lives, workers))
    home = Path(process.log.split("a new store in ")[1].splitlines()[0].rstrip("."))
    wait_until(lambda: not home.exists(), "the directory is removed")


# The proof itself has to fail where something is wrong.

IDS = [ExecutionId.mint() for _ in range(4)]
GOOD = Submitted(name="good", expected=TerminalOutcome.SUCCESS, ids=IDS[:3])
BAD = Submitted(name="bad", expected=TerminalOutcome.FAILED, ids=IDS[3:])
ENDS = [
    *(Ended(execution_id=identity, outcome=TerminalOutcome.SUCCESS) for identity in IDS[:3]),
    Ended(execution_id=IDS[3], outcome=TerminalOutcome.FAILED),
]


@pytest.fixture
def infos(url: str) -> dict[ExecutionId, ExecutionInfo]:
    """Provide what the store says of each: the first one ran again, the second one was retried twice."""
    with Client(url) as client:
        info = client.get(client.submit("any", force=True).id)
    assert info is not None
    each = {identity: attrs.evolve(info, execution_id=identity) for identity in IDS}
    each[IDS[0]] = attrs.evolve(each[IDS[0]], reclaim_count=1)
    each[IDS[1]] = attrs.evolve(each[IDS[1]], retry_count=2)
    return each


def proved(infos: dict[ExecutionId, ExecutionInfo], ends: list[Ended], interrupted: set[ExecutionId]) -> Proof:
    return prove([GOOD, BAD], ends, infos, interrupted)


def test_proof_holds_if_every_execution_ended_once(infos: dict[ExecutionId, ExecutionInfo]) -> None:
    proof = proved(infos, ENDS, {IDS[0]})

    assert proof.holds
    good, bad = proof.kinds
    assert (good.submitted, good.completed, good.retries, good.rerun) == (3, 3, 2, 1)
    assert (bad.submitted, bad.failed, bad.completed) == (1, 1, 0)


def test_proof_fails_if_an_execution_ended_twice(infos: dict[ExecutionId, ExecutionInfo]) -> None:
    proof = proved(infos, [*ENDS, ENDS[0]], {IDS[0]})

    assert list(proof.objections()) == ["1 of good ended more than once."]


def test_proof_fails_if_an_execution_is_missing(infos: dict[ExecutionId, ExecutionInfo]) -> None:
    assert list(proved(infos, ENDS[1:], {IDS[0]}).objections()) == ["1 of good did not end."]


def test_proof_fails_if_an_execution_had_another_outcome(infos: dict[ExecutionId, ExecutionInfo]) -> None:
    ends = [*ENDS[:3], Ended(execution_id=IDS[3], outcome=TerminalOutcome.SUCCESS)]

    assert list(proved(infos, ends, {IDS[0]}).objections()) == ["1 of bad had an unexpected outcome."]


def test_proof_fails_if_interrupted_work_did_not_run_again(infos: dict[ExecutionId, ExecutionInfo]) -> None:
    assert not proved(infos, ENDS, {IDS[0], IDS[2]}).holds


def test_proof_fails_if_nothing_was_interrupted(infos: dict[ExecutionId, ExecutionInfo]) -> None:
    assert not proved(infos, ENDS, set()).holds


@pytest.mark.parametrize("total", [20, 60, 300, 10_000])
def test_kinds_add_up_to_the_total_and_each_has_its_share(total: int) -> None:
    counts = demo_shop.counts(total)

    assert sum(count for _, count in counts) == total
    assert all(count >= 1 for _, count in counts)
    assert {kind.name for kind, _ in counts} == KINDS
