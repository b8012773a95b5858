"""An agent: a model that calls tools at the same time, and asks before it spends money.

In one terminal, a worker that runs the agent:

    python -m flowfabric_worker run examples.agent:worker

In another one, in the same directory, a user who asks, and sees the answer come:

    python -m examples.agent

The first terminal prints the command that approves the booking. Kill the worker at any moment (kill -9) and start it
again: what the model has said is not paid for again, and the seat is booked once. "flowfabric-worker cancel ID" ends
the run, also while it waits. The model is a stand-in, so that nothing here needs a network.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import attrs

from flowfabric_worker import Approval, Fail, StreamValue, Worker, current

# The store is $FLOWFABRIC_URL, else embedded://.flowfabric: both terminals find it there.
worker = Worker("travel")

MOST_TURNS = 5
TEMPERATURES = {"Bern": 14, "Chur": 19, "Lugano": 24}


@attrs.frozen
class Message:
    """What the user, the model or a tool has said."""

    role: str
    text: str


@attrs.frozen
class ToolCall:
    """What the model wants to be done."""

    tool: str
    city: str


@attrs.frozen
class Reply:
    """What the model says, and the tools that it calls; it calls none when it is done."""

    text: str
    calls: list[ToolCall]


@worker.task
def agent(question: str) -> str:
    """Answer a question: ask the model, run the tools that it calls, and ask it again with their results."""
    messages = [Message("user", question)]
    for turn in range(MOST_TURNS):
        # A step is recorded: a run that begins again, after a crash or a wait, gets the same reply without a call.
        reply = current().step(f"model {turn}", think, messages)
        current().emit(reply.text)
        if not reply.calls:
            return reply.text
        results = use_tools(turn, reply.calls)
        messages += [Message("model", reply.text), *(Message("tool", result) for result in results)]
    raise Fail(f"the model has no answer after {MOST_TURNS} turns")


def use_tools(turn: int, calls: Sequence[ToolCall]) -> list[str]:
    """Run the tools that the model has called in one turn, all at the same time, and return their results in order."""
    names = [f"{call.tool} {turn}.{number}" for number, call in enumerate(calls)]
    # Waits come first, because only the thread of the handler can wait.
    decisions = [ask(name, call) if call.tool == "book" else None for name, call in zip(names, calls, strict=True)]
    keys = [current().idempotency_key(name) for name in names]
    with ThreadPoolExecutor(len(calls)) as pool:
        # The copy of the context carries current() into the thread.
        futures = [
            pool.submit(copy_context().run, use_tool, *each) for each in zip(names, calls, decisions, keys, strict=True)
        ]
        return [future.result() for future in futures]


def use_tool(name: str, call: ToolCall, decision: Approval | None, key: str) -> str:
    """Run one tool as a step, unless a person has rejected it."""
    if decision is not None and not decision:
        return f"{call.city} is not booked: {decision.by} says {decision.reason!r}"
    if call.tool == "book":
        return current().step(name, book, call.city, key)
    return current().step(name, measure, call.city)


def ask(name: str, call: ToolCall) -> Approval:
    """Ask a person whether a tool may run. While the agent waits, it holds no thread, and no worker has to run."""
    shown = {"tool": call.tool, "city": call.city}
    token = current().waitpoint(name, shown=shown)
    current().step(f"ask {name}", notify, call, token)
    approval: Approval = current().wait_for(name, type=Approval, shown=shown)
    return approval


def notify(call: ToolCall, token: str) -> None:
    """Tell a person how to decide: in practice a mail, because the token is as secret as a password."""
    print(f"May the agent {call.tool} a seat to {call.city}? Say --yes or --no:", flush=True)
    print(f'  python -m flowfabric_worker approve "{token}" --yes --by YOU', flush=True)


def think(messages: Sequence[Message]) -> Reply:
    """Reply as a language model would, which is slow and costs money."""
    results = [message.text for message in messages if message.role == "tool"]
    if not results:
        return Reply("I look at the weather.", [ToolCall("weather", city) for city in TEMPERATURES])
    if len(results) == len(TEMPERATURES):
        warmest = max(results, key=lambda result: int(result.split()[1])).split()[0]
        return Reply(f"{warmest} is warmest: I book a seat.", [ToolCall("book", warmest)])
    return Reply(f"I looked at {len(TEMPERATURES)} cities. {results[-1]}.", [])


def measure(city: str) -> str:
    """Return the temperature of a city."""
    return f"{city} {TEMPERATURES[city]} degrees"


def book(city: str, key: str) -> str:
    """Reserve a seat. The railway knows the key, so a booking that is sent twice, because the worker died, is one."""
    bookings = Path(os.environ.get("AGENT_BOOKINGS", ".agent-bookings"))
    bookings.mkdir(exist_ok=True)
    (bookings / key).write_text(city)
    return f"{city} is booked under number {key[:6]}"


def main() -> None:
    """Ask the agent, and print what it says while it works."""
    run = agent.submit("Where should I go on Sunday?")
    print(f"The run is {run.id.plain}.")
    for item in run.stream():
        if isinstance(item, StreamValue):
            print(f"agent: {item.value}")
    print(f"The answer: {run.result(timeout=30)}")
    worker.close()


if __name__ == "__main__":
    main()
