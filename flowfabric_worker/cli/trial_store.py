"""A temporary store on the user's servers, under a separate prefix, which is erased afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl, urlencode
from uuid import uuid4

from flowfabric_worker.engine.engine import open_engine
from flowfabric_worker.engine.errors import EngineError

_DEFAULT_PREFIX: Final = "ff"
_MOST_LETTERS: Final = 64


@contextlib.contextmanager
def trial_store(url: str, name: str) -> Iterator[str]:
    """Provide the URL of an empty store on the user's servers for the length of a block, and then erase it.

    Args:
        url: the URL of the user's store.
        name: a part of the prefix. It follows the prefix of the user's store, so rights that are bound to keys and
            channels of that prefix suffice.

    Raises:
        EngineError: the store cannot be used.
    """
    beside = _beside(url, name)
    engine = open_engine(beside, retry_for=0)
    try:
        try:
            engine.prepare(testing=True)
            yield beside
        except BaseException:
            # The first error is the one to report, even if erasing fails too.
            with contextlib.suppress(EngineError):
                engine.erase()
            raise
        engine.erase()
    finally:
        engine.close()


def _beside(url: str, name: str) -> str:
    base, _, query = url.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    suffix = f":{name}-{uuid4().hex[:8]}"
    prefix = options.get("prefix", _DEFAULT_PREFIX)[: _MOST_LETTERS - len(suffix)] + suffix
    if base == "memory://":
        # Without a name, each engine would get a separate store.
        base = f"memory://{uuid4().hex}"
    return f"{base}?{urlencode({**options, 'prefix': prefix})}"
