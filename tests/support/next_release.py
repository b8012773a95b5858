"""A simulated next release: the functions of today under another hash, which write more than today's know."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from flowfabric_worker.engine.core import Item
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.stores.library import CONTRACT_MAJOR, Library, library
from flowfabric_worker.engine.stores.valkey import ValkeyStore
from flowfabric_worker.engine.types.submission import CreateExecutionArgs
from flowfabric_worker.engine.wire import WorkClass, decode_class, pack, unpack

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
    """The engine of the next release: it writes a further policy value, a further part of classes, and gates.

    Attributes:
        gates: budgets that the executions which it makes spend from.
    """

    gates: tuple[str, ...] = ()

    def _item(self, args: CreateExecutionArgs) -> tuple[int, Item]:
        partition, item = super()._item(args)
        values: list[Any] = list(item)
        kind = unpack(values[1])
        work_class = decode_class(kind[0])
        if self.gates:
            work_class = attrs.evolve(work_class, budgets=self.gates, capabilities=("@gates",))
        kind[0] = work_class.encode() + NOVELTY
        kind[4] = (kind[4] or b"|" * 13) + b"9|"
        values[1] = pack(kind)
        return partition, values


@contextmanager
def next_engine(engine: Engine) -> Iterator[NextEngine]:
    """Give an engine of the next release on the same store; its functions leave the servers at the end."""
    assert isinstance(engine.store, ValkeyStore)
    store = copy.copy(engine.store)
    functions = next_library()
    for pool in store.primaries():
        store.execute(pool, "FUNCTION", "LOAD", "REPLACE", functions.source)
    store._functions = _Names(functions)
    yield NextEngine(lambda: (store, None))
    engine.store.remove_release(functions.name)


def gated(lane: str, task: str) -> WorkClass:
    """Return a class whose work needs a gate, written without a reserved capability."""
    return WorkClass(namespace="default", lane=lane, task=task, budgets=("b1",))
