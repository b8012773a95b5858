"""The environments in which tasks run alike, with their delays and numbers of retries."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import attrs

from flowfabric_worker import RetryPolicy, Worker

SOON = timedelta(milliseconds=20)
AT_ONCE = RetryPolicy(max_retries=2, backoff="fixed", initial=timedelta(), jitter=False)
SLOWLY = RetryPolicy(max_retries=2, backoff="fixed", initial=SOON, jitter=False)


@attrs.frozen
class Place:
    """A worker, and what makes its tasks run."""

    worker: Worker
    start: Callable[[], None]
