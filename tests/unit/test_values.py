"""No value changes in silence: it comes back equal in value and class, or it is refused where it is sent."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from pathlib import Path, PurePath
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import pytest

from flowfabric_worker._codecs.equality import same
from flowfabric_worker.codec import EncodingError
from flowfabric_worker.engine.ids import ExecutionId
from tests.support.converted import returning
from tests.support.values import AMBIGUOUS, BERLIN, Level, Number, Pair, Row, Word

NAN = float("nan")


class Text(enum.StrEnum):
    A = "a"


class Moment(datetime):
    pass


class Unfixed(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def dst(self, _: datetime | None) -> timedelta:
        return timedelta()


@dataclasses.dataclass
class Late:
    a: int
    b: int = dataclasses.field(init=False, default=0)


@attrs.define
class LateAttrs:
    a: int
    b: int = attrs.field(init=False, default=0)


@dataclasses.dataclass(frozen=True, slots=True)
class LateFrozen:
    a: int
    b: int = dataclasses.field(init=False, default=0)


@dataclasses.dataclass
class InitOnly:
    a: int
    scale: dataclasses.InitVar[int] = 1

    def __post_init__(self, scale: int) -> None:
        self.total = self.a * scale


@dataclasses.dataclass
class NeedsInitOnly:
    a: int
    scale: dataclasses.InitVar[int]


@attrs.define
class Grows:
    a: int = attrs.field(converter=lambda value: value + 1)


@attrs.define
class Trims:
    a: str = attrs.field(converter=str.strip)


@dataclasses.dataclass
class Remembers:
    a: int

    @functools.cached_property
    def double(self) -> int:
        return 2 * self.a


@dataclasses.dataclass
class Counts:
    a: int

    def __post_init__(self) -> None:
        self.a += 1


def late(kind: Any) -> Any:
    value = kind(1)
    object.__setattr__(value, "b", 9)
    return value


COMES_BACK: list[tuple[Any, Any]] = [
    (datetime, AMBIGUOUS),
    (datetime, AMBIGUOUS.replace(fold=1)),
    (datetime, datetime(2024, 1, 1, fold=1, tzinfo=BERLIN)),
    (datetime, datetime(2024, 1, 1, fold=1)),
    (datetime, datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC"))),
    (datetime, datetime(2024, 1, 1, tzinfo=UTC)),
    (datetime, datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-3, seconds=1)))),
    (datetime | None, AMBIGUOUS),
    (dict[datetime, int], {AMBIGUOUS: 1}),
    (time, time(1, 2, fold=1)),
    (time, time(1, 2, tzinfo=BERLIN)),
    (Word, Word.A),
    (Text, Text.A),
    (Level, Level.LOW),
    (Word | str, Word.A),
    (Word | str, "a"),
    (Level | int, Level.LOW),
    (Level | int, 1),
    (dict[Word, Level], {Word.A: Level.LOW}),
    (Counter[str], Counter("aab")),
    (Counter, Counter("aab")),
    (OrderedDict[str, int], OrderedDict([("b", 1), ("a", 2)])),
    (OrderedDict[int, Level], OrderedDict([(2, Level.LOW), (1, Level.LOW)])),
    (defaultdict[str, list[int]], defaultdict(list, {"a": [1]})),
    (defaultdict[int, int], defaultdict(None, {1: 1})),
    (Late, late(Late)),
    (LateAttrs, late(LateAttrs)),
    (LateFrozen, late(LateFrozen)),
    (InitOnly, InitOnly(2)),
    (Trims, Trims(" a ")),
    (Remembers, Remembers(1)),
    (list[Pair], [Pair(1, 2)]),
]


@pytest.mark.parametrize("name", ["json", "msgpack"])
@pytest.mark.parametrize(("annotation", "value"), COMES_BACK)
def test_a_value_comes_back_equal_and_of_its_own_class(annotation: Any, value: Any, name: str) -> None:
    task = returning(annotation, name)
    back = task.decode_result(task.encode_result(value))

    assert same(value, back), back
    assert getattr(back, "default_factory", None) == getattr(value, "default_factory", None)


def test_what_a_property_has_remembered_is_no_part_of_a_value() -> None:
    value = Remembers(2)
    assert value.double == 4

    assert returning(Remembers).decode_result(returning(Remembers).encode_result(value)) == value


REFUSED: list[tuple[Any, Any, str]] = [
    *((Any, value, "annotation") for value in (Word.A, Text.A, Level.LOW, Number(1), Row([1]), Counter("a"), (1,))),
    *((Any, value, "annotation") for value in (OrderedDict(a=1), defaultdict(int, a=1), [Word.A], {"a": [Level.LOW]})),
    (Any, {Word.A: 1}, "keys of type str"),
    (str, Word.A, "come back as str"),
    (int, Level.LOW, "come back as int"),
    (list[int], Row([1]), "come back as list"),
    (list[str], [Text.A], "come back as str"),
    (dict[str, int], Counter("a"), "come back as dict"),
    (dict[str, int], {Text.A: 1}, "come back as str"),
    (Mapping[str, int], OrderedDict(a=1), "come back as dict"),
    (tuple[int, int], Pair(1, 2), "come back as tuple"),
    (tuple[int, ...], Pair(1, 2), "come back as tuple"),
    (datetime, Moment(2024, 1, 1), "come back as datetime"),
    (datetime, datetime(2024, 1, 1, tzinfo=Unfixed()), "Unfixed"),
    (datetime, datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET")), "without a name"),
    (date, datetime(2024, 1, 1), "come back as date"),
    (str, ExecutionId.mint(), "come back as str"),
    (PurePath, Path("a"), "come back as PurePath"),
    (int | str, Text.A, "expected int | str"),
    (defaultdict[str, int], defaultdict(lambda: 7, a=1), "factory"),
    (InitOnly, InitOnly(2, 3), "another 'total'"),
    (Grows, Grows(1), "another 'a'"),
    (Counts, Counts(1), "another 'a'"),
    (NeedsInitOnly, NeedsInitOnly(1, 2), "init-only 'scale'"),
    (collections.deque[int], collections.deque([1]), "cannot be encoded"),
]


@pytest.mark.parametrize(("annotation", "value", "reason"), REFUSED)
def test_a_value_that_would_change_is_refused_where_it_is_sent(annotation: Any, value: Any, reason: str) -> None:
    with pytest.raises(EncodingError, match=reason):
        returning(annotation).encode_result(value)


@pytest.mark.parametrize("annotation", [dict[float, int], set[float], frozenset[float], dict[tuple[float, int], int]])
def test_nan_cannot_be_a_key_for_it_would_not_be_found(annotation: Any) -> None:
    key = (NAN, 1) if "tuple" in str(annotation) else NAN
    value = (
        {key: 1} if "dict" in str(annotation) else set(annotation.__origin__([NAN])) and annotation.__origin__([NAN])
    )
    with pytest.raises(EncodingError, match="cannot be a key"):
        returning(annotation, "msgpack").encode_result(value)
