"""A partition of a Postgres store, seen under the names that its parts have on Valkey.

The tests look behind the engine, and damage what they find, on every store in the same way: this shows the rows of the
tables as the hashes, sets and streams that they stand for.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import redis

from tests.support.postgres_hashes import MODES, PostgresHashes, bytes_of

_TWO_TEXTS = re.compile(rb"7:default(\d+):")
_SETS = {
    b"workers": ("workers", "worker"), b"tasks": ("tasks", "task"), b"schedules": ("schedules", "schedule"),
    b"budgets": ("budgets", "budget"),
}  # fmt: skip
_OF_WAITS = (b"w", b"o", b"g", b"s0", b"s1")
_INDEX = {b"due": "d", b"retention": "r"}


class PostgresView(PostgresHashes):
    """What a plain client of Valkey shows of a partition, as far as the tests ask for it."""

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
            rows = [(space + bytes_of(uuid), 0) for space, uuid in ask(
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
        return sorted(((bytes_of(member), float(score)) for member, score in rows), key=lambda each: (each[1], each[0]))

    def zcard(self, key: str | bytes) -> int:
        return len(self._members(key))

    def zscore(self, key: str | bytes, member: str | bytes) -> float | None:
        return dict(self._members(key)).get(bytes_of(member))

    def zcount(self, key: str | bytes, first: str, last: float) -> int:
        assert first == "-inf"
        return sum(score <= last for _, score in self._members(key))

    def zadd(self, key: str | bytes, members: Mapping[Any, float]) -> None:
        p, name = self._parse(key)
        for member, score in ((bytes_of(each), score) for each, score in members.items()):
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
            if kind in MODES:
                self.rows(
                    "DELETE FROM db.frames WHERE p = %s AND uuid = %s AND mode = %s", p, rest.decode(), MODES[kind]
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
            self._set(key, b"state", bytes_of(value))
        elif kind == b"stream":
            self.rows("INSERT INTO db.streams (p, uuid, last) VALUES (%s, %s, %s)", p, rest.decode(), bytes_of(value))
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
        return None if uuid is None else bytes_of(uuid)

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
        names += [b"of_state:" + bytes_of(state) + b":" + space for state, space in listed]
        if _type is None:
            waiting = [bytes_of(uuid) for (uuid,) in self.rows("SELECT uuid::text FROM db.waits WHERE p = %s", p)]
            names += [kind + b":" + uuid for uuid in waiting for kind in _OF_WAITS
                      if self._waits(p, b"w" if kind == b"o" else kind, uuid.decode())]  # fmt: skip
            bare = "state IS NULL AND class IS NULL AND created IS NULL"
            found = self.rows(f"SELECT uuid::text FROM db.executions WHERE p = %s AND NOT ({bare})", p)
            names += [b"x:" + bytes_of(uuid) for (uuid,) in found]
        for name in names:
            key = head.encode() + name
            is_there = name.startswith((b"x:", *(kind + b":" for kind in _OF_WAITS))) or self._members(key)
            if is_there and fnmatch.fnmatchcase(key.decode("latin-1"), pattern.replace("[{]", "{")):
                yield key

    def xrange(self, key: str | bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
        p, name = self._parse(key)
        assert name == b"feed"
        return [
            (bytes_of(seq), {b"execution": bytes_of(uuid), b"outcome": outcome})
            for seq, uuid, outcome in self.rows(
                "SELECT seq, uuid::text, outcome FROM db.feed WHERE p = %s ORDER BY seq", p
            )
        ]
