"""Everything that a Postgres store holds, as plain values."""

from __future__ import annotations

from typing import Any

from tests.support.postgres_view import PostgresView

# What the row of a partition holds, but for the number of the newest end.
_META = (
    "major", "partitions", "testing", "created", "clock", "latest", "feed_age", "trimmed_ms", "trimmed_n", "prepared",
    "removed", "upkeep", "kid", "rotated",
)  # fmt: skip

# Of each table: the part of the partition that it stands for, what tells its rows apart, and what they hold.
_DUMPED = {
    "keys": ("key", "key", "uuid"),
    "lanes": ("lane", "lane", "listed, revision, paused, turn, is_followed, answered"),
    "classes": ("classes", "NULL", "class, lane"),
    "entries": ("entries", "NULL", "kind, member, due, due_in, place"),
    "waiters": ("waiters", "NULL", "waiter, set_name, until, lanes"),
    "woken": ("woken", "NULL", "waiter, stands_by"),
    "claims": ("claims", "NULL", "field, claim_id, kept, worker, answer"),
    "damaged": ("damaged", "NULL", "uuid, damage"),
    "feed": ("feed", "NULL", "ended, uuid, outcome, class, tags"),
    "workers": ("worker", "NULL", "worker, entry"),
    "deaths": ("worker", "NULL", "worker, entry"),
    "tasks": ("task", "NULL", "task, entry"),
    "schedules": ("schedule", "NULL", "schedule, entry"),
    "budgets": ("budget", "NULL", "budget, entry"),
    "budget_reports": ("reports", "budget", "key, until, answer"),
    "budget_shares": ("shares", "budget", "uuid, share, waits"),
    "budget_news": ("budget_news", "NULL", "budget, turn, is_full"),
    "owed": ("owed", "NULL", "debt"),
    "quotas": ("quotas", "NULL", "quota, listed, window_ms, rate, slots, hold, created, answered"),
    "slots": ("slots", "quota", "uuid, until"),
    "began": ("began", "quota", "moment, attempts"),
    "leaders": ("leader", "NULL", "schedule_group, process, until"),
    "secrets": ("secrets", "NULL", "kid, secret"),
    "waits": ("waits", "uuid", "life, last_signal, forgotten"),
    "waitpoints": ("w", "uuid", "id, name, waitpoint, shown, decision, open_until"),
    "closings": ("closings", "uuid", "what, closing"),
    "signals": ("g", "uuid", "number, id, head, payload"),
    "signal_keys": ("signal_keys", "uuid", "waitpoint, key, number, until"),
    "suspensions": ("s", "uuid", "*"),
    "counted": ("counted", "uuid", "number, leaf, what"),
    "streams": ("stream", "uuid", "last, live, deltas, calls, readers"),
    "stream_attempts": ("stream", "uuid", "attempt, state, summary"),
    "stream_replies": ("stream", "uuid", "place, reply"),
    "flows": ("flow", "flow", "*"),
    "edges": ("edges", "flow", "*"),
    "groups": ("groups", "flow", "*"),
    "acknowledged": ("links", "flow", "uuid"),
    "frames": ("frames", "uuid", "ms, n, mode, frame, payload, before, at"),
}


def dump_of_postgres(view: PostgresView) -> dict[str, Any]:
    """Return what the tables hold, by the names of the parts; without what only numbers the rows."""
    content: dict[str, Any] = {}
    for p, *row in view.rows(f"SELECT p, {', '.join(_META)} FROM db.partitions"):
        content[f"{view.schema}:{{fp:{p}}}:meta"] = {
            name.encode(): value for name, value in zip(_META, row, strict=True)
        }
    names = [name for name in view.columns("executions") if name not in ("p", "uuid", "lane_id", "class_id")]
    for p, uuid, *row in view.rows(
        f"SELECT e.p, uuid, {', '.join(f'e.{name}' for name in names)}, l.lane, c.class FROM db.executions AS e "
        "LEFT JOIN db.lanes AS l ON l.id = lane_id LEFT JOIN db.classes AS c ON c.id = class_id"
    ):
        key = f"{view.schema}:{{fp:{p}}}:x:{uuid}"
        content[key] = dict(
            zip((name.encode() for name in (*names, "lane", "class")), row, strict=True)
        ) | view.hgetall(key)
    for table, (part, key, columns) in _DUMPED.items():
        for row in view.rows(f"SELECT p, {key}, {columns} FROM db.{table}"):
            named = "" if row[1] is None else f":{_readable(row[1])}"
            content.setdefault(f"{view.schema}:{{fp:{row[0]}}}:{part}{named}", []).append(row[2:])
    for p, due_in in view.rows("SELECT DISTINCT p, due_in FROM db.entries"):
        content.setdefault(f"{view.schema}:{{fp:{p}}}:{'due' if due_in == b'd' else 'retention'}", [])
    for p, lane, *counter in view.rows(
        "SELECT d.p, lane, state, sum(change) FROM db.depths AS d JOIN db.lanes AS l ON l.id = d.lane_id "
        "GROUP BY 1, 2, 3 HAVING sum(change) <> 0"
    ):
        content.setdefault(f"{view.schema}:{{fp:{p}}}:depths:{_readable(lane)}", []).append(counter)
    return {key: rows if isinstance(rows, dict) else sorted(map(repr, rows)) for key, rows in content.items()}


def _readable(key: Any) -> str:
    return key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)
