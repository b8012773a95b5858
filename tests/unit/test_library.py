"""The function library: its names, its order, and that both sides speak of the same functions."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

import flowfabric_worker.engine.stores.library as module
from flowfabric_worker.engine import limits
from flowfabric_worker.engine.engine import open_engine
from flowfabric_worker.engine.stores.library import CONTRACT_MAJOR, Library, library, lua_files
from flowfabric_worker.engine.stores.valkey import ValkeyStore
from tests.support.postgres import OF_POSTGRES_ALONE
from tests.support.servers import ValkeyServer

ENGINE = Path(module.__file__).parents[1]
LUA = ENGINE.parent / "lua"


def registered() -> list[str]:
    """Return the functions that the Lua files offer."""
    pattern = r"^(?:ff\.)?register(?:_single|_read)?\('(\w+)'"
    return [name for _, text in lua_files() for name in re.findall(pattern, text, re.MULTILINE)]


def called() -> set[str]:
    """Return the functions that the engine calls."""
    methods = (
        "call|call_elsewhere|call_items?|call_encoded|call_each|item_steps|remove|_call_with_secret|_pause_or_resume|"
        "_send_suspension|_operate|_rows"
    )
    pattern = rf"""(?:\.(?:{methods})|\bCall)\(\s*"(\w+)\""""
    return {name for path in ENGINE.rglob("*.py") for name in re.findall(pattern, path.read_text())}


def with_files(monkeypatch: pytest.MonkeyPatch, files: list[tuple[str, str]]) -> Library:
    """Return the library that these files would make."""
    monkeypatch.setattr(module, "lua_files", lambda: files)
    return library.__wrapped__()


def test_a_function_is_offered_once() -> None:
    names = registered()

    assert len(names) > 20
    assert len(set(names)) == len(names)


def test_the_engine_calls_what_is_offered_and_nothing_is_offered_in_vain() -> None:
    assert called() - OF_POSTGRES_ALONE == set(registered())


def test_the_preludes_come_before_the_areas() -> None:
    names = [name for name, _ in lua_files()]
    preludes = [name for name in names if name.startswith("prelude")]

    assert names[0] == "prelude.lua"
    assert names == [*sorted(preludes), *sorted(set(names) - set(preludes))]


def test_every_name_carries_the_major_and_the_hash_of_the_library() -> None:
    name = library().name

    assert re.fullmatch(rf"ff{CONTRACT_MAJOR}_[0-9a-f]{{12}}", name)
    assert library().source.startswith(f"#!lua name={name}\n")
    assert library().function("claim_many") == f"{name}_claim_many"
    assert "@NAMES@" not in library().source
    assert f"'{name}_' .. name" in library().source


def test_the_same_files_make_the_same_library(monkeypatch: pytest.MonkeyPatch) -> None:
    files = lua_files()

    assert with_files(monkeypatch, files) == with_files(monkeypatch, list(files))


def test_any_change_makes_a_library_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    files = lua_files()

    changed = with_files(monkeypatch, [*files[:-1], (files[-1][0], files[-1][1] + "-- one more line\n")])

    assert changed.name != library().name


def test_areas_do_not_share_their_local_names(monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_files(monkeypatch, [("prelude.lua", "local ff = {}\n"), ("a.lua", "local x = 1\n")])

    assert made.source.endswith("local ff = {}\n\ndo\nlocal x = 1\nend\n")


def test_loading_only_adds(valkey: ValkeyServer) -> None:
    client = valkey.client()
    other = "#!lua name=another_release\nredis.register_function('another_release_ping', function() return 1 end)\n"
    client.function_load(other, replace=True)
    engine = open_engine(f"{valkey.url}?prefix=library")
    assert isinstance(engine.store, ValkeyStore)

    loaded = [engine.store.install() for _ in range(3)]

    engine.close()
    assert loaded[1:] == [False, False]
    names = {entry[1] for entry in client.function_list()}
    assert {b"another_release", library().name.encode()} <= names
    assert client.fcall("another_release_ping", 0) == 1
    client.function_delete("another_release")


def test_lua_has_the_same_constants_as_the_limits() -> None:
    prelude = (LUA / "prelude.lua").read_text()
    constants: dict[str, int] = {}
    for name, expression in re.findall(r"^ff\.([A-Z_]+) = ([\w.* ]+)$", prelude, re.MULTILINE):
        factors = [factor.strip() for factor in expression.split("*")]
        constants[name] = math.prod(constants[f[3:]] if f.startswith("ff.") else int(f) for f in factors)
    shared = constants.keys() & vars(limits).keys()

    assert shared >= {"MAX_CALL_ITEMS", "MAX_CALLS_REMEMBERED", "MAX_CLASSES_PER_LANE", "DEFAULT_RETENTION_MS"}
    assert {name: constants[name] for name in shared} == {name: getattr(limits, name) for name in shared}


@pytest.mark.parametrize("name", registered())
def test_a_stored_function_has_a_header(name: str) -> None:
    call = re.compile(rf"^(?:ff\.)?register(?:_single|_read)?\('{name}'.*", re.MULTILINE)
    text, found = next((text, found) for _, text in lua_files() if (found := call.search(text)))
    header = re.search(r"(?:^-- .*\n)+\Z", text[: found.start()], re.MULTILINE)

    assert header is not None
    assert header.group().startswith(f"-- {name}: ")
    assert "\n-- Replies" in header.group()
    # Every operation on a flow takes the flow.
    takes_arguments = "args)" in found.group() or "(ctx, flow)" in found.group()
    assert ("\n-- Arguments" in header.group()) == takes_arguments


@pytest.mark.parametrize(("name", "text"), lua_files(), ids=[name for name, _ in lua_files()])
def test_a_lua_file_says_in_its_first_line_what_it_holds(name: str, text: str) -> None:
    assert re.match(r"-- [A-Z][^:]+", text), name
    assert "part of what every stored function shares" not in text
