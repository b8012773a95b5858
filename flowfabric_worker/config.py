"""Configuration: the URL of the store, and the settings of a worker process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import attrs

from flowfabric_worker.engine.ids import check_lane
from flowfabric_worker.engine.types import checks
from flowfabric_worker.engine.types.checks import as_capabilities

URL_VARIABLE: Final = "FLOWFABRIC_URL"
DEFAULT_URL: Final = "embedded://.flowfabric"
DEFAULT_THREADS: Final = 8
MAX_THREADS: Final = 1000
DEFAULT_MAX_STUCK_THREADS: Final = 4


def store_url(url: str | None = None) -> str:
    """Return the given URL, or `$FLOWFABRIC_URL`, or that of an embedded store in the working directory.

    An empty URL is returned unchanged, so that its use is refused: a fallback would open another store.
    """
    return url if url is not None else os.environ.get(URL_VARIABLE, DEFAULT_URL)


def shown_url(url: str) -> str:
    """Return the URL of a store without user, password and options, so that it may be logged."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.partition('?')[0].rpartition('@')[2]}"


def _positive(_: object, attribute: attrs.Attribute[timedelta], value: timedelta) -> None:
    if value <= timedelta():
        raise ValueError(f"{attribute.name} must be longer than 0, not {value}.")


def _at_least_one(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{attribute.name} must be a whole number of at least 1, not {value!r}.")


@attrs.frozen(kw_only=True)
class WorkerSettings:
    """The settings of a worker process.

    Attributes:
        threads: the number of handlers that run at the same time, 1 to 1000.
        lanes: the lanes to claim from, each with its weight; empty for the lanes of the worker's tasks.
        capabilities: the capabilities of this process, which tasks may require.
        lease: how long a lease lasts without renewal; the worker renews it after a third of this time.
        grace: how long a stop waits for running handlers.
        interrupt_grace: how long a handler may keep running after it was told that its result will not count; then its
            thread counts as stuck, and is replaced.
        max_stuck_threads: the number of stuck threads at which the process stops for a restart.
        memory_limit: the most bytes that the process may use. A larger allocation raises MemoryError, and a process
            that stays close to the limit stops for a restart. None for no limit.
    """

    threads: int = attrs.field(default=DEFAULT_THREADS, validator=checks.integer(1, MAX_THREADS))
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
                raise ValueError(
                    f"The weight of the lane {lane!r} must be a whole number of at least 1, not {weight!r}."
                )
