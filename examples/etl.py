"""An ETL job: the files of a day are counted at the same time, and one node puts the counts together.

    flowfabric-worker run examples.etl:worker
    python -m examples.etl 1000

The flow has a node for each file, a node that joins all of them, and one that reports. Follow it:

    flowfabric-worker flows
    flowfabric-worker flow show ID

A file that cannot be read is retried; if it fails for good, the join is skipped, and the report, which waits for the
end of everything whatever the outcome, says what is missing. Replay the failed node, and the rest runs too.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import attrs

from flowfabric_worker import Flow, ResultError, RetryPolicy, Worker

worker = Worker("etl", defaults={"retry": RetryPolicy(max_retries=2, initial=timedelta(milliseconds=100))})


@attrs.frozen
class Words:
    """How often each word stands in a file."""

    file: str
    counts: dict[str, int]


@worker.task
def extract(file: str) -> str:
    """Read a file; this example makes its text up."""
    if file.startswith("missing"):
        raise FileNotFoundError(file)
    return f"file {file} has {'many ' * (len(file) % 3)}words"


@worker.task
def transform(file: str, text: str) -> Words:
    """Count the words of a text."""
    return Words(file, dict(Counter(text.split())))


@worker.task
def load(parts: list[Words]) -> dict[str, int]:
    """Put the counts of all files together."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part.counts)
    return dict(total)


@worker.task
def report(parts: Sequence[Words | ResultError], total: dict[str, int] | ResultError) -> str:
    """Return what came of the day."""
    missing = sum(isinstance(part, ResultError) for part in parts)
    words = 0 if isinstance(total, ResultError) else sum(total.values())
    return f"{len(parts) - missing} files with {words} words; {missing} files are missing"


def day(files: Sequence[str], key: str | None = None) -> Flow:
    """Return the flow of a day; under a key it is submitted once."""
    with worker.flow("day", key=key) as flow:
        parts = [transform.node(file, extract.node(file)) for file in files]
        total = load.node(parts)
        flow.returns(report.options(need="ended").node(parts, total))
    return flow


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    run = day([f"{number}.txt" for number in range(count)]).submit()
    print(f"flow {run.id}")
    print(run.result())
