"""The encoding of values for stored functions and in records, as arrays of bytes and never as JSON."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import attrs

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.moments import epoch_ms, milliseconds
from flowfabric_worker.engine.types.policies import ExecutionPolicy, RetryPolicy

# The exceptions that decoding a damaged value raises.
DAMAGE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, ValidationError)


@contextlib.contextmanager
def reading(what: str, field: str, **details: str) -> Iterator[None]:
    """Report errors of decoding inside the block as damage of what is stored.

    Args:
        what: the stored thing, at the beginning of the message.
        field: the field that is decoded.
        details: further details of the error, such as the execution id.

    Raises:
        ValidationError: `corruption`.
    """
    try:
        yield
    except DAMAGE as error:
        raise ValidationError("corruption", f"{what} is damaged: {error}.", field=field, **details) from None


# The lengths of short texts as `pack` writes them.
_FEW = 256
_LENGTHS = tuple(b"%d:" % size for size in range(_FEW))


def pack(parts: Iterable[str | bytes]) -> bytes:
    """Join texts, each preceded by its length, so that different lists never give the same bytes."""
    out: list[bytes] = []
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        size = len(data)
        out.append(_LENGTHS[size] if size < _FEW else b"%d:" % size)
        out.append(data)
    return b"".join(out)


def unpack(data: bytes) -> list[bytes]:
    """Split what `pack` joined.

    Raises:
        ValueError: the bytes are not packed texts.
    """
    parts = []
    at = 0
    while at < len(data):
        colon = data.index(b":", at)
        size = int(data[at:colon])
        at = colon + 1 + size
        if size < 0 or at > len(data):
            raise ValueError("packed text is cut short")
        parts.append(data[colon + 1 : at])
    return parts


def unpack_text(data: bytes) -> list[str]:
    """Split what `pack` joined, into str."""
    return [part.decode() for part in unpack(data)]


def optional(data: bytes | None) -> bytes:
    """Encode bytes or None, with a mark before bytes, so that None and `b""` differ."""
    return b"" if data is None else b"=" + data


def read_optional(data: bytes | None) -> bytes | None:
    """Decode what `optional` encoded; an absent field is None."""
    return data[1:] if data else None


def pack_texts(texts: Mapping[str, str]) -> bytes:
    """Join names and texts in the order of the names, so that equal mappings give equal bytes."""
    return pack(text for key in sorted(texts) for text in (key, texts[key])) if texts else b""


def unpack_texts(data: bytes | None) -> dict[str, str]:
    """Split what `pack_texts` joined, into a mapping."""
    if not data:
        return {}
    texts = unpack_text(data)
    return dict(zip(texts[::2], texts[1::2], strict=True))


def unpack_pairs(entries: Sequence[bytes]) -> dict[str, bytes]:
    """Convert name, value, name, value, ... to a dict."""
    return {name.decode(): value for name, value in zip(entries[::2], entries[1::2], strict=True)}


def pack_moment(after: timedelta | None, at: datetime | None, what: str) -> str:
    """Encode a moment for a stored function: `+ms` from the store's present time, `@ms` absolute, or empty for none.

    Raises:
        ValidationError: both are given, `at` has no time zone, or one is out of range; the message names `what`.
    """
    if after is not None and at is not None:
        raise ValidationError("invalid_input", f"Give {what} as a duration or as a moment, not as both.")
    if after is not None:
        return f"+{milliseconds(after, what)}"
    return "" if at is None else f"@{epoch_ms(at, what)}"


@attrs.frozen(kw_only=True, cache_hash=True)
class WorkClass:
    """What a worker must match to claim an execution; also the address of the ready index of that work."""

    namespace: str
    lane: str
    task: str
    capabilities: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    quota: str = ""

    def encode(self) -> bytes:
        """Encode the class; the packed form begins with the packed lane."""
        return pack((self.namespace, self.lane, self.task, ",".join(self.capabilities), pack(self.budgets), self.quota))

    def fits(self, capabilities: frozenset[str], tasks: frozenset[str] | None) -> bool:
        """Return True if a worker with these capabilities and tasks may claim work of this class.

        Work that needs a newer release has a reserved capability (`@...`), which no worker of this release has. Budgets
        and quotas are checked by the stored functions.
        """
        return (tasks is None or self.task in tasks) and capabilities.issuperset(self.capabilities)


@functools.lru_cache(maxsize=4096)
def decode_class(data: bytes) -> WorkClass:
    """Decode a class.

    Raises:
        ValueError: it is damaged.
    """
    namespace, lane, task, capabilities, budgets, quota = unpack_text(data)[:6]
    return WorkClass(
        namespace=namespace,
        lane=lane,
        task=task,
        capabilities=tuple(capabilities.split(",")) if capabilities else (),
        budgets=tuple(unpack_text(budgets.encode())) if budgets else (),
        quota=quota,
    )


@functools.lru_cache(maxsize=1024)
def decode_fence(data: bytes) -> tuple[str, int, str]:
    """Decode a fence into lease id, epoch and attempt id.

    Raises:
        ValueError: it is damaged.
    """
    lease, epoch, attempt = data.decode().split(":")
    return lease, int(epoch), attempt or lease


@attrs.frozen(kw_only=True)
class Attempt:
    """The present or last attempt of a record.

    Attributes:
        kind: initial, retry, reclaim or replay.
        came: the stored kind of its last claim: fresh, resumed or reclaimed.
        started_at_ms: None if the attempt has ended and was archived.
        ended_at_ms: None while it runs, or if it ended with its execution.
    """

    index: int
    kind: str
    came: bytes
    started_at_ms: int | None
    ended_at_ms: int | None


@functools.lru_cache(maxsize=1024)
def decode_attempt(data: bytes) -> Attempt:
    """Decode the field `attempt`.

    Raises:
        ValueError: it is damaged.
    """
    index, kind, came, started, ended = data.split(b"|")
    return Attempt(
        index=int(index),
        kind=kind.decode(),
        came=came,
        started_at_ms=int(started) if started else None,
        ended_at_ms=int(ended) if ended else None,
    )


def _ms(duration: timedelta | None, what: str) -> str:
    return "" if duration is None else str(milliseconds(duration, what))


@functools.lru_cache(maxsize=1024)
def encode_policy(policy: ExecutionPolicy) -> bytes:
    """Encode a policy: its values in a fixed order, each followed by `|`; empty for the default policy."""
    retry = policy.retry
    values = (
        [""] * 7
        if retry is None
        else [
            str(retry.max_retries),
            retry.backoff,
            _ms(retry.initial, "initial"),
            _ms(retry.maximum, "maximum"),
            repr(float(retry.multiplier)),
            "1" if retry.jitter else "0",
            ",".join(sorted(retry.retryable_categories)),
        ]
    )
    defaults = attrs.fields_dict(ExecutionPolicy)
    values += [
        _ms(policy.attempt_timeout, "attempt_timeout"),
        "" if policy.max_reclaim_count == defaults["max_reclaim_count"].default else str(policy.max_reclaim_count),
        "" if policy.max_replay_count == defaults["max_replay_count"].default else str(policy.max_replay_count),
        _ms(policy.retention, "retention"),
        _ms(policy.dedup_window, "dedup_window"),
        _ms(policy.execution_deadline, "execution_deadline"),
        *(["s"] if policy.frees_key else []),
    ]
    return "".join(f"{value}|" for value in values).encode() if any(values) else b""


def _decode_retry(values: Sequence[str]) -> RetryPolicy:
    """Decode the first seven values of a policy."""
    return RetryPolicy(
        max_retries=int(values[0]),
        backoff=values[1],  # type: ignore[arg-type]  # the policy itself checks the word
        initial=timedelta(milliseconds=int(values[2])),
        maximum=timedelta(milliseconds=int(values[3])),
        multiplier=float(values[4]),
        jitter=values[5] == "1",
        retryable_categories=filter(None, values[6].split(",")),
    )


@functools.lru_cache(maxsize=1024)
def decode_policy(data: bytes | None, work_class: WorkClass) -> ExecutionPolicy:
    """Decode a policy. Required capabilities, budgets and quota are taken from the class.

    Raises:
        ValueError, ArithmeticError, ValidationError: it is damaged.
    """
    capabilities, quota = frozenset(work_class.capabilities), work_class.quota or None
    bare = ExecutionPolicy(requires=capabilities, budget_ids=work_class.budgets, quota_policy_id=quota)
    if not data:
        return bare
    values = data.decode().split("|")
    # Ignore further values, which a newer release wrote.
    if len(values) < 14 or values[-1]:
        raise ValueError("a policy has 13 values")

    def duration(index: int) -> timedelta | None:
        return timedelta(milliseconds=int(values[index])) if values[index] else None

    return attrs.evolve(
        bare,
        retry=_decode_retry(values) if values[0] else None,
        attempt_timeout=duration(7),
        max_reclaim_count=int(values[8]) if values[8] else bare.max_reclaim_count,
        max_replay_count=int(values[9]) if values[9] else bare.max_replay_count,
        retention=duration(10),
        dedup_window=duration(11),
        execution_deadline=duration(12),
        frees_key=values[13] == "s",
    )
