"""A race of providers: the first answer counts, and the others are cancelled.

    flowfabric-worker run examples.race:worker
    python -m examples.race "what is a lease?"

`need=1` lets the next node run as soon as one provider has answered; `others="cancel"` cancels those that still wait or
run. A provider that fails does not end the race: it is over only when none can answer any more.
"""

from __future__ import annotations

import sys
import time

from flowfabric_worker import Fail, Flow, Worker, current

worker = Worker("race")

# The seconds that each provider takes; None if it is down.
PROVIDERS = {"slow": 5.0, "down": None, "quick": 0.1}


@worker.task(interrupt=True)
def ask(provider: str, question: str) -> str:
    """Ask a provider, which takes its time; a cancelled race interrupts it."""
    seconds = PROVIDERS[provider]
    if seconds is None:
        raise Fail(f"{provider} is down")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        current().check()
        time.sleep(0.01)
    return f"{provider} says: {question} is a good question"


@worker.task
def publish(answer: str) -> str:
    """Use the answer that came first."""
    return answer.upper()


def race(question: str) -> Flow:
    """Return the flow of a question."""
    with worker.flow("race") as flow:
        answers = [ask.options(key=provider).node(provider, question) for provider in PROVIDERS]
        # One text is wanted, so the first success is passed, not a list.
        publish.options(need=1, others="cancel").node(answers)
    return flow


if __name__ == "__main__":
    flow = race(" ".join(sys.argv[1:]) or "why")
    print(flow.picture())
    print(flow.submit().result())
