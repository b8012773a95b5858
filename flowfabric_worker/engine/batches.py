"""Batches: how the items of a stored function are cut into calls, and calls into windows that are sent together."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TypeAlias, TypeVar

from flowfabric_worker.engine.limits import MAX_CALL_BYTES
from flowfabric_worker.engine.stores.base import Argument

T = TypeVar("T")
Item = Sequence[Argument]
Steps: TypeAlias = Generator[None, None, T]
"""A generator that yields before calls are sent and while one is in flight, and returns its result."""


def finish(steps: Steps[T]) -> T:
    """Run a generator of steps to its end, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value


def cut_items(items: Sequence[tuple[int, Item]], chosen: Iterable[int], most: int) -> Iterator[list[int]]:
    """Yield the indices of the chosen items in batches, each for one call: in one partition, and within the limits."""
    open_batches: dict[int, tuple[list[int], int]] = {}
    for index in chosen:
        partition, arguments = items[index]
        size = size_of(arguments)
        indices, total = open_batches.get(partition, ([], 0))
        if indices and (len(indices) >= most or total + size > MAX_CALL_BYTES):
            yield indices
            indices, total = [], 0
        indices.append(index)
        open_batches[partition] = indices, total + size
    yield from (indices for indices, _ in open_batches.values())


def windows(batches: Iterable[Sequence[int]], full: int) -> Iterator[list[Sequence[int]]]:
    """Yield the batches that are sent together: batches of several partitions with together at most `full` items."""
    together: list[Sequence[int]] = []
    count = 0
    for batch in batches:
        if together and count + len(batch) > full:
            yield together
            together, count = [], 0
        together.append(batch)
        count += len(batch)
    if together:
        yield together


def size_of(arguments: Item) -> int:
    """Return an upper bound of the bytes that the arguments of an item take in the store."""
    size = 16 * len(arguments)
    for argument in arguments:
        if isinstance(argument, str):
            size += len(argument) if argument.isascii() else len(argument.encode())
        elif isinstance(argument, bytes):
            size += len(argument)
    return size
