"""Signals that race with waits, with each other, and with the ends of executions."""

from __future__ import annotations

import contextlib
import queue
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flowfabric_worker import (
    Client,
    ExecutionCancelled,
    ExecutionExpired,
    Run,
    StateError,
    ValidationError,
    Worker,
    current,
)
from flowfabric_worker.engine.limits import Limits
from flowfabric_worker.engine.types.states import PublicState
from tests.support.mailbox import Mailbox
from tests.support.observation import in_state
from tests.support.servers import wait_until
from tests.worker.conftest import Start

ROUNDS = 1000
SENDERS = 8


def each_in_threads(act: Callable[[Client], None], worker: Worker, count: int = SENDERS) -> None:
    """Start some threads, each with a separate client; return when all have ended."""

    def sender() -> None:
        with Client(worker.url) as client:
            act(client)

    with ThreadPoolExecutor(count) as pool:
        for each in [pool.submit(sender) for _ in range(count)]:
            each.result(60)


def test_a_signal_that_races_with_its_wait_is_never_lost(served: Worker, start: Start) -> None:
    tokens: queue.SimpleQueue[str] = queue.SimpleQueue()

    @served.task
    def pay() -> int:
        token = current().waitpoint("paid")
        if current().kind == "fresh":
            tokens.put(token)
        amount: int = current().wait_for("paid", type=int)
        return amount

    def send(client: Client) -> None:
        for _ in range(ROUNDS // SENDERS):
            client.signal(tokens.get(timeout=30), "paid", 7)

    start(served, threads=4)
    runs = pay.submit_many(() for _ in range(ROUNDS))
    each_in_threads(send, served)
    began = time.monotonic()

    assert {run.result(20) for run in runs} == {7}
    # Without being told, a worker looks for work after 10 s.
    assert time.monotonic() - began < 9


def test_one_of_two_decisions_at_once_stands_in_every_run(served: Worker, start: Start) -> None:
    mailbox = Mailbox(served)
    answers: list[str] = []
    seen: dict[int, set[bool]] = defaultdict(set)

    @served.task
    def pay(number: int) -> bool:
        if current().kind == "fresh":
            mailbox.post(f"{number} {current().waitpoint('approval')}")
        decision = bool(current().wait_for("approval"))
        seen[number].add(decision)
        current().sleep(timedelta(milliseconds=1))
        return decision

    start(served, threads=4)
    rounds = 250
    runs = pay.submit_many((number,) for number in range(rounds))
    tokens = dict(mailbox.take().split() for _ in range(rounds))
    stood: dict[int, bool] = {}

    def decide(client: Client, number: int, approved: bool) -> None:
        try:
            client.approve(tokens[str(number)], approved, by="ann" if approved else "bob")
            stood[number] = approved
        except StateError as error:
            other = "approved, decided_by=ann" if not approved else "rejected, decided_by=bob"
            answers.append(f"{error.code} {f'decision={other}' in str(error)}")

    with Client(served.url) as client, ThreadPoolExecutor(SENDERS) as pool:
        sent = [pool.submit(decide, client, number, approved) for number in range(rounds) for approved in (True, False)]
        for each in sent:
            each.result(60)

    assert answers == ["waitpoint_closed True"] * rounds
    assert [run.result(10) for run in runs] == [stood[number] for number in range(rounds)]
    assert all(seen[number] == {stood[number]} for number in range(rounds))


def test_a_steady_flow_of_signals_does_not_keep_a_run_from_ending(served: Worker, start: Start) -> None:
    mailbox = Mailbox(served)
    told: Counter[str] = Counter()

    @served.task
    def busy() -> str:
        mailbox.post(current().waitpoint("noise"))
        wait_until(lambda: told["recorded"] > 500, "signals flow")
        return "done"

    start(served)
    run = busy.submit()
    token = mailbox.take()

    def send(client: Client) -> None:
        for number in range(5000 // SENDERS):
            try:
                client.signal(token, "noise", number)
                told["recorded"] += 1
            except StateError as error:
                told[str(error).partition("why=")[2]] += 1

    each_in_threads(send, served)

    assert run.result(10) == "done"
    assert sorted(told) == ["completed)", "recorded"]


def test_a_signal_above_the_cap_is_refused_and_the_wait_times_out(either: Worker, start: Start) -> None:
    either.engine.limits = Limits(signals_per_execution=3)
    mailbox = Mailbox(either)

    @either.task
    def busy() -> list[Any]:
        mailbox.post(current().waitpoint("noise"))
        got = current().wait_for("noise", timeout=timedelta(milliseconds=500), default="late")
        return [got, len(current().signals)]

    start(either)
    run = busy.submit()
    token = mailbox.take()
    in_state(either, run, PublicState.SUSPENDED)
    first = mailbox.signal(token, "other", key="k")
    for _ in range(2):
        mailbox.signal(token, "other")
    with pytest.raises(ValidationError) as refused:
        mailbox.signal(token, "noise")

    assert (refused.value.code, refused.value.retryable) == ("signal_limit_exceeded", False)
    assert mailbox.signal(token, "other", key="k").existing_signal_id == first.signal_id
    assert run.result(10) == ["late", 3]


@pytest.mark.parametrize("end", ["time-out", "cancel", "deadline"])
def test_a_signal_and_an_end_at_once_leave_one_winner(served: Worker, start: Start, end: str) -> None:
    mailbox, engine = Mailbox(served), served.engine
    rounds, began = 40, datetime.now(UTC)
    # The clock stands until each execution has handed its token out, and moves to the end of one after the other.
    ends = [timedelta(seconds=number + 1) for number in range(rounds)]
    engine.prepare(testing=True)
    engine.set_clock(began)

    @served.task
    def pay(number: int) -> str:
        token = current().waitpoint("paid")
        if current().kind == "fresh":
            mailbox.post(f"{number} {token}")
        timeout = ends[number] if end == "time-out" else None
        got: str = current().wait_for("paid", type=str, timeout=timeout, default="timed out")
        return got

    start(served, threads=4)
    runs = [
        pay.options(**({"deadline": ends[number]} if end == "deadline" else {})).submit(number)
        for number in range(rounds)
    ]
    tokens = dict(mailbox.take().split() for _ in range(rounds))
    for run in runs:
        in_state(served, run, PublicState.SUSPENDED)
    accepted: dict[int, str] = {}

    def signal(client: Client, number: int) -> None:
        try:
            client.signal(tokens[str(number)], "paid", "paid")
            accepted[number] = "paid"
        except StateError as error:
            accepted[number] = str(error).partition("why=")[2].partition(",")[0].rstrip(")")

    def finish(number: int) -> None:
        if end == "cancel":
            # A run that has completed first is not cancelled any more.
            with contextlib.suppress(StateError):
                runs[number].cancel()
            return
        engine.set_clock(began + ends[number])
        engine.run_upkeep()

    with Client(served.url) as client, ThreadPoolExecutor(2) as pool:
        for number in range(rounds):
            acts = [lambda number=number: signal(client, number), lambda number=number: finish(number)]
            for act in [pool.submit(act) for act in (acts if number % 2 else reversed(acts))]:
                act.result(30)

    outcomes = Counter((accepted[number], outcome(run)) for number, run in enumerate(runs))
    lost = {"time-out": "timed out", "cancel": "cancelled", "deadline": "expired"}[end]
    why = {"time-out": "timed_out"}.get(end, lost)
    allowed = {("paid", "paid"), (why, lost), ("completed", "paid")}
    if end != "time-out":
        # The signal resumed the run, which the end then met before its handler had run.
        allowed.add(("paid", lost))
    assert set(outcomes) <= allowed, outcomes


def outcome(run: Run[str]) -> str:
    """Return the result of a run, or how else it ended."""
    try:
        return run.result(10)
    except (ExecutionCancelled, ExecutionExpired) as error:
        return "cancelled" if isinstance(error, ExecutionCancelled) else "expired"


def test_one_of_the_last_signals_of_many_threads_resumes_the_run(served: Worker, start: Start) -> None:
    mailbox = Mailbox(served)
    names = [f"part {number}" for number in range(SENDERS)]

    @served.task
    def gather() -> list[Any]:
        tokens = [current().waitpoint(name) for name in names]
        if current().kind == "fresh":
            for token in tokens:
                mailbox.post(token)
        got = current().wait_for(names, type=int)
        return [list(got.values()), current().attempt, len(current().signals)]

    start(served, threads=4)
    for _ in range(20):
        run = gather.submit()
        tokens = [mailbox.take() for _ in names]
        with Client(served.url) as client, ThreadPoolExecutor(SENDERS) as pool:
            effects = Counter(
                answer.effect.value
                for answer in pool.map(
                    lambda number, client=client, tokens=tokens: client.signal(tokens[number], names[number], number),
                    range(SENDERS),
                )
            )

        assert run.result(10) == [list(range(SENDERS)), 0, SENDERS]
        assert effects["resume_condition_satisfied"] <= 1
