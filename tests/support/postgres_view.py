"""A partition of a Postgres store, seen under the names that its parts have on Valkey.

The tests look behind the engine, and damage what they find, on every store in the same way: this shows the rows of the
tables as the hashes, sets and streams that they stand for.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psycopg
import redis

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.stores.postgres import PostgresStore
from flowfabric_worker.engine.wire import pack, unpack

INDEXES = {"namespace", "lane_id", "class_id", "ready", "due", "due_in", "listed", "suspended", "p", "uuid"}
_TWO_TEXTS = re.compile(rb"7:default(\d+):")
_KEY = re.compile(rb"[^{]*\{fp:(\d+)\}:(.*)", re.DOTALL)
# The parts of a partition that are tables of a name and an entry.
_HASHES = {b"worker": ("workers", "worker"), b"task": ("tasks", "task"), b"schedule": ("schedules", "schedule")}
_SETS = {b"workers": ("workers", "worker"), b"tasks": ("tasks", "task"), b"schedules": ("schedules", "schedule")}
_MODES = {b"frames": "durable", b"deltas": "summary", b"live": "best_effort"}
_OF_WAITS = (b"w", b"o", b"g", b"s0", b"s1")
_INDEX = {b"due": "d", b"retention": "r"}
# The kinds of the entries that Valkey's indexes name by a letter before the member.
_KINDS = "cfklqtw"


@functools.lru_cache(maxsize=1)
def _session(conninfo: str) -> psycopg.Connection[Any]:
    return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return str(value).encode()


class PostgresView:
    """What a plain client of Valkey shows of a partition, as far as the tests ask for it."""

    def __init__(self, engine: Engine) -> None:
        store = engine.store
        assert isinstance(store, PostgresStore)
        self.schema = store.schema
        self._conninfo = store._pool.connection_kwargs["conninfo"]

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a query; `db.` stands for the schema."""
        placed = re.sub(r"\bdb\.", f'"{self.schema}".', query)
        found = _session(self._conninfo).execute(placed, values, binary=True)  # type: ignore[arg-type]
        return found.fetchall() if found.description else []

    def _one(self, query: str, *values: Any) -> Any:
        rows = self.rows(query, *values)
        return rows[0][0] if rows else None

    def columns(self, table: str) -> list[str]:
        """Return the names of a table's columns."""
        return [
            name
            for (name,) in self.rows(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
                f"{self.schema}.{table}",
            )
        ]

    @staticmethod
    def _parse(key: str | bytes) -> tuple[int, bytes]:
        found = _KEY.fullmatch(_bytes(key))
        assert found is not None, key
        return int(found[1]), found[2]

    # Hashes

    def hgetall(self, key: str | bytes) -> dict[bytes, bytes]:
        p, name = self._parse(key)
        kind, _, rest = name.partition(b":")
        if kind == b"x":
            columns = [name for name in self.columns("executions") if name not in INDEXES]
            rows = self.rows(
                f"SELECT {','.join(columns)} FROM db.executions WHERE p = %s AND uuid = %s", p, rest.decode()
            )
            values = dict(zip(columns, rows[0], strict=True)) if rows else {}
            found = {column.encode(): value for column, value in values.items() if value is not None}
            for number, step, value in self.rows(
                "SELECT number, name, value FROM db.steps WHERE p = %s AND uuid = %s", p, rest.decode()
            ):
                found |= {b"step#%d" % number: step, b"step:" + step: value}
            return found
        if kind == b"lane":
            rows = self.rows("SELECT id, revision, paused, turn FROM db.lanes WHERE p = %s AND lane = %s", p, rest)
            if not rows:
                return {}
            lane, revision, paused, turn = rows[0]
            counts = self.rows("SELECT state, sum(change) FROM db.depths WHERE lane_id = %s GROUP BY state", lane)
            told = {state.encode(): _bytes(int(count)) for state, count in counts}
            told |= {b"paused": _bytes(paused)} if paused is not None else {}
            return told | {b"revision": _bytes(revision), b"turn": _bytes(turn)}
        if kind == b"waiters":
            return {_bytes(waiter): b"" for (waiter,) in self.rows("SELECT waiter FROM db.waiters WHERE p = %s", p)}
        if kind == b"sets":
            return {_bytes(name): b"" for (name,) in self.rows(
                "SELECT DISTINCT set_name FROM db.waiters WHERE p = %s AND set_name <> 'feed'", p)}  # fmt: skip
        if kind == b"claims":
            return {field + b"\0" + _bytes(turn): pack(answer) for field, turn, answer in self.rows(
                "SELECT field, turn, answer FROM db.claims WHERE p = %s", p)}  # fmt: skip
        if kind == b"damage":
            return {_bytes(uuid): damage for uuid, damage in self.rows(
                "SELECT uuid, damage FROM db.damaged WHERE p = %s", p)}  # fmt: skip
        if kind in (b"w", b"g", b"s0", b"s1"):
            return self._waits(p, kind, rest.decode())
        if kind == b"stream":
            return self._stream(p, rest.decode())
        if kind == b"o":
            raise redis.ResponseError("it is a sorted set")
        if kind == b"secrets":
            found = {
                b"s" + kid: secret for kid, secret in self.rows("SELECT kid, secret FROM db.secrets WHERE p = %s", p)
            }
            return found | {b"current": self._one("SELECT kid FROM db.partitions WHERE p = %s", p)}
        if kind in _HASHES:
            table, column = _HASHES[kind]
            return dict(self.rows(f"SELECT {column}, entry FROM db.{table} WHERE p = %s", p))
        if kind == b"held":
            return {
                _bytes(each): b"" for (each,) in self.rows("SELECT DISTINCT class_id FROM db.depths WHERE p = %s", p)
            }
        raise AssertionError(f"no hash {key!r}")

    def _waits(self, p: int, kind: bytes, uuid: str) -> dict[bytes, bytes]:
        """Return the waitpoints, the signals or one of the suspensions of an execution."""
        found: dict[bytes, bytes | None] = {}
        if kind == b"w":
            for id_, name, waitpoint, shown in self.rows(
                "SELECT id, name, waitpoint, shown FROM db.waitpoints WHERE p = %s AND uuid = %s", p, uuid
            ):
                found |= {b"w" + id_: waitpoint, b"n" + name: id_, b"v" + id_: shown}
        elif kind == b"g":
            for number, id_, head, payload in self.rows(
                "SELECT number, id, head, payload FROM db.signals WHERE p = %s AND uuid = %s", p, uuid
            ):
                found |= {b"h%d" % number: head, b"p%d" % number: payload, b"i" + id_: b"%d" % number}
            last = self._one("SELECT last_signal FROM db.waits WHERE p = %s AND uuid = %s", p, uuid)
            found[b"last"] = None if last is None else b"%d" % last
        else:
            names = (
                "id",
                "at",
                "until",
                "behavior",
                "reason",
                "delay",
                "continuation",
                "condition",
                "counts",
                "waitpoints",
            )
            rows = self.rows(f"SELECT {', '.join(names)} FROM db.suspensions WHERE p = %s AND uuid = %s "
                             "AND number %% 2 = %s",
                             p, uuid, int(kind[1:]))  # fmt: skip
            found = {name.encode(): value for name, value in zip(names, rows[0], strict=True)} if rows else {}
        return {field: value for field, value in found.items() if value is not None}

    def _set_of_waits(self, p: int, kind: bytes, uuid: str, field: bytes, value: bytes | None) -> None:
        if kind == b"w" and field[:1] in (b"w", b"v"):
            column = "waitpoint" if field[:1] == b"w" else "shown"
            self.rows(f"UPDATE db.waitpoints SET {column} = %s WHERE p = %s AND uuid = %s AND id = %s",
                      value, p, uuid, field[1:])  # fmt: skip
        elif kind == b"g" and field[:1] in (b"h", b"p"):
            column = "head" if field[:1] == b"h" else "payload"
            self.rows(f"UPDATE db.signals SET {column} = %s WHERE p = %s AND uuid = %s AND number = %s",
                      value, p, uuid, int(field[1:]))  # fmt: skip
        elif kind in (b"s0", b"s1"):
            self.rows(f"UPDATE db.suspensions SET {field.decode()} = %s WHERE p = %s AND uuid = %s "
                      "AND number %% 2 = %s",
                      value, p, uuid, int(kind[1:]))  # fmt: skip

    def _stream(self, p: int, uuid: str) -> dict[bytes, bytes]:
        """Return what is stored of the streams of an execution, but for the frames."""
        names = ("last", "live", "deltas", "calls", "readers")
        rows = self.rows(f"SELECT {', '.join(names)} FROM db.streams WHERE p = %s AND uuid = %s", p, uuid)
        found = {name.encode(): value for name, value in zip(names, rows[0], strict=True)} if rows else {}
        for attempt, state, summary in self.rows(
            "SELECT attempt, state, summary FROM db.stream_attempts WHERE p = %s AND uuid = %s", p, uuid
        ):
            found |= {b"a" + attempt: state, b"s" + attempt: summary}
        found |= dict(self.rows("SELECT place, reply FROM db.stream_replies WHERE p = %s AND uuid = %s", p, uuid))
        return {field: value for field, value in found.items() if value is not None}

    def _set_of_stream(self, p: int, uuid: str, field: bytes, value: bytes | None) -> None:
        if field in (b"last", b"live", b"deltas", b"calls", b"readers"):
            self.rows(f"UPDATE db.streams SET {field.decode()} = %s WHERE p = %s AND uuid = %s", value, p, uuid)
        elif field[:1] in (b"a", b"s"):
            column = "state" if field[:1] == b"a" else "summary"
            self.rows(f"UPDATE db.stream_attempts SET {column} = %s WHERE p = %s AND uuid = %s AND attempt = %s",
                      value, p, uuid, field[1:])  # fmt: skip
        else:
            self.rows("UPDATE db.stream_replies SET reply = %s WHERE p = %s AND uuid = %s AND place = %s",
                      value, p, uuid, field)  # fmt: skip

    def hexists(self, key: str | bytes, field: str | bytes) -> bool:
        return _bytes(field) in self.hgetall(key)

    def xlen(self, key: str | bytes) -> int:
        p, name = self._parse(key)
        kind, _, uuid = name.partition(b":")
        return int(self._one("SELECT count(*) FROM db.frames WHERE p = %s AND uuid = %s AND mode = %s",
                             p, uuid.decode(), _MODES[kind]))  # fmt: skip

    def execute_command(self, command: str, key: str | bytes, frame_id: str, *fields: str) -> None:
        assert command == "XADD"
        p, name = self._parse(key)
        kind, _, uuid = name.partition(b":")
        ms, _, n = frame_id.partition("-")
        self.rows("INSERT INTO db.frames (p, uuid, ms, n, mode, frame, payload) VALUES (%s, %s, %s, %s, %s, %s, %s)", p,
                  uuid.decode(), int(ms), int(n), _MODES[kind], fields[1].encode(), fields[3].encode())  # fmt: skip

    def hget(self, key: str | bytes, field: str | bytes) -> bytes | None:
        p, name = self._parse(key)
        if name == b"meta":
            column = {b"feed_last": "latest"}[_bytes(field)]
            return _bytes(self._one(f"SELECT {column} FROM db.partitions WHERE p = %s", p))
        return self.hgetall(key).get(_bytes(field))

    def hkeys(self, key: str | bytes) -> list[bytes]:
        return list(self.hgetall(key))

    def hvals(self, key: str | bytes) -> list[bytes]:
        return list(self.hgetall(key).values())

    def hlen(self, key: str | bytes) -> int:
        return len(self.hgetall(key))

    def hset(
        self, key: str | bytes, field: Any = None, value: Any = None, mapping: Mapping[Any, Any] | None = None
    ) -> None:
        for each, new in {**(mapping or {}), **({field: value} if field is not None else {})}.items():
            self._set(key, _bytes(each), None if new is None else _bytes(new))

    def hdel(self, key: str | bytes, field: str | bytes) -> None:
        self._set(key, _bytes(field), None)

    def _set(self, key: str | bytes, field: bytes, value: bytes | None) -> None:
        p, name = self._parse(key)
        kind, _, rest = name.partition(b":")
        if kind == b"x":
            self._set_of_record(p, rest.decode(), field, value)
        elif kind == b"held":
            self.rows("DELETE FROM db.depths WHERE p = %s AND class_id = %s", p, int(field))
        elif kind == b"lane" and field not in (b"revision", b"paused", b"answered", b"turn"):
            # A counter is a number here; the nearest damage is that it is lost.
            self.rows("DELETE FROM db.depths WHERE p = %s AND state = %s AND lane_id = "
                      "(SELECT id FROM db.lanes WHERE p = %s AND lane = %s)", p, field.decode(), p, rest)  # fmt: skip
        elif kind == b"meta":
            self._set_setting(p, field, value)
        elif kind == b"lane" and field == b"answered":
            self.rows("UPDATE db.lanes SET answered = %s WHERE p = %s AND lane = %s", value, p, rest)
        elif kind == b"lane":
            # These are numbers here; the nearest damage is that one is lost.
            number = int(value) if value is not None and value.isdigit() else None if field == b"paused" else 0
            self.rows(f"UPDATE db.lanes SET {field.decode()} = %s::bigint WHERE p = %s AND lane = %s", number, p, rest)
        elif kind == b"claims":
            whole, _, turn = field.rpartition(b"\0")
            self.rows("UPDATE db.claims SET answer = ARRAY[%s::bytea] WHERE p = %s AND field = %s "
                      "AND turn = %s::bigint",
                      value, p, whole, turn.decode())  # fmt: skip
        elif kind == b"stream":
            self._set_of_stream(p, rest.decode(), field, value)
        elif kind in (b"w", b"g", b"s0", b"s1"):
            self._set_of_waits(p, kind, rest.decode(), field, value)
        elif kind == b"secrets" and field == b"current":
            self.rows("UPDATE db.partitions SET kid = %s WHERE p = %s", value, p)
        elif kind == b"secrets" and field == b"kids":
            pass  # The rows themselves are the list.
        elif kind == b"secrets" and value is None:
            self.rows("UPDATE db.secrets SET secret = NULL WHERE p = %s AND kid = %s", p, field[1:])
        elif kind == b"secrets":
            self.rows("INSERT INTO db.secrets (p, kid, secret) VALUES (%s, %s, %s) "
                      "ON CONFLICT (p, kid) DO UPDATE SET secret = excluded.secret", p, field[1:], value)  # fmt: skip
        elif kind in _HASHES:
            table, column = _HASHES[kind]
            self.rows(f"INSERT INTO db.{table} (p, {column}, entry) VALUES (%s, %s, %s) "
                      f"ON CONFLICT (p, {column}) DO UPDATE SET entry = excluded.entry", p, field, value)  # fmt: skip
        else:
            raise AssertionError(f"no hash {key!r}")

    def _set_setting(self, p: int, field: bytes, value: bytes | None) -> None:
        """Change a setting. A number cannot hold nonsense here; the nearest damage is that it is lost."""
        number = int(value) if value is not None and value.isdigit() and len(value) <= 15 else None
        if field == b"feed_last":
            self.rows("UPDATE db.partitions SET latest = %s::bigint WHERE p = %s", number or 0, p)
        elif field == b"feed_age":
            self.rows("UPDATE db.partitions SET feed_age = %s::bigint WHERE p = %s", number, p)
        elif field not in (b"turns", b"watcher"):  # which the server counts, or which are columns of the waiters
            self.rows(f"UPDATE db.partitions SET {field.decode()} = %s WHERE p = %s", value, p)

    def _set_of_record(self, p: int, uuid: str, field: bytes, value: bytes | None) -> None:
        if field == b"keys":
            # A newer release keeps what else it has in tables that reference the execution.
            self.rows("CREATE TABLE IF NOT EXISTS db.newer (p smallint, uuid uuid, name bytea, "
                      "FOREIGN KEY (p, uuid) REFERENCES db.executions ON DELETE CASCADE)")  # fmt: skip
            for name in unpack(value or b""):
                self.rows("INSERT INTO db.newer (p, uuid, name) VALUES (%s, %s, %s)", p, uuid, name)
        elif field.startswith((b"step#", b"step:")):
            which, what = ("number", int(field[5:])) if field[4:5] == b"#" else ("name", field[5:])
            self.rows(
                f"UPDATE db.steps SET value = %s WHERE p = %s AND uuid = %s AND {which} = %s", value, p, uuid, what
            )
        elif field != b"more":  # which only Valkey has
            self.rows(f"UPDATE db.executions SET {field.decode()} = %s WHERE p = %s AND uuid = %s", value, p, uuid)

    def hincrby(self, key: str | bytes, field: str, change: int) -> None:
        self._set(key, _bytes(field), _bytes(int(self.hget(key, field) or 0) + change))

    # Sorted sets

    def zrange(self, key: str | bytes, first: int, last: int, withscores: bool = False) -> list[Any]:
        members = self._members(key)
        members = members[first:] if last == -1 else members[first : last + 1]
        return members if withscores else [member for member, _ in members]

    def _members(self, key: str | bytes) -> list[tuple[bytes, float]]:
        p, name = self._parse(key)
        kind, _, rest = name.partition(b":")
        ask: Callable[..., list[tuple[Any, ...]]] = self.rows
        if kind in _INDEX:
            rows = ask("SELECT 'x' || uuid::text, due FROM db.executions WHERE p = %s AND due_in = %s", p, _INDEX[kind])
            entries = ask("SELECT kind, member, due FROM db.entries WHERE p = %s AND due_in = %s", p, _INDEX[kind])
            rows += [(each.encode("latin-1") + member, due) for each, member, due in entries]
        elif kind == b"delays":
            rows = ask("SELECT 'x' || uuid::text, due FROM db.executions AS e JOIN db.lanes AS l ON l.id = e.lane_id "
                       "WHERE e.p = %s AND due_in = 'y' AND lane = %s", p, rest)  # fmt: skip
        elif kind == b"delayed":
            rows = ask("SELECT lane, min(due) FROM db.executions AS e JOIN db.lanes AS l ON l.id = e.lane_id "
                       "WHERE e.p = %s AND due_in = 'y' GROUP BY lane", p)  # fmt: skip
        elif kind == b"ready":
            rows = ask("SELECT uuid::text, ready FROM db.executions AS e JOIN db.classes AS c ON c.id = e.class_id "
                       "WHERE e.p = %s AND ready IS NOT NULL AND c.class = %s", p, rest)  # fmt: skip
        elif kind == b"ids":
            rows = [(space + _bytes(uuid), 0) for space, uuid in ask(
                "SELECT namespace, uuid::text FROM db.executions WHERE p = %s", p)]  # fmt: skip
        elif kind == b"of_lane":
            rows = ask("SELECT uuid::text, 0 FROM db.executions AS e JOIN db.lanes AS l ON l.id = e.lane_id "
                       "WHERE e.p = %s AND lane = %s", p, rest)  # fmt: skip
        elif kind == b"of_state":
            state, _, namespace = rest.partition(b":")
            rows = ask("SELECT uuid::text, 0 FROM db.executions WHERE p = %s AND listed = %s AND namespace = %s",
                       p, state.decode(), namespace)  # fmt: skip
        elif kind == b"classes":
            rows = ask("SELECT class, 0 FROM db.classes WHERE p = %s", p)
        elif kind == b"following":
            rows = ask("SELECT lane, 0 FROM db.lanes WHERE p = %s AND NOT is_followed", p)
        elif kind == b"damaged":
            rows = ask("SELECT uuid, 0 FROM db.damaged WHERE p = %s", p)
        elif kind in _SETS:
            table, column = _SETS[kind]
            rows = ask(f"SELECT {column}, 0 FROM db.{table} WHERE p = %s", p)
        else:
            raise AssertionError(f"no sorted set {key!r}")
        return sorted(((_bytes(member), float(score)) for member, score in rows), key=lambda each: (each[1], each[0]))

    def zcard(self, key: str | bytes) -> int:
        return len(self._members(key))

    def zscore(self, key: str | bytes, member: str | bytes) -> float | None:
        return dict(self._members(key)).get(_bytes(member))

    def zcount(self, key: str | bytes, first: str, last: float) -> int:
        assert first == "-inf"
        return sum(score <= last for _, score in self._members(key))

    def zadd(self, key: str | bytes, members: Mapping[Any, float]) -> None:
        p, name = self._parse(key)
        for member, score in ((_bytes(each), score) for each, score in members.items()):
            if name == b"classes":
                # The lane is the first two texts, which are readable also where the rest is damaged.
                lane = _TWO_TEXTS.match(member)
                assert lane is not None
                whole = lane[0] + member[lane.end() : lane.end() + int(lane[1])]
                self.rows("INSERT INTO db.classes (p, class, lane) VALUES (%s, %s, %s)", p, member, whole)
            elif name == b"damaged":
                self.rows("INSERT INTO db.damaged (p, uuid) VALUES (%s, %s)", p, member.decode())
            elif re.fullmatch(rb"x[0-9a-f-]{36}", member):
                self.rows("UPDATE db.executions SET due = %s, due_in = %s WHERE p = %s AND uuid = %s",
                          int(score), _INDEX[name], p, member[1:].decode())  # fmt: skip
            else:
                self.rows("INSERT INTO db.entries (p, kind, member, due, due_in) VALUES (%s, %s, %s, %s, %s)",
                          p, member[:1].decode("latin-1"), member[1:], int(score), _INDEX[name])  # fmt: skip

    def zrem(self, key: str | bytes, member: bytes) -> None:
        p, name = self._parse(key)
        assert name == b"classes"
        self.rows("DELETE FROM db.classes WHERE p = %s AND class = %s", p, member)

    # Keys

    def delete(self, *keys: str | bytes) -> None:
        for key in keys:
            p, name = self._parse(key)
            kind, _, rest = name.partition(b":")
            if kind == b"secrets":
                self.rows("ALTER TABLE db.secrets DROP CONSTRAINT IF EXISTS damaged")
                self.rows("DELETE FROM db.secrets WHERE p = %s", p)
                self.rows("UPDATE db.partitions SET kid = NULL WHERE p = %s", p)
                continue
            if kind == b"stream":
                for table in ("streams", "stream_attempts", "stream_replies"):
                    self.rows(f"DELETE FROM db.{table} WHERE p = %s AND uuid = %s", p, rest.decode())
                continue
            if kind in _MODES:
                self.rows(
                    "DELETE FROM db.frames WHERE p = %s AND uuid = %s AND mode = %s", p, rest.decode(), _MODES[kind]
                )
                continue
            if kind in _OF_WAITS:
                table = {b"w": "waitpoints", b"o": "waitpoints", b"g": "signals"}.get(kind, "suspensions")
                which = f" AND number %% 2 = {kind[1:].decode()}" if table == "suspensions" else ""
                self.rows(f"DELETE FROM db.{table} WHERE p = %s AND uuid = %s{which}", p, rest.decode())
                continue
            assert kind == b"x", key
            # The indexes stay, as they do on Valkey.
            nothing = ", ".join(f"{column.decode()} = NULL" for column in self.hgetall(key))
            if nothing:
                self.rows(f"UPDATE db.executions SET {nothing} WHERE p = %s AND uuid = %s", p, rest.decode())

    def set(self, key: str | bytes, value: str | bytes) -> None:
        """Write nonsense over the whole record."""
        p, name = self._parse(key)
        kind, _, rest = name.partition(b":")
        if kind == b"x":
            self.delete(key)
            self._set(key, b"state", _bytes(value))
        elif kind == b"stream":
            self.rows("INSERT INTO db.streams (p, uuid, last) VALUES (%s, %s, %s)", p, rest.decode(), _bytes(value))
        elif kind == b"secrets":
            # The nearest damage to the secrets of one partition is that none can be written.
            self.rows(f"ALTER TABLE db.secrets ADD CONSTRAINT damaged CHECK (p <> {p}) NOT VALID")
        elif kind == b"s1" or kind == b"s0":
            self.rows("INSERT INTO db.suspensions (p, uuid, number, waitpoints) SELECT p, uuid, %s, 'a text' "
                      "FROM db.executions WHERE p = %s AND uuid = %s", 2 - int(kind[1:]), p, rest.decode())  # fmt: skip
        elif kind in _OF_WAITS:
            self.rows("UPDATE db.suspensions SET waitpoints = 'a text' WHERE p = %s AND uuid = %s", p, rest.decode())

    def get(self, key: str | bytes) -> bytes | None:
        p, name = self._parse(key)
        assert name.startswith(b"key:")
        uuid = self._one("SELECT uuid::text FROM db.keys WHERE p = %s AND key = %s", p, name[4:])
        return None if uuid is None else _bytes(uuid)

    def exists(self, *keys: str | bytes) -> int:
        return sum(self._exists(key) for key in keys)

    def _exists(self, key: str | bytes) -> int:
        p, name = self._parse(key)
        if name.startswith(b"frames:"):
            return len(self.rows("SELECT FROM db.newer WHERE p = %s AND name = %s", p, b":" + name))
        if name.startswith((b"x:", b"lane:")):
            return int(bool(self.hgetall(key)))
        if name == b"feed":
            return int(bool(self.xrange(key)))
        return int(bool(self._members(key)))

    def xadd(self, key: str | bytes, fields: Mapping[str, str], id_: str) -> None:
        p, name = self._parse(key)
        assert name == b"feed"
        ms, _, n = id_.partition("-")
        self.rows("INSERT INTO db.feed (p, ms, n, ended, uuid, outcome, class) VALUES (%s, %s, %s, 0, %s, %s, %s)", p,
                  int(ms), int(n), "00000000-0000-0000-0000-000000000000", fields["outcome"].encode(),
                  fields["class"].encode())  # fmt: skip

    def info(self, section: str) -> dict[str, Any]:
        raise redis.ResponseError(f"no {section} is kept")

    def keys(self, pattern: str) -> list[bytes]:
        return list(self.scan_iter(pattern))

    def scan_iter(self, pattern: str, _type: str | None = None, count: int = 0) -> Iterator[bytes]:  # noqa: ARG002
        """Yield the names of the parts that a partition has; with a type only the sorted sets."""
        plain = pattern.replace("[{]", "{")
        head = plain[: plain.index("}:") + 2]
        p, _ = self._parse(head)
        names = [b"due", b"retention", b"ids", b"damaged"]
        names += [b"ready:" + each for (each,) in self.rows("SELECT class FROM db.classes WHERE p = %s", p)]
        lanes = [each for (each,) in self.rows("SELECT lane FROM db.lanes WHERE p = %s", p)]
        names += [each + lane for lane in lanes for each in (b"of_lane:", b"delays:")]
        listed = self.rows(
            "SELECT DISTINCT listed, namespace FROM db.executions WHERE p = %s AND listed IS NOT NULL", p
        )
        names += [b"of_state:" + _bytes(state) + b":" + space for state, space in listed]
        if _type is None:
            waiting = [_bytes(uuid) for (uuid,) in self.rows("SELECT uuid::text FROM db.waits WHERE p = %s", p)]
            names += [kind + b":" + uuid for uuid in waiting for kind in _OF_WAITS
                      if self._waits(p, b"w" if kind == b"o" else kind, uuid.decode())]  # fmt: skip
            bare = "state IS NULL AND class IS NULL AND created IS NULL"
            found = self.rows(f"SELECT uuid::text FROM db.executions WHERE p = %s AND NOT ({bare})", p)
            names += [b"x:" + _bytes(uuid) for (uuid,) in found]
        for name in names:
            key = head.encode() + name
            is_there = name.startswith((b"x:", *(kind + b":" for kind in _OF_WAITS))) or self._members(key)
            if is_there and fnmatch.fnmatchcase(key.decode("latin-1"), pattern.replace("[{]", "{")):
                yield key

    def xrange(self, key: str | bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
        p, name = self._parse(key)
        assert name == b"feed"
        return [
            (_bytes(seq), {b"execution": _bytes(uuid), b"outcome": outcome})
            for seq, uuid, outcome in self.rows(
                "SELECT seq, uuid::text, outcome FROM db.feed WHERE p = %s ORDER BY seq", p
            )
        ]
