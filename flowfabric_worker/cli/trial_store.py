"""A temporary store on the user's servers, under a separate prefix or schema, which is removed afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl, urlencode
from uuid import uuid4

from flowfabric_worker.client import Client
from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import EngineError

_DEFAULT_PREFIX: Final = "ff"


@contextlib.contextmanager
def trial_store(url: str, name: str) -> Iterator[str]:
    """Provide the URL of an empty store on the user's servers for the duration of a block, and erase the store then.

    Args:
        url: the URL of the user's store.
        name: what is added to the prefix (or schema) of the user's store. The new prefix begins with the user's, so
            that rights to the keys and channels of the user's prefix suffice.

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
            # Report the first error, even if erasing fails too.
            with contextlib.suppress(EngineError):
                _remove(engine)
            raise
        _remove(engine)
    finally:
        engine.close()


@contextlib.contextmanager
def trial_client(url: str, name: str) -> Iterator[Client]:
    """Provide a client of a temporary store; or of the user's store, if the user may not create another one beside it.

    In the user's store it works in a namespace of its own, of which upkeep removes what is left after a day.

    Args:
        url: the URL of the user's store.
        name: as in `trial_store`; also the beginning of the namespace.

    Raises:
        EngineError: the store cannot be used.
    """
    with contextlib.closing(open_engine(url, retry_for=0)) as engine:
        may_create = engine.store.may_create_stores()
    if may_create:
        with trial_store(url, name) as beside, Client(beside, retry_for=0) as client:
            yield client
    else:
        with Client(url, namespace=f"{name}-{uuid4().hex[:8]}", retry_for=0) as client:
            yield client


def _remove(engine: Engine) -> None:
    engine.erase()
    engine.store.discard()


def _beside(url: str, name: str) -> str:
    base, _, query = url.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    is_postgres = base.startswith(("postgresql:", "embedded+postgresql:"))
    option, most, form = ("schema", 30, "_{}_{}") if is_postgres else ("prefix", 64, ":{}-{}")
    suffix = form.format(name, uuid4().hex[:8])
    beside = options.get(option, _DEFAULT_PREFIX)[: most - len(suffix)] + suffix
    if base == "memory://":
        # Name the store, because each engine on an unnamed one has a store of its own.
        base = f"memory://{uuid4().hex}"
    return f"{base}?{urlencode({**options, option: beside})}"
