"""A simulated next release: the functions of today under another hash, which write more than today's know."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from flowfabric_worker.engine.core import Item
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.stores.library import CONTRACT_MAJOR, Library, library
from flowfabric_worker.engine.stores.valkey import ValkeyStore
from flowfabric_worker.engine.types.submission import CreateExecutionArgs
from flowfabric_worker.engine.wire import decode_class, pack, unpack

NOVELTY = b"3:new"
"""A further part of packed texts."""

# It stands between the functions and the store. What it adds is layout, so it does not depend on how they are written.
_WRITES_MORE = """
local function further(value)
  return string.sub(value, -5) == '3:new' and value or value .. '3:new'
end

-- Which fields of some kinds of keys hold packed texts: waitpoints, signals, streams, secrets.
local PACKED = { w = '^[wsed].', g = '^h', stream = '^a%d', secrets = '^s.' }

local function next_call(command, key, ...)
  local values = { ... }
  if not key then
    return redis.call(command)
  elseif command == 'HSET' and string.find(key, ':x:', 1, true) then
    for i = 1, #values, 2 do
      if values[i] == 'created' then
        values[#values + 1], values[#values + 2] = 'novelty', 'kept'
        local base = string.match(key, '^(.*):x:')
        redis.call('ZADD', base .. ':due', 1, 'znew kind')
        redis.call('ZADD', base .. ':retention', 1, 'znew kind')
        break
      elseif values[i] == 'holder' then
        values[i + 1] = further(values[i + 1])
      end
    end
  elseif command == 'HSET' and PACKED[string.match(key, '}:(%l+)')] then
    for i = 1, #values, 2 do
      if string.find(values[i], PACKED[string.match(key, '}:(%l+)')]) then
        values[i + 1] = further(values[i + 1])
      end
    end
  elseif command == 'HSET' and (string.find(key, ':schedule$') or string.find(key, ':worker$')) then
    for i = 2, #values, 2 do
      values[i] = further(values[i])
    end
  end
  return redis.call(command, key, unpack(values))
end

"""


def next_library() -> Library:
    """Return the functions of the next release."""
    today = library()
    header, _, body = today.source.partition("\n")
    assert body.count("call = redis.call\n") == 1, "the functions reach the store in one way"
    body = _WRITES_MORE + body.replace("call = redis.call\n", "call = next_call\n")
    name = f"ff{CONTRACT_MAJOR}_{hashlib.sha256(body.encode()).hexdigest()[:12]}"
    return Library(name, f"{header.replace(today.name, name)}\n{body.replace(today.name, name)}")


class _Names(dict[str, str]):
    """The names of the next release's functions, where a store looks up those of today."""

    def __init__(self, functions: Library) -> None:
        super().__init__()
        self._functions = functions

    def get(self, name: str, default: Any = None) -> Any:
        del default
        return self._functions.function(name)


class NextEngine(Engine):
    """The engine of the next release: it writes a further policy value, a further part of classes, and a new limit.

    Attributes:
        has_limit: whether the executions that it makes have a limit of a kind that only it knows.
    """

    has_limit = False

    def _item(self, args: CreateExecutionArgs) -> tuple[int, Item]:
        partition, item = super()._item(args)
        values: list[Any] = list(item)
        kind = unpack(values[1])
        work_class = decode_class(kind[0])
        if self.has_limit:
            work_class = attrs.evolve(work_class, capabilities=("@limit",))
        kind[0] = work_class.encode() + NOVELTY
        kind[4] = (kind[4] or b"|" * 14) + b"9|"
        values[1] = pack(kind)
        return partition, values


# What it writes more on Postgres is done by triggers, which only the functions of the next release set off.
_NEXT_TABLES = """
ALTER TABLE db.executions ADD COLUMN IF NOT EXISTS novelty bytea;
CREATE OR REPLACE FUNCTION db.further(value bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN value LIKE '%3:new' THEN value ELSE value || '3:new'::bytea END
$$;
CREATE OR REPLACE FUNCTION db.write_more() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_TABLE_NAME = 'executions' AND TG_OP = 'INSERT' THEN
    NEW.novelty := 'kept';
    INSERT INTO db.entries (p, due_in, kind, member, due)
      VALUES (NEW.p, 'd', 'z', 'new kind', 1), (NEW.p, 'r', 'z', 'new kind', 1) ON CONFLICT DO NOTHING;
  ELSIF TG_TABLE_NAME = 'executions' THEN
    NEW.holder := db.further(NEW.holder);
  ELSIF TG_TABLE_NAME = 'waitpoints' THEN
    NEW.waitpoint := db.further(NEW.waitpoint); NEW.decision := db.further(NEW.decision);
  ELSIF TG_TABLE_NAME = 'closings' THEN
    NEW.closing := db.further(NEW.closing);
  ELSIF TG_TABLE_NAME = 'signals' THEN
    NEW.head := db.further(NEW.head);
  ELSIF TG_TABLE_NAME = 'stream_attempts' THEN
    NEW.state := db.further(NEW.state);
  ELSIF TG_TABLE_NAME = 'secrets' THEN
    NEW.secret := db.further(NEW.secret);
  ELSE
    NEW.entry := db.further(NEW.entry);
  END IF;
  RETURN NEW;
END $$;
"""
_NEXT_TRIGGER = """
CREATE OR REPLACE TRIGGER write_more BEFORE INSERT OR UPDATE ON db.{} FOR EACH ROW
  WHEN (current_setting('ff.release', true) = 'next') EXECUTE FUNCTION db.write_more();
"""
_NEXT_FUNCTIONS = """
DO $do$
DECLARE
  operation regprocedure;
BEGIN
  FOR operation IN
    SELECT oid FROM pg_proc WHERE pronamespace = '"{}"'::regnamespace AND proargtypes = '23 1001'::oidvector
  LOOP
    EXECUTE format('ALTER FUNCTION %s SET ff.release = next', operation);
  END LOOP;
END $do$;
"""


def _next_postgres(store: Any) -> Any:
    """Return a store that calls the functions of the next release, which are installed beside today's."""
    following = copy.copy(store)
    following._queries = {}
    following.library = attrs.evolve(store.library, name=f"v{CONTRACT_MAJOR}_{'0' * 11}1")
    following.install()
    tables = ("executions", "workers", "schedules", "waitpoints", "closings", "signals", "stream_attempts", "secrets")
    script = _NEXT_TABLES + "".join(map(_NEXT_TRIGGER.format, tables))
    with following.connection() as connection:
        connection.execute(re.sub(r"\bdb\.", f'"{store.schema}".', script), timeout=10)
        connection.execute(_NEXT_FUNCTIONS.format(following.library.schema_of(store.schema)), timeout=10)
    return following


@contextmanager
def next_engine(engine: Engine) -> Iterator[NextEngine]:
    """Give an engine of the next release on the same store; its functions leave the servers at the end."""
    if engine.backend_label() == "postgresql":
        following = _next_postgres(engine.store)
        yield NextEngine(lambda: (following, None))
        engine.store.remove_release(following.library.schema_of(following.schema))
        return
    assert isinstance(engine.store, ValkeyStore)
    store = copy.copy(engine.store)
    functions = next_library()
    for pool in store.primaries():
        store.execute(pool, "FUNCTION", "LOAD", "REPLACE", functions.source)
    store._functions = _Names(functions)
    yield NextEngine(lambda: (store, None))
    engine.store.remove_release(functions.name)
