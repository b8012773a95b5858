"""The rules of the stored functions, called alone on the store: for tests that hold them against Python's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.stores.base import Argument
from flowfabric_worker.engine.stores.library import joined, lua_files
from tests.support.executions import raw_client, raw_key

Probe: TypeAlias = Callable[..., Any]

_PROBES = """
-- public_state: Arguments: stored states. Answers: the public state of each.
ff.register('public_state', { 'no-writes' }, function(_, args)
  local answer = {}
  for i, state in ipairs(args) do
    answer[i] = ff.words(state).public
  end
  return answer
end)

-- backoff: Arguments: a stored policy, retries made before, draw. Answers: ms as text.
ff.register('backoff', { 'no-writes' }, function(_, args)
  return ff.text(ff.backoff(ff.policy({ policy = args[1] }), tonumber(args[2]), tonumber(args[3])))
end)
"""


def _probe_postgres(engine: Engine) -> Probe:
    """Return a probe that calls the same rules as SQL functions."""
    from tests.support.postgres_view import PostgresView

    view, store = PostgresView(engine), cast(Any, engine.store)
    functions = store.library.schema_of(store.schema)

    def call(function: str, *arguments: Argument) -> Any:
        if function == "public_state":
            query = (
                f'SELECT "{functions}".public_state(state) FROM unnest(%s::text[]) WITH ORDINALITY AS each(state, nth)'
            )
            return [
                public.encode() for (public,) in view.rows(query + " ORDER BY nth", [str(each) for each in arguments])
            ]
        query = f'SELECT "{functions}".backoff(%s::bytea, %s::bigint, %s::float8)::text'
        policy, retries, draw = arguments
        return view.rows(query, policy, int(retries), float(draw))[0][0].encode()

    return call


@contextmanager
def probe(engine: Engine) -> Iterator[Probe]:
    """Call a function of `_PROBES` by its name, as long as the context lasts."""
    if engine.backend_label() == "postgresql":
        yield _probe_postgres(engine)
        return
    client = raw_client(engine)
    prelude = joined((name, text) for name, text in lua_files() if name.startswith("prelude"))
    client.function_load(f"#!lua name=probe\n{(prelude + _PROBES).replace('@NAMES@', 'probe_')}", replace=True)

    def call(function: str, *arguments: Argument) -> Any:
        return client.fcall(f"probe_{function}", 1, raw_key(engine, 0, "")[:-1], *arguments)

    try:
        yield call
    finally:
        client.function_delete("probe")
