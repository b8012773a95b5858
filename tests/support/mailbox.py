"""Where handlers of tests hand out the tokens of their waitpoints."""

from __future__ import annotations

import queue
from typing import Any

from flowfabric_worker import Client, Worker


class Mailbox:
    """Take what handlers hand out, in order, and answer it.

    Args:
        worker: the worker whose handlers hand tokens out; answers go to its store.
    """

    def __init__(self, worker: Worker) -> None:
        self._tokens: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._worker = worker

    def post(self, token: str) -> None:
        self._tokens.put(token)

    def take(self) -> str:
        """Return the next token that was handed out; wait for it."""
        return self._tokens.get(timeout=10)

    def __len__(self) -> int:
        return self._tokens.qsize()

    @property
    def client(self) -> Client:
        """A client of the store that the worker uses now."""
        assert self._worker.url is not None
        return Client(self._worker.url)

    def signal(self, token: str, name: str, payload: Any = None, **options: Any) -> Any:
        with self.client as client:
            return client.signal(token, name, payload, **options)

    def approve(self, token: str, approved: bool, **options: Any) -> Any:
        with self.client as client:
            return client.approve(token, approved, **{"by": "ann", **options})
