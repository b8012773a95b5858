"""Settings that come from outside: the store's URL, and what a worker process is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import attrs

from flowfabric_worker.engine.ids import check_lane
from flowfabric_worker.engine.types.checks import as_capabilities

URL_VARIABLE: Final = "FLOWFABRIC_URL"
DEFAULT_URL: Final = "embedded://.flowfabric"
DEFAULT_THREADS: Final = 8
DEFAULT_MAX_STUCK_THREADS: Final = 4


def store_url(url: str | None = None) -> str:
    """Return the given URL, else `$FLOWFABRIC_URL`, else that of an embedded store in the working directory.

    An empty one is returned as it is, and refused where it is used: falling back would open another store.
    """
    return url if url is not None else os.environ.get(URL_VARIABLE, DEFAULT_URL)


def shown_url(url: str) -> str:
    """Return a store's URL without user, password and options, as logs may show it."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.partition('?')[0].rpartition('@')[2]}"


def _positive(_: object, attribute: attrs.Attribute[timedelta], value: timedelta) -> None:
    if value <= timedelta():
        raise ValueError(f"{attribute.name} must be longer than 0, not {value}")


def _at_least_one(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{attribute.name} must be a whole number from 1, not {value!r}")


@attrs.frozen(kw_only=True)
class WorkerSettings:
    """How a worker process runs.

    Attributes:
        threads: handlers that run at the same time.
        lanes: where to take work from, and how often each lane goes first; empty for the lanes of the worker's tasks.
        capabilities: words of this process.
        lease: how long a claim holds without renewal; it is renewed three times as often.
        grace: how long a stop waits for handlers that run.
        interrupt_grace: how long a handler may go on after it was told that its result will not count; then its thread
            is counted as lost, and replaced.
        max_stuck_threads: with so many lost threads the process ends, to be started anew.
        memory_limit: bytes that the process may use. An allocation beyond them raises MemoryError, and a process that
            stays close to them ends, to be started anew. None for no limit.
    """

    threads: int = attrs.field(default=DEFAULT_THREADS, validator=attrs.validators.and_(
        attrs.validators.instance_of(int), attrs.validators.ge(1), attrs.validators.le(1000)
    ))  # fmt: skip
    lanes: Mapping[str, int] = attrs.field(factory=dict)
    capabilities: frozenset[str] = attrs.field(default=frozenset(), converter=as_capabilities)
    lease: timedelta = attrs.field(default=timedelta(seconds=30), validator=_positive)
    grace: timedelta = timedelta(seconds=30)
    interrupt_grace: timedelta = attrs.field(default=timedelta(seconds=5), validator=_positive)
    max_stuck_threads: int = attrs.field(default=DEFAULT_MAX_STUCK_THREADS, validator=_at_least_one)
    memory_limit: int | None = attrs.field(default=None, validator=attrs.validators.optional(_at_least_one))

    def __attrs_post_init__(self) -> None:
        for lane, weight in self.lanes.items():
            check_lane(lane)
            if not isinstance(weight, int) or weight < 1:
                raise ValueError(f"the weight of the lane {lane!r} must be a whole number from 1, not {weight!r}")
