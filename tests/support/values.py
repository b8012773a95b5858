"""Classes and values that the tests of codecs share."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo

import attrs

BERLIN = ZoneInfo("Europe/Berlin")
AMBIGUOUS = datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN)


class Word(str, enum.Enum):  # noqa: UP042  the older form is what applications have
    A = "a"


class Level(enum.IntEnum):
    LOW = 1


class Number(int):
    pass


class Row(list[int]):
    pass


class Pair(NamedTuple):
    left: int
    right: int


@attrs.define
class P:
    a: int
