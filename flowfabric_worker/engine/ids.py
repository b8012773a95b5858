"""Execution ids, lanes and names: how they are minted and checked."""

from __future__ import annotations

import os
import re
import struct
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NewType, Self
from uuid import UUID

from flowfabric_worker.engine import forks as forking
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.limits import (
    MAX_CAPABILITIES,
    MAX_CAPABILITIES_BYTES,
    MAX_LANE_CHARACTERS,
    MAX_NAME_BYTES,
)
from flowfabric_worker.engine.partitions import partition_of_uuid

LaneId = NewType("LaneId", str)
FlowId = NewType("FlowId", str)
EdgeId = NewType("EdgeId", str)
BudgetId = NewType("BudgetId", str)
QuotaPolicyId = NewType("QuotaPolicyId", str)
WaitpointId = NewType("WaitpointId", str)
SignalId = NewType("SignalId", str)

_EXECUTION_ID = re.compile(
    r"(?:\{fp:(0|[1-9][0-9]{0,4})\}:|(0|[1-9][0-9]{0,4})-)"
    r"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
)
_LANE = re.compile(rf"[\x20-\x7e]{{1,{MAX_LANE_CHARACTERS}}}")


class ExecutionId(str):
    """The id of an execution, `{fp:N}:<uuid>`: its partition and a UUID, in canonical spelling.

    It is a str with that text, and sorts by partition and then by UUID.

    Attributes:
        partition_number: the number of the partition that holds the execution.
        uuid: the UUID, in lower case.
    """

    __slots__ = ("partition_number", "uuid")

    partition_number: int
    uuid: str

    def __new__(cls, partition: int, uuid: str) -> Self:
        self = super().__new__(cls, f"{{fp:{partition}}}:{uuid}")
        self.partition_number = partition
        self.uuid = uuid
        return self

    def __getnewargs__(self) -> tuple[int, str]:  # type: ignore[override]  # what __new__ takes
        return self.partition_number, self.uuid

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an id, from its text or from its `plain` form.

        Raises:
            ValidationError: `invalid_execution_id`, another spelling, a partition over 65535, or not an id.
        """
        match = _EXECUTION_ID.fullmatch(text) if isinstance(text, str) else None
        if match is None or int(match[1] or match[2]) > 0xFFFF:
            raise ValidationError(
                "invalid_execution_id",
                f"{text!a:.200} is not an execution id of the form {{fp:N}}:<lower-case uuid> or N-<lower-case uuid>.",
            )
        return cls(int(match[1] or match[2]), match[3])

    @classmethod
    def mint(cls, partitions: int = 1) -> Self:
        """Mint an id in the partition of its UUID; the ids of a partition sort by the time of their minting."""
        return cls(*mint_parts(partitions))

    @property
    def plain(self) -> str:
        """The id as `N-<uuid>`, without braces and colons, for shells and URLs."""
        return f"{self.partition_number}-{self.uuid}"

    def __lt__(self, other: str) -> bool:
        if isinstance(other, ExecutionId):
            return (self.partition_number, self.uuid) < (other.partition_number, other.uuid)
        return super().__lt__(other)

    def __le__(self, other: str) -> bool:
        return self == other or self < other

    def __gt__(self, other: str) -> bool:
        return not self <= other

    def __ge__(self, other: str) -> bool:
        return not self < other

    def __repr__(self) -> str:
        return f"ExecutionId({str(self)!r})"


_SIX_BYTES = struct.Struct(">IH")


class _Uuid7:
    """Mints UUIDv7s that increase within a process: 48 bits of ms, a counter of 12 + 14 bits, and 48 random bits."""

    def __init__(self) -> None:
        self._last = 0
        self.reset_after_fork()
        forking.remember(self)

    def reset_after_fork(self) -> None:
        """Replace the lock in a forked child, because a thread of the parent may have held it."""
        self._lock = threading.Lock()
        # Read new random bytes, because the parent uses those that were read.
        self._random: Iterator[tuple[int, ...]] = iter(())

    def __call__(self) -> UUID:
        return UUID(int=self.number())

    def number(self) -> int:
        """Mint a UUID, and return it as a number."""
        with self._lock:
            random = next(self._random, None)
            if random is None:
                # Read random bytes for many ids at once, because each read is a system call.
                self._random = _SIX_BYTES.iter_unpack(os.urandom(_SIX_BYTES.size * 64))
                random = next(self._random)
            # Keep time and counter in one number, so that a counter that overflows moves on to the next millisecond.
            moment = max((time.time_ns() // 1_000_000) << 26, self._last + 1)
            self._last = moment
        milliseconds, counter = moment >> 26, moment & 0x3FFFFFF
        value = (milliseconds & 0xFFFFFFFFFFFF) << 80 | 0x7 << 76 | (counter >> 14) << 64
        return value | 0b10 << 62 | (counter & 0x3FFF) << 48 | random[0] << 16 | random[1]


uuid7 = _Uuid7()


def mint_parts(partitions: int) -> tuple[int, str]:
    """Mint an execution id, and return its partition and its UUID; see `ExecutionId.mint`."""
    number = uuid7.number()
    digits = f"{number:032x}"
    text = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
    return 0 if partitions == 1 else partition_of_uuid(UUID(int=number), partitions), text


def mint_in(partition: int, partitions: int) -> tuple[int, str]:
    """Mint an execution id in a partition, and return both."""
    while True:
        found, uuid = mint_parts(partitions)
        if found == partition:
            return found, uuid


def is_plain_name(value: object) -> bool:
    """Return True if `value` is a valid name of printable ASCII characters, as nearly all names are."""
    return value.__class__ is str and value.isascii() and value.isprintable() and 0 < len(value) <= MAX_NAME_BYTES


def check_name(value: object, what: str) -> str:
    """Return `value` if it is a valid name: UTF-8 of 1 to 256 bytes, no control character, no surrogate.

    Raises:
        ValidationError: `invalid_input`; the message names `what`.
    """
    if not isinstance(value, str):
        raise ValidationError("invalid_input", f"{what} must be a str, not {type(value).__name__}.")
    if value.isascii() and value.isprintable() and 0 < len(value) <= MAX_NAME_BYTES:
        return value
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise ValidationError("invalid_input", f"{what} {value!a} contains a control character or a lone surrogate.")
    if not 0 < len(value.encode()) <= MAX_NAME_BYTES:
        raise ValidationError("invalid_input", f"{what} must be 1 to {MAX_NAME_BYTES} bytes long.")
    return value


def check_lane(value: object) -> LaneId:
    """Return `value` if it is a lane: 1 to 64 printable ASCII characters.

    Raises:
        ValidationError: `invalid_input`.
    """
    if not isinstance(value, str) or _LANE.fullmatch(value) is None:
        raise ValidationError(
            "invalid_input", f"A lane is 1 to {MAX_LANE_CHARACTERS} printable ASCII characters, not {value!a}."
        )
    return LaneId(value)


def check_execution_id(value: object) -> ExecutionId:
    """Return the execution id that `value` is or spells, in either form.

    Raises:
        ValidationError: `invalid_execution_id`.
    """
    if not isinstance(value, str):
        raise ValidationError("invalid_execution_id", f"Pass an ExecutionId or its text, not {type(value).__name__}.")
    return ExecutionId.parse(value)


def check_capabilities(tokens: object) -> tuple[str, ...]:
    """Return capabilities sorted and without repetition.

    A capability has no comma, no white space and no control character. At most 256 are allowed, and 4096 bytes with the
    commas between them.

    Raises:
        ValidationError: `invalid_capabilities`; the message names the capability.
    """
    if isinstance(tokens, str) or not hasattr(tokens, "__iter__"):
        raise ValidationError("invalid_capabilities", "Pass capabilities as a collection of words, not one value.")
    unique: set[str] = set()
    for token in tokens:
        if not isinstance(token, str) or not token:
            raise ValidationError("invalid_capabilities", f"{token!a} is not a capability: pass a word.")
        if "," in token or any(c.isspace() or unicodedata.category(c) in ("Cc", "Cs") for c in token):
            raise ValidationError(
                "invalid_capabilities",
                f"The capability {token!a} contains a comma, white space or a control character.",
            )
        unique.add(token)
    ordered = tuple(sorted(unique, key=str.encode))
    if len(ordered) > MAX_CAPABILITIES or len(",".join(ordered).encode()) > MAX_CAPABILITIES_BYTES:
        raise ValidationError(
            "invalid_capabilities",
            f"At most {MAX_CAPABILITIES} capabilities with together {MAX_CAPABILITIES_BYTES} bytes are allowed.",
        )
    return ordered


def refuse_reserved(tokens: Iterable[str]) -> None:
    """Refuse capabilities that begin with `@`: newer releases use them for work that this release cannot do.

    Raises:
        ValidationError: `invalid_capabilities`; the message names the capability.
    """
    for token in tokens:
        if token.startswith("@"):
            raise ValidationError(
                "invalid_capabilities",
                f"The capability {token!a} is reserved: choose one that does not begin with '@'.",
            )
