"""Every operation answers objects that fail when they are used, or have no end, with a typed error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.stores.base import Store
from tests.support.engines import empty_engine
from tests.support.operations import OPERATIONS

SET_UP = ("erase", "prepare", "prune_libraries", "close")
CASES = {case.partition(":")[0]: case for case in reversed(OPERATIONS) if case.partition(":")[0] not in SET_UP}


class HostileError(Exception):
    """What a hostile object raises."""


def fail(*_: object, **__: object) -> Any:
    raise HostileError


def hostile(base: type, *methods: str) -> Any:
    """Return an instance of a subclass whose methods fail."""
    return type(f"Hostile{base.__name__}", (base,), dict.fromkeys(methods, fail))()


def nested() -> list[Any]:
    outer: list[Any] = []
    for _ in range(10_000):
        outer = [outer]
    return outer


def cyclic() -> list[Any]:
    outer: list[Any] = []
    outer.append(outer)
    return outer


OPERATORS = ("__eq__", "__hash__", "__len__", "__iter__", "__bool__", "__lt__", "__index__", "__repr__", "__str__")
HOSTILE: dict[str, Callable[[], Any]] = {
    "unshowable": lambda: hostile(object, "__repr__", "__str__", "__format__"),
    "unusable": lambda: hostile(object, *OPERATORS),
    "str": lambda: hostile(str, "encode", "isascii", "partition", *OPERATORS),
    "int": lambda: hostile(int, "__le__", "__gt__", "__format__", *OPERATORS),
    "list": lambda: hostile(list, "__getitem__", *OPERATORS),
    "dict": lambda: hostile(dict, "items", "keys", "values", *OPERATORS),
    "without a class": lambda: type("Classless", (), {"__class__": property(fail)})(),
    "nested": nested,
    "cyclic": cyclic,
}


@pytest.fixture
def store() -> Iterator[Store]:
    engine = open_engine("memory://")
    engine.prepare(testing=True)
    yield engine.store
    engine.close()


def recorded(engine: Engine, case: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments that a case of an operation passes first."""
    act, calls = OPERATIONS[case](engine), []
    name = case.partition(":")[0]
    operation = getattr(engine, name)

    def record(*args: Any, **kwargs: Any) -> Any:
        calls.append((list(args), kwargs))
        return operation(*args, **kwargs)

    object.__setattr__(engine, name, record)
    act()
    return calls[0] if calls else ([], {})


@pytest.mark.parametrize("name", CASES)
def test_hostile_objects_are_refused_with_a_typed_error(store: Store, name: str) -> None:
    args, kwargs = recorded(empty_engine(store), CASES[name])
    engine = empty_engine(store)
    for place in [*range(len(args)), *kwargs]:
        for kind, make in HOSTILE.items():
            given: Any = [list(args), dict(kwargs)]
            given[isinstance(place, str)][place] = make()
            try:
                answer = getattr(engine, name)(*given[0], **given[1])
                if isinstance(answer, Iterator):
                    next(answer, None)
            except EngineError:
                continue
            except HostileError:
                # What the iterator of a caller raises is for the caller, who streams creations through it.
                assert name == "create_in_batches", f"{name} let through what a hostile object ({kind}) raised"


def test_every_operation_is_guarded() -> None:
    own = {name for name in dir(EngineBackend) if getattr(Engine, name) is not getattr(EngineBackend, name)}

    unguarded = {name for name in own if not hasattr(getattr(Engine, name), "__wrapped__")}
    assert {name for name in unguarded if not name.startswith("_")} == set()


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError(), OSError("no more files")])
def test_an_error_of_the_process_is_no_refusal(store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    engine = empty_engine(store)

    def call(*_: object) -> Any:
        raise error

    monkeypatch.setattr(engine.store, "call", call)
    with pytest.raises(type(error)):
        engine.run_upkeep()
