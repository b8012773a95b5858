"""No value changes in silence: it comes back equal in value and class, or it is refused where it is sent."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric_worker import codec
from flowfabric_worker._codecs import REGISTERED
from flowfabric_worker._codecs.equality import same
from flowfabric_worker.codec import DecodingError, EncodingError
from flowfabric_worker.engine.ids import ExecutionId
from tests.support.converted import returning

BERLIN = ZoneInfo("Europe/Berlin")
AMBIGUOUS = datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN)
NAN = float("nan")


class Word(str, enum.Enum):  # noqa: UP042  the older form is what applications have
    A = "a"


class Text(enum.StrEnum):
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


# Changed annotations


@attrs.define
class P:
    a: int


@attrs.define
class Q:
    b: str = ""


@attrs.define
class Renamed:
    a: int


@attrs.define
class Twin:
    a: int


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        (P, P | Q, P(1)),
        (P, Q | P, P(1)),
        (P, P | Twin, P(1)),
        (P, P | None, P(1)),
        (list[P], list[P | Q], [P(1)]),
        (datetime, datetime | str, AMBIGUOUS),
        (int, int | str, 5),
        (Word, Word | Level, Word.A),
        (dict[str, int], dict[str, int] | P, {"P": 1}),
        (P | Q, P | Q | Twin, Q("x")),
        (P | Q, Q | P | None, P(1)),
    ],
)
def test_a_widened_annotation_still_reads_what_is_queued(before: Any, after: Any, value: Any) -> None:
    assert same(value, returning(after).decode_result(returning(before).encode_result(value)))


def test_the_first_member_that_fits_reads_a_value_whatever_came_before() -> None:
    assert returning(str | datetime).decode_result(b'"2024-01-01T00:00:00"') == "2024-01-01T00:00:00"
    assert returning(datetime | str).decode_result(b'"2024-01-01T00:00:00"') == datetime(2024, 1, 1)


def test_a_class_renamed_inside_a_union_still_reads_what_is_queued() -> None:
    assert returning(Renamed | Q).decode_result(returning(P | Q).encode_result(P(1))) == Renamed(1)
    assert returning(Renamed | Q).decode_result(returning(P | Q).encode_result(Q("x"))) == Q("x")


def test_what_may_be_any_of_several_renamed_classes_is_not_guessed() -> None:
    queued = returning(P | Q).encode_result(P(1))

    with pytest.raises(DecodingError, match="may be any of Renamed, Twin"):
        returning(Renamed | Twin).decode_result(queued)


@attrs.define
class Node:
    following: Node | None = None


def test_a_long_chain_of_optional_values_is_read_once() -> None:
    chain = None
    for _ in range(60):
        chain = Node(chain)

    task = returning(Node | None)
    assert same(chain, task.decode_result(task.encode_result(chain)))


# Published data


class Line(pydantic.BaseModel):
    sku: str = pydantic.Field(alias="SKU")
    price: Decimal


class Order(pydantic.BaseModel):
    id: UUID
    lines: list[Line]
    placed: datetime
    note: str | None = None


class Secret(pydantic.BaseModel):
    password: pydantic.SecretStr


class Tagged(pydantic.RootModel[list[int]]):
    pass


class Special(Line):
    more: int = 0


LINE = Line(SKU="a", price=Decimal("1.10"))
ORDER = Order(id=UUID(int=1), lines=[LINE], placed=datetime(2024, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("name", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("annotation", "value"),
    [(Order, ORDER), (list[Line], [LINE]), (Order | P, ORDER), (Order | P, P(1)), (Tagged, Tagged([1, 2]))],
)
def test_a_pydantic_model_comes_back_as_itself(annotation: Any, value: Any, name: str) -> None:
    task = returning(annotation, name)
    back = task.decode_result(task.encode_result(value))

    assert (type(back), back) == (type(value), value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Secret, Secret(password=pydantic.SecretStr("x"))),
        (Line, Special(SKU="a", price=Decimal(1))),
        (Order, ORDER.model_copy(update={"placed": AMBIGUOUS})),
        (Order, ORDER.model_copy(update={"lines": [Special(SKU="a", price=Decimal(1))]})),
    ],
)
def test_a_pydantic_model_that_would_change_is_refused(annotation: Any, value: Any) -> None:
    with pytest.raises(EncodingError, match="come back"):
        returning(annotation).encode_result(value)


def test_a_stored_model_that_does_not_validate_is_a_decoding_error() -> None:
    with pytest.raises(DecodingError, match="Line refuses its fields"):
        returning(Line).decode_result(b'{"SKU":"a","price":"no number"}')


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and self.cents == other.cents

    __hash__ = None  # type: ignore[assignment]  # like most values that can change


class Coin(Money):
    pass


@pytest.fixture
def money() -> Iterator[None]:
    codec.register(Money, lambda value: {"cents": value.cents}, lambda plain: Money(plain["cents"]))
    yield
    del REGISTERED[Money]
    codec.register(P, attrs.astuple, lambda plain: P(*plain))
    del REGISTERED[P]


@pytest.mark.usefixtures("money")
def test_a_registered_class_travels_also_inside_of_others() -> None:
    for annotation, value in ((Money, Money(5)), (list[Money], [Money(5)]), (Money | P, Money(5)), (Money | P, P(1))):
        task = returning(annotation)
        assert task.decode_result(task.encode_result(value)) == value
    with pytest.raises(EncodingError, match="come back as Money"):
        returning(Money).encode_result(Coin(5))


def test_a_class_whose_registered_functions_lose_data_is_refused_when_sent() -> None:
    codec.register(Money, lambda _: 0, Money)
    try:
        with pytest.raises(EncodingError, match="would not come back equal"):
            returning(Money).encode_result(Money(5))
    finally:
        del REGISTERED[Money]


@pytest.mark.parametrize(
    "wrong", [(int, str, int), (dict, str, int), ("Money", str, int), (Money, None, int), (Money, str, 5)]
)
def test_registering_what_is_no_class_of_ones_own_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="register"):
        codec.register(*wrong)


# Properties

SCALARS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (str, st.text(st.characters(exclude_categories=("Cs",)))),
    (bool, st.booleans()),
    (bytes, st.binary()),
    (type(None), st.none()),
    (Word, st.sampled_from(Word)),
    (Level, st.sampled_from(Level)),
    (Decimal, st.decimals(allow_nan=False)),
    (UUID, st.uuids()),
    (timedelta, st.timedeltas()),
    (date, st.dates()),
    (datetime, st.datetimes(timezones=st.one_of(st.none(), st.timezones(), st.just(UTC)))),
    (time, st.times()),
    (P, st.builds(P, st.integers())),
    (Pair, st.builds(Pair, st.integers(), st.integers())),
]


def _nested(children: st.SearchStrategy[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    """Annotations of collections and unions of others, each with a value."""
    return st.one_of(
        children.map(lambda pair: (list[pair[0]], [pair[1]])),  # type: ignore[name-defined]  # made while it runs
        children.map(lambda pair: (tuple[pair[0], ...], (pair[1],) * 2)),  # type: ignore[name-defined]
        children.map(lambda pair: (dict[str, pair[0]], {"a": pair[1]})),  # type: ignore[name-defined]
        children.map(lambda pair: (pair[0] | None, pair[1])),
        st.tuples(children, children).map(lambda two: (two[0][0] | two[1][0], two[1][1])),
        st.tuples(children, children).map(lambda two: (tuple[two[0][0], two[1][0]], (two[0][1], two[1][1]))),  # type: ignore[name-defined]
    )


TYPED = st.recursive(
    st.sampled_from(SCALARS).flatmap(lambda pair: st.tuples(st.just(pair[0]), pair[1])), _nested, max_leaves=6
)


@given(TYPED, st.sampled_from(["json", "msgpack"]))
def test_any_typed_value_comes_back_or_is_refused_where_it_is_sent(typed: tuple[Any, Any], name: str) -> None:
    annotation, value = typed
    task = returning(annotation, name)
    try:
        sent = task.encode_result(value)
    except EncodingError:
        return

    assert same(value, task.decode_result(sent))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([Word.A, Level.LOW, Number(3)]),
    lambda children: (
        st.lists(children)
        | st.dictionaries(st.text() | st.just(Word.A), children)
        | st.builds(Row, st.lists(st.integers()))
        | st.tuples(children)
    ),
    max_leaves=8,
)


@given(PLAIN, st.sampled_from(["json", "msgpack"]))
def test_any_value_without_an_annotation_comes_back_or_is_refused(value: Any, name: str) -> None:
    task = returning(Any, name)
    try:
        sent = task.encode_result(value)
    except EncodingError:
        return

    assert same(value, task.decode_result(sent))
