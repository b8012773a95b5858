"""The hashes of a partition of a Postgres store, under the names and fields that they have on Valkey."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import psycopg
import redis

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.stores.postgres import PostgresStore
from flowfabric_worker.engine.wire import pack, unpack

INDEXES = {"namespace", "lane_id", "class_id", "ready", "due", "due_in", "listed", "suspended", "p", "uuid"}
_KEY = re.compile(rb"[^{]*\{fp:(\d+)\}:(.*)", re.DOTALL)
# The parts of a partition that are tables of a name and an entry.
_HASHES = {
    b"worker": ("workers", "worker"), b"task": ("tasks", "task"), b"schedule": ("schedules", "schedule"),
    b"budget": ("budgets", "budget"),
}  # fmt: skip
MODES = {b"frames": "durable", b"deltas": "summary", b"live": "best_effort"}


@functools.lru_cache(maxsize=1)
def _session(conninfo: str) -> psycopg.Connection[Any]:
    # Tests end the sessions of the engine, which has another application name.
    return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None, application_name="tests")


def bytes_of(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return str(value).encode()


class PostgresHashes:
    """The hashes of a partition, and the streams of its executions, as a plain client of Valkey shows them."""

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
        found = _KEY.fullmatch(bytes_of(key))
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
            told = {state.encode(): bytes_of(int(count)) for state, count in counts}
            told |= {b"paused": bytes_of(paused)} if paused is not None else {}
            return told | {b"revision": bytes_of(revision), b"turn": bytes_of(turn)}
        if kind == b"waiters":
            return {bytes_of(waiter): b"" for (waiter,) in self.rows("SELECT waiter FROM db.waiters WHERE p = %s", p)}
        if kind == b"sets":
            return {bytes_of(name): b"" for (name,) in self.rows(
                "SELECT DISTINCT set_name FROM db.waiters WHERE p = %s AND set_name <> 'feed'", p)}  # fmt: skip
        if kind == b"claims":
            return {field + b"\0" + bytes_of(turn): pack(answer) for field, turn, answer in self.rows(
                "SELECT field, turn, answer FROM db.claims WHERE p = %s", p)}  # fmt: skip
        if kind == b"damage":
            return {bytes_of(uuid): damage for uuid, damage in self.rows(
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
                bytes_of(each): b"" for (each,) in self.rows("SELECT DISTINCT class_id FROM db.depths WHERE p = %s", p)
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
        return bytes_of(field) in self.hgetall(key)

    def xlen(self, key: str | bytes) -> int:
        p, name = self._parse(key)
        kind, _, uuid = name.partition(b":")
        return int(self._one("SELECT count(*) FROM db.frames WHERE p = %s AND uuid = %s AND mode = %s",
                             p, uuid.decode(), MODES[kind]))  # fmt: skip

    def execute_command(self, command: str, key: str | bytes, frame_id: str, *fields: str) -> None:
        assert command == "XADD"
        p, name = self._parse(key)
        kind, _, uuid = name.partition(b":")
        ms, _, n = frame_id.partition("-")
        self.rows("INSERT INTO db.frames (p, uuid, ms, n, mode, frame, payload) VALUES (%s, %s, %s, %s, %s, %s, %s)", p,
                  uuid.decode(), int(ms), int(n), MODES[kind], fields[1].encode(), fields[3].encode())  # fmt: skip

    def hget(self, key: str | bytes, field: str | bytes) -> bytes | None:
        p, name = self._parse(key)
        if name == b"meta":
            column = {b"feed_last": "latest"}[bytes_of(field)]
            return bytes_of(self._one(f"SELECT {column} FROM db.partitions WHERE p = %s", p))
        return self.hgetall(key).get(bytes_of(field))

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
            self._set(key, bytes_of(each), None if new is None else bytes_of(new))

    def hdel(self, key: str | bytes, field: str | bytes) -> None:
        self._set(key, bytes_of(field), None)

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
        self._set(key, bytes_of(field), bytes_of(int(self.hget(key, field) or 0) + change))
