"""Waiting for replicas: `?replicas=N` makes a call that writes return when N replicas have what it wrote.

A repeated call finds its work done and writes nothing, so that WAIT alone would look at nothing. A marker behind the
call makes it wait for whatever was written before the marker. When too few replicas have it in time, the call fails
in a way that allows to repeat it; it may have been done all the same.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import attrs
import redis

from flowfabric_worker.engine.stores.base import Argument
from flowfabric_worker.engine.stores.library import lua_files

# The marker is worth nothing once it is written, so it goes by itself.
_MARKER_SECONDS = 60
REPLICA_COMMANDS = ("SET", "WAIT")
_READS = re.compile(r"ff\.register\('(\w+)', \{ 'no-writes' \}")


class TooFewReplicasError(redis.RedisError):
    """Not as many replicas as are wanted have what was written."""


@functools.cache
def reading_functions() -> frozenset[str]:
    """Return the stored functions that never write."""
    return frozenset(name for _, source in lua_files() for name in _READS.findall(source))


@attrs.frozen
class Replicas:
    """How many replicas must have what is written."""

    count: int

    def commands(self, key: str, timeout: float) -> list[tuple[Argument, ...]]:
        """Return what is sent behind a call: half of its `timeout` seconds is for the replicas.

        Args:
            key: the key of the call; the marker lies beside it, on the same server.
            timeout: seconds that the call may take.
        """
        return [
            ("SET", f"{key}:replicated", "", "EX", _MARKER_SECONDS),
            ("WAIT", self.count, max(1, int(timeout * 500))),
        ]

    def check(self, answers: Sequence[Any]) -> None:
        """Refuse when the answers to `commands` say that too few have it.

        Raises:
            TooFewReplicasError: with the numbers.
            redis.ResponseError: the server could not do it.
        """
        for answer in answers:
            if isinstance(answer, redis.ResponseError):
                raise answer
        if answers[-1] < self.count:
            raise TooFewReplicasError(f"{answers[-1]} of {self.count} replicas have what was written")
