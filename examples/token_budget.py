"""A token budget that many workers share: at its limit they stop before the next call, and go on when it is raised.

In one terminal, or in several at once, workers:

    python -m flowfabric_worker run examples.token_budget:worker

In another one, in the same directory, 20 questions of about 350 tokens each, under a budget of 3,000:

    python -m examples.token_budget

After eight answers the budget is full: the rest reads `rate_limited`, and uses no attempt. See it and raise it:

    python -m flowfabric_worker budgets live
    python -m flowfabric_worker budgets update tokens-today --limit tokens=10000

The model is a stand-in, so that nothing here needs a network.
"""

from __future__ import annotations

import time

from flowfabric_worker import Client, Worker, current

BUDGET = "tokens-today"
# What one answer costs at most; what it has really cost is settled afterwards.
MOST_TOKENS = 400

# The store is $FLOWFABRIC_URL, else embedded://.flowfabric: all terminals find it there.
worker = Worker("questions")


def model(question: str) -> tuple[str, int]:
    """Answer a question; return the answer, and how many tokens it has cost."""
    time.sleep(0.01)
    return f"{question} is a good question.", 340 + len(question) % 20


@worker.task(budgets=[BUDGET])
def answer(question: str) -> str:
    # The reservation is refused before anything is spent, if the budget has no space for it.
    with current().reserve(tokens=MOST_TOKENS) as reservation:
        text, tokens = model(question)
        reservation.settle(tokens=tokens)
    return text


def main() -> None:
    with Client(worker.url) as client:
        client.create_budget(BUDGET, {"tokens": 3000}, soft={"tokens": 2000})
    runs = answer.submit_many([(f"question {number}",) for number in range(20)])
    for run in runs:
        print(run.result())


if __name__ == "__main__":
    main()
