"""Waiting for replicas: with `?replicas=N`, a call that writes returns when N replicas have what it wrote.

A repeated call writes nothing, so that WAIT alone would not wait. A marker that is written after the call makes WAIT
cover everything before the marker. If too few replicas have it in time, the call fails with a retryable error, even
though it may have taken effect.
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

# The marker expires, because it has no use once it is written.
_MARKER_SECONDS = 60
REPLICA_COMMANDS = ("SET", "WAIT")
_READS = re.compile(r"ff\.register\('(\w+)', \{ 'no-writes' \}")


class TooFewReplicasError(redis.RedisError):
    """Too few replicas have what a call wrote."""


@functools.cache
def reading_functions() -> frozenset[str]:
    """Return the stored functions that never write."""
    return frozenset(name for _, source in lua_files() for name in _READS.findall(source))


@attrs.frozen
class Replicas:
    """The number of replicas that must have what a call wrote."""

    count: int

    def commands(self, key: str, timeout: float) -> list[tuple[Argument, ...]]:
        """Return the commands to send after a call; half of its `timeout` is for the replicas.

        Args:
            key: the key of the call, so that the marker is on the same server.
            timeout: how long the call may take, in seconds.
        """
        return [
            ("SET", f"{key}:replicated", "", "EX", _MARKER_SECONDS),
            ("WAIT", self.count, max(1, int(timeout * 500))),
        ]

    def check(self, answers: Sequence[Any]) -> None:
        """Check that the answers to `commands` report enough replicas.

        Raises:
            TooFewReplicasError: too few replicas have it.
            redis.ResponseError: the server could not wait.
        """
        for answer in answers:
            if isinstance(answer, redis.ResponseError):
                raise answer
        if answers[-1] < self.count:
            raise TooFewReplicasError(f"{answers[-1]} of {self.count} replicas have what was written")
