"""An agent with sub-agents under one budget: whatever the tree of them spends counts against one limit.

In one terminal, or in several at once, workers:

    python -m flowfabric_worker run examples.research:worker

In another one, in the same directory, a question whose answer costs 2,640 tokens, under a budget of 1,500:

    python -m examples.research

The agent spawns a sub-agent for each part that the model names, and a sub-agent does the same. Above 1,000 tokens one
worker prints a warning. After four answers of the model there are not enough tokens for another: the agents wait, and
hold no thread. See it and raise it, and they go on where they stopped:

    python -m flowfabric_worker budgets live
    python -m flowfabric_worker budgets update research --limit tokens=10000

The model is a stand-in, so that nothing here needs a network.
"""

from __future__ import annotations

import time

import attrs

from flowfabric_worker import AttemptEvent, Client, Middleware, Worker, current

BUDGET = "research"
# What one answer of the model costs at most; what it has really cost is settled afterwards.
MOST_TOKENS = 400
# What the model divides; it answers everything else at once.
PARTS = {"the Alps": ["climate", "towns", "lakes"], "towns": ["Bern", "Chur"]}


class Warnings(Middleware):
    """Says when most of the budget is used: once in each period, in one of the workers."""

    def on_soft_limit(self, event: AttemptEvent) -> None:
        print(f"warning: {event.error}", flush=True)


# The store is $FLOWFABRIC_URL, else embedded://.flowfabric: all terminals find it there.
worker = Worker("research", middleware=[Warnings()])


@attrs.frozen
class Reply:
    """What the model says: the parts to look into first, or the answer; and how many tokens it has cost."""

    parts: list[str]
    text: str
    tokens: int


def model(topic: str, found: list[str]) -> Reply:
    time.sleep(0.01)
    if topic in PARTS and not found:
        return Reply(PARTS[topic], "", 330)
    return Reply([], f"{topic} ({', '.join(found)})" if found else topic, 330)


def ask(topic: str, found: list[str]) -> Reply:
    """Ask the model as soon as the budget has tokens for its answer."""
    # The reservation is refused before anything is spent; the agent then runs again when there are tokens.
    with current().reserve(tokens=MOST_TOKENS) as reservation:
        reply = model(topic, found)
        reservation.settle(tokens=reply.tokens)
    return reply


@worker.task
def agent(topic: str) -> str:
    """Answer a topic: ask the model, let sub-agents look into the parts that it names, and ask it again."""
    # A step is recorded: an agent that runs again, after a wait or a crash, does not pay for this reply again.
    reply = current().step("plan", ask, topic, [])
    if reply.parts:
        # Sub-agents have the budgets of the agent that spawned them, and need not name them.
        found = current().gather(*(current().spawn(part, agent, part) for part in reply.parts))
        reply = current().step("answer", ask, topic, list(found))
    return reply.text


def main() -> None:
    with Client(worker.url) as client:
        client.create_budget(BUDGET, {"tokens": 1500}, soft={"tokens": 1000})
    print(agent.options(budgets=[BUDGET]).submit("the Alps").result())


if __name__ == "__main__":
    main()
