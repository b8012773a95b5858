"""The gates of claim classes, as far as the stored functions tell of them: why one is closed, and until when."""

from __future__ import annotations

from datetime import timedelta

from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.records import moment, span
from flowfabric_worker.engine.stores.base import Reply
from flowfabric_worker.engine.wire import unpack_text


def explain_gate(partition: int, closed: Reply, now: int) -> str:
    """Return a sentence that tells which gate holds an execution back, and until when.

    Args:
        partition: the partition of the gate.
        closed: the gate and what its kind explains, as the stored function replies.
        now: the moment of the store's clock, in ms.
    """
    name, *about = closed
    if name[:1] == b"b":
        return _explain_budget(unpack_text(name[1:])[1], about, now)
    return _explain_quota(partition, unpack_text(name[1:])[1], about, now)


def explain_elsewhere(closed: Reply, now: int) -> str:
    """Return a sentence that tells that a quota of another partition refused a claim, and when it is asked again."""
    name, _, _, _, till, *_ = closed
    again = f"in {span(int(till) - now)}" if till else "by the next claim"
    return f"Its quota {unpack_text(name[1:])[1]!r} was full when a worker asked it; it is asked again {again}."


def _explain_budget(budget: str, about: Reply, now: int) -> str:
    if not about:
        return f"Its budget {budget!r} has reached a hard limit; raise or reset it."
    dimension, taken, limit, resets = (part.decode("utf-8", "replace") for part in about)
    until = f" It is reset at {moment(int(resets))}, in {span(int(resets) - now)}." if resets else ""
    return f"Its budget {budget!r} has reached its limit of {dimension}, {taken} of {limit}; raise or reset it.{until}"


def _explain_quota(partition: int, quota: str, about: Reply, now: int) -> str:
    why, limit, window, till, *holders = about
    if why == b"rate":
        length = timedelta(milliseconds=int(window))
        next_one = f" at {moment(int(till))}, in {span(int(till) - now)}" if till else " when a claim leaves one"
        return (
            f"Its quota {quota!r} lets {int(limit)} attempts begin in {length}, and so many have begun; the next may "
            f"begin{next_one}."
        )
    shown = [
        f"{ExecutionId(int(there or partition), uuid.decode())}{_until(expires, now)}"
        for uuid, expires, there in zip(holders[::3], holders[1::3], holders[2::3], strict=True)
    ]
    more = ", ..." if int(limit) > len(shown) else ""
    return f"Its quota {quota!r} lets {int(limit)} run at once; its slots are held by {', '.join(shown)}{more}."


def _until(expires: bytes, now: int) -> str:
    left = int(expires) - now if expires.isdigit() else 0
    return f" (leased for {span(left)})" if left > 0 else ""
