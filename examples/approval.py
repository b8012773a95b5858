"""Deployments that wait for a person: approval, rejection, a time-out, and escalation to the manager.

    python -m examples.approval

This process is the worker, and plays the people who are asked. While a deployment waits, it holds no thread and no
lease: stop all workers, and the answer is there when one starts again.
"""

from __future__ import annotations

import queue
from datetime import timedelta

import attrs

from flowfabric_worker import Approval, Client, Runtime, Worker, WorkerSettings, current

# The store is $FLOWFABRIC_URL, else embedded://.flowfabric.
worker = Worker("release")

# Hours in practice.
PATIENCE = timedelta(seconds=1)


@attrs.frozen(kw_only=True)
class Message:
    """What a person gets: in practice an e-mail whose links hold the token, which is as secret as a password."""

    to: str
    question: str
    token: str = attrs.field(repr=False)


inbox: queue.Queue[Message] = queue.Queue()


@worker.task
def deploy(version: str) -> str:
    """Release a version if the team or, when the team does not answer in time, the manager approves."""
    changes = current().step("list the changes", list_changes, version)
    decision = ask("the team", version, changes)
    if decision is None:
        decision = ask("the manager", version, changes)
    if decision is None:
        return f"{version} is not deployed, because the time for an answer is over"
    if not decision:
        return f"{version} is not deployed: {decision.by} says {decision.reason!r}"
    # Another system that knows the key deploys once, even if this process dies before the step is recorded.
    place = current().step("roll out", roll_out, version, current().idempotency_key("roll out"))
    return f"{version} runs on {place}, approved by {decision.by}"


def ask(who: str, version: str, changes: list[str]) -> Approval | None:
    """Ask for approval, and wait for it; return None if there is no answer in time."""
    name = f"approval by {who}"
    # What is shown is kept with the waitpoint. If a later run would show anything else, it fails instead of deploying.
    shown = {"version": version, "changes": changes}
    token = current().waitpoint(name, shown=shown)
    current().step(f"ask {who}", send, who, f"Deploy {version}: {', '.join(changes)}?", token)
    approval: Approval | None = current().wait_for(name, type=Approval, shown=shown, timeout=PATIENCE, default=None)
    return approval


def send(to: str, question: str, token: str) -> None:
    """Send a message: a step, so each person is asked once."""
    inbox.put(Message(to=to, question=question, token=token))


def list_changes(version: str) -> list[str]:
    """List the changes of a version: a step, so the same list is shown and deployed."""
    return [f"feature {version[-1]}", "fixes"]


def roll_out(version: str, key: str) -> str:
    """Start a version on a cluster: a step."""
    return f"cluster-{len(version + key) % 2}"


# The answers to the messages, in their order: yes, no, or none in time.
PLAY: dict[str, list[bool | None]] = {
    "1.1": [True],
    "1.2": [False],
    "1.3": [None, True],
    "1.4": [None, None],
}


def main() -> None:
    """Submit some deployments, and answer as the people would."""
    runtime = Runtime(worker, WorkerSettings(threads=2))
    runtime.start()
    with Client(worker.url) as client:
        for version, answers in PLAY.items():
            run = deploy.submit(version)
            for answer in answers:
                message = inbox.get(timeout=30)
                print(f"{message.to} is asked: {message.question}")
                if answer is not None:
                    client.approve(message.token, answer, by=message.to, reason="fine" if answer else "not on a Friday")
            print(run.result(timeout=30))
    runtime.stop()
    worker.close()


if __name__ == "__main__":
    main()
