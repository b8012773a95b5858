"""The rules of the layout that no other tool checks, and the Lua lint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lint_lua
import lint_lua_names

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "flowfabric_worker"
LUA = PACKAGE / "lua"
MOST_LINES = 450
MOST_CHARACTERS = 70

BAD_LUA = {
    "a walk over all keys": ("call('KEYS', '*')", "KEYS is used"),
    "a cursor": ("call('HSCAN', key, 0)", "HSCAN is used"),
    "a whole set": ("call('SMEMBERS', key)", "SMEMBERS is used"),
    "a whole hash": ("call('HGETALL', key)", "HGETALL is used"),
    "all names of a hash": ("call('HKEYS', key)", "HKEYS is used"),
    "all values of a hash": ("call('HVALS', key)", "HVALS is used"),
    "a command in small letters": ("call('hgetall', key)", "HGETALL is used"),
    "a command without brackets": ("call 'RANDOMKEY'", "RANDOMKEY is used"),
    "a command spread over lines": ("call(\n  'KEYS',\n  '*'\n)", "KEYS is used"),
    "a command given to a helper": ("ff.chunked('SMEMBERS', key, list)", "SMEMBERS is used"),
    "a forbidden command that is excused": ("call('KEYS', '*') -- bounded: they are few", "KEYS is used"),
    "a sort": ("call('SORT', key)", "SORT is used"),
    "a flush": ("call('FLUSHALL')", "FLUSHALL is used"),
    "a script in a script": ("call('EVAL', text, 0)", "EVAL is used"),
    "a time-out": ("call('EXPIRE', key, 60)", "no key may rely on a time-out"),
    "a time-out in milliseconds": ("call('PEXPIRE', key, 60)", "no key may rely on a time-out"),
    "a value with a time-out": ("call('SETEX', key, 60, value)", "no key may rely on a time-out"),
    "a value with the option PX": ("call('SET', key, value, 'PX', 60)", "no key may rely on a time-out"),
    "a value with the option ex": (
        "call('SET', key, value, 'NX', 'ex', 60)",
        "no key may rely on a time-out",
    ),
    "a list to its end": ("call('LRANGE', key, 0, -1)", "LRANGE runs to the end"),
    "a list to its end in a string": ("call('LRANGE', key, 0, '-1')", "LRANGE runs to the end"),
    "ranks to the end": ("call('ZRANGE', key, 0, -1)", "ZRANGE runs to the end"),
    "ranks that are not written out": ("call('ZRANGE', key, ff.ranks(n))", "ZRANGE runs to the end"),
    "scores without a limit": ("call('ZRANGE', key, 0, now, 'BYSCORE')", "ZRANGE has no bound"),
    "names without a limit": ("call('ZRANGE', key, '-', '+', 'BYLEX')", "ZRANGE has no bound"),
    "scores with a limit of all": ("call('ZRANGEBYSCORE', key, 0, n, 'LIMIT', 0, -1)", "has no bound"),
    "removal by score": ("call('ZREMRANGEBYSCORE', key, 0, now)", "ZREMRANGEBYSCORE has no bound"),
    "a stream without a count": ("call('XRANGE', key, '-', '+')", "XRANGE has no bound"),
    "a stream backwards without a count": ("call('XREVRANGE', key, '+', '-')", "XREVRANGE has no bound"),
    "a name that is not written out": ("call(command, key)", "name is not written out"),
    "an unpack": ("return unpack(list)", "unpack fails on a long table"),
    "an unpack of the library": ("return table.unpack(list)", "unpack fails on a long table"),
    "an excuse without a reason": ("return unpack(list) -- bounded:", "unpack fails on a long table"),
    "an excuse on another line": ("-- bounded: few\nreturn unpack(list)", "unpack fails on a long table"),
    "json": ("return cjson.encode(value)", "cjson is used"),
    "message packs": ("return cmsgpack.pack(value)", "cmsgpack is used"),
    "bits": ("return bit.band(a, b)", "bit is used"),
    "a library under another name": ("local pack = struct", "struct is used"),
    "a hash function": ("return redis.sha1hex(text)", "redis.sha1hex is used"),
    "a log line": ("redis.log(2, 'x')", "redis.log is used"),
    "a member by its text": ("redis['call']('TIME')", "keep to acl_check_cmd"),
    "Valkey's own name": ("server.call('TIME')", "only Valkey knows `server`"),
    "a call under another name": ("local run = redis.call", "redis.call is renamed run"),
}

GOOD_LUA = {
    "named members": "call('HMGET', key, 'state', 'class')",
    "a page by rank": "call('ZRANGE', key, 0, page - 1, 'WITHSCORES')",
    "a page by score": "call('ZRANGE', key, 0, now, 'BYSCORE', 'LIMIT', 0, page)",
    "a page by score, with scores": "call('ZRANGE', key, 0, now, 'BYSCORE', 'LIMIT', 0, page, 'WITHSCORES')",
    "a page by name": "call('ZRANGEBYLEX', key, '[' .. a, '+', 'LIMIT', 0, 8)",
    "a page of a list": "call('LRANGE', key, 0, count - 1)",
    "a page of a stream": "call('XRANGE', key, from, to, 'COUNT', count)",
    "a value": "call('SET', key, value, 'NX')",
    "a value that is called EX": "call('SET', key, 'EX')",
    "a nested call": "call('HSET', key, 'at', f(a, { 1, 2 }), 'by', call('GET', other))",
    "an unpack with a reason": "call('HDEL', key, unpack(list)) -- bounded: at most 500",
    "a helper with a reason": "call(command, key) -- bounded: the caller names one command",
    "a reason at the end of a long call": "call(\n  'ZRANGE', key, 0, -1\n) -- bounded: 16 members",
    "another function called unpack": "local parts = ff.unpack(text)",
    "a comment": "-- never call('KEYS', '*') or redis.log\n--[[ cjson,\n call('SCAN', 0) ]] return 1",
    "a string that only speaks of it": "return 'HGETALL is not for us', [==[ cjson ]] ]==]",
    "a quoted quote": "return 'it\\'s', call('GET', 'cjson')",
    "a field called bit": "return record.bit",
    "Lua's own pcall": "local ok = pcall(run, ctx)",
    "the shared functions": "local call = redis.call\nreturn redis.error_reply('x')",
}


@pytest.mark.parametrize(("source", "message"), BAD_LUA.values(), ids=BAD_LUA.keys())
def test_the_lua_lint_rejects_forbidden_code(source: str, message: str) -> None:
    messages = [breach.message for breach in lint_lua.lint(source)]

    assert len(messages) == 1
    assert message in messages[0]


@pytest.mark.parametrize("source", GOOD_LUA.values(), ids=GOOD_LUA.keys())
def test_the_lua_lint_accepts_allowed_code(source: str) -> None:
    assert lint_lua.lint(source) == []


def test_the_lua_lint_names_the_file_and_the_line_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.lua").write_text("return 1\n")
    (tmp_path / "bad.lua").write_text("--[[ two\nlines ]]\nlocal text = [[\n]]\ncall('KEYS', '*')\n")

    assert lint_lua.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'bad.lua'}:5: KEYS is used, ")


def test_the_lua_lint_is_silent_about_a_clean_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.lua").write_text("return 1\n")

    assert lint_lua.main([str(tmp_path / "good.lua")]) == 0
    assert capsys.readouterr().out == ""


def test_the_lint_of_lua_names_finds_what_nothing_defines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prelude.lua").write_text("local ff = {}\nff.HOUR = 1\nlocal call = redis.call\n")
    (tmp_path / "area.lua").write_text(
        "function ff.wait(hours)\n"
        "  return call('GET', hours * ff.HUOR)\n"
        "end\n"
        "local function inner()\n"
        "  return function() return os.time() end\n"
        "end\n"
        "count = #{ inner, ff.wait, ff.HOUR == 1 }\n"
    )
    area = tmp_path / "area.lua"

    assert lint_lua_names.main(str(tmp_path)) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{area}:2: nothing defines ff.HUOR, correct the name",
        f"{area}:5: os is no global, correct the name or make it local",
        f"{area}:7: count is no global, correct the name or make it local",
    ]


def test_the_lint_of_lua_names_reports_what_does_not_compile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prelude.lua").write_text("local ff = {}\n")
    (tmp_path / "area.lua").write_text("function ff.wait(\n")

    assert lint_lua_names.main(str(tmp_path)) == 1
    assert f"{tmp_path / 'area.lua'}: it does not compile" in capsys.readouterr().out


def test_the_lint_of_lua_names_is_silent_about_clean_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prelude.lua").write_text("local ff = {}\n")
    (tmp_path / "area.lua").write_text("function ff.wait(n)\n  return math.max(n, #ff.wait)\nend\n")

    assert lint_lua_names.main(str(tmp_path)) == 0
    assert capsys.readouterr().out == ""


def test_an_area_has_the_same_name_on_every_layer() -> None:
    areas = [path.stem for path in LUA.glob("*.lua") if not path.stem.startswith("prelude")]
    layers = (
        "flowfabric_worker/sql/{}.sql",
        "flowfabric_worker/engine/backend/{}.py",
        "flowfabric_worker/engine/{}.py",
        "flowfabric_worker/engine/types/{}.py",
        "tests/conformance/test_{}.py",
    )
    missing = [layer.format(area) for area in areas for layer in layers if not (ROOT / layer.format(area)).is_file()]

    assert areas
    assert missing == []


def test_files_and_functions_stay_below_their_limits() -> None:
    code = [path for suffix in ("py", "lua", "sql") for path in PACKAGE.rglob(f"*.{suffix}")]
    modules = [*code, *(ROOT / "scripts").glob("*.py")]
    sizes = {path.relative_to(ROOT).as_posix(): len(path.read_bytes().splitlines()) for path in modules}
    too_long = {name: lines for name, lines in sizes.items() if lines > MOST_LINES}

    assert too_long == {}, f"split what has more than {MOST_LINES} lines"


def test_names_of_tests_are_short_enough_to_read() -> None:
    names = [
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)
    ]

    assert len(names) > 1000
    assert [name for name in names if len(name) > MOST_CHARACTERS] == []


def test_continuous_integration_runs_the_command_that_people_are_told() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]

    assert commands == ['exec "$(dirname "$0")/../scripts/test"']
    for page in ("README.md", "CONTRIBUTING.md"):
        assert re.search(r"^\s*scripts/test$", (ROOT / page).read_text(), re.MULTILINE), page
