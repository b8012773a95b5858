"""How values travel by their annotations: exactly, or not at all."""

from __future__ import annotations

import dataclasses
import enum
import json
import subprocess
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Required,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric_worker.codec import DecodingError, EncodingError, TaskCodec, find_codec
from flowfabric_worker.converting import Conversions

T = TypeVar("T")
UserId = NewType("UserId", int)
ID = UUID("01234567-89ab-7def-8123-456789abcdef")
MOMENT = datetime(2024, 2, 29, 12, 30, 59, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Shape(enum.Enum):
    """Values that are not scalars."""

    POINT = (0, 0)
    LINE = (0, 1)


class Permission(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


@attrs.frozen
class Line:
    sku: str
    price: Decimal
    count: int = 1


@attrs.define
class Order:
    id: UUID
    lines: list[Line]
    placed: datetime
    notes: dict[Color, set[str]] = attrs.field(factory=dict)
    _secret: bytes = b""


@attrs.define
class SpecialOrder(Order):
    gift: bool = True


@dataclasses.dataclass
class Tree:
    name: str
    children: list["Tree"] = dataclasses.field(default_factory=list)  # noqa: UP037 - a reference inside a list
    parent_id: UUID | None = None


# As where annotations are no strings: the reference stands inside of a list.
Branch = dataclasses.make_dataclass(
    "Branch", [("twigs", types.GenericAlias(list, ("Branch",)))], namespace={"__module__": __name__}
)


@attrs.frozen
class Card:
    number: str


@attrs.frozen
class Cash:
    number: str


@attrs.frozen
class Box(Generic[T]):
    content: T
    more: list[T] = attrs.field(factory=list)


@attrs.frozen
class Positive:
    value: int = attrs.field(validator=attrs.validators.gt(0))


class Options(TypedDict):
    until: date
    depth: NotRequired[int]


class Page(TypedDict, Generic[T], total=False):
    items: Required[list[T]]
    next: Page[T]


class Pair(NamedTuple, Generic[T]):
    first: T
    others: list[T]


class Word(enum.StrEnum):
    A = "a"


class Point(NamedTuple):
    x: float
    at: datetime | None = None


def returning(annotation: Any, codec: Any = "json") -> TaskCodec:
    """The codec of a task with this annotation for its one parameter and for its result."""

    def task(value):  # type: ignore[no-untyped-def]  # annotated below, with any object
        return value

    task.__annotations__ = {"value": annotation, "return": annotation}
    return TaskCodec(task, find_codec(codec) if isinstance(codec, str) else codec)


ROUND_TRIPS: list[tuple[Any, Any]] = [
    (None, None),
    (bool, True),
    (int, 7),
    (int, -(10**40)),
    (int, 2**64),
    (int, True),
    (float, 1.5),
    (float, -0.0),
    (str, "Grüße 🎉 \x00 \u2028 \"'\\"),
    (bytes, b""),
    (bytes, bytes(range(256))),
    (datetime, MOMENT),
    (datetime, datetime(2024, 1, 1, tzinfo=UTC)),
    (datetime, datetime(1, 1, 1, 0, 0, 0, 1)),
    (date, date(2024, 2, 29)),
    (time, time(23, 59, 59, 999999)),
    (time, time(1, 2, tzinfo=timezone(timedelta(hours=-3)))),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (timedelta, timedelta.max),
    (timedelta, timedelta.min),
    (UUID, ID),
    (Decimal, Decimal("1.10")),
    (Decimal, Decimal("-1E+400")),
    (Path, Path("/tmp/ä b")),
    (PurePosixPath, PurePosixPath("../x")),
    (Color, Color.BLUE),
    (Level, Level.HIGH),
    (Shape, Shape.LINE),
    (Permission, Permission.READ | Permission.WRITE),
    (Literal["a", 1, True, None], True),
    (Literal["a", 1, True, None], 1),
    (Literal[Color.RED, b"x"], Color.RED),
    (Literal[Color.RED, b"x"], b"x"),
    (Literal["red", Color.RED], Color.RED),
    (Literal["red", Color.RED], "red"),
    (UserId, UserId(5)),
    (Annotated[datetime, "when"], MOMENT),
    (list, [1, "a", [None], {"k": [1.5]}]),
    (list[int], []),
    (list[int], [1, 2, True]),
    (list[list[date]], [[date(2024, 1, 1)], []]),
    (Sequence[UUID], [ID]),
    (set[int], {3, 1, 2}),
    (frozenset[Color], frozenset({Color.RED, Color.BLUE})),
    (set[tuple[int, str]], {(1, "a"), (2, "b")}),
    (tuple, (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (tuple[()], ()),
    (tuple[int, datetime, bytes], (1, MOMENT, b"\xff")),
    (dict, {"a": [1]}),
    (dict[str, Any], {"a": [1, {"b": None}]}),
    (dict[Any, Any], {"a": 1}),
    (dict[int, str], {1: "a", -2: "b"}),
    (dict[float, int], {0.5: 1}),
    (dict[bool, int], {True: 1, False: 0}),
    (dict[UUID, list[int]], {ID: [1]}),
    (dict[Color, int], {Color.RED: 1}),
    (dict[Level, int], {Level.LOW: 1}),
    (dict[bytes, int], {b"\xff": 1}),
    (dict[tuple[int, str], int], {(1, "a"): 1}),
    (dict[int | str, int], {1: 1, "1": 2}),
    (dict[str | None, int], {None: 1, "null": 2}),
    (Mapping[date, Decimal], {date(2024, 1, 1): Decimal("0.1")}),
    (Optional[datetime], None),  # noqa: UP045 - the other way to write it
    (Optional[datetime], MOMENT),  # noqa: UP045
    (int | None, None),
    (Union[int, str, None], "x"),  # noqa: UP007
    (int | float, 1),
    (int | float, 1.0),
    (str | datetime, MOMENT),
    (str | datetime, MOMENT.isoformat()),
    (int | datetime, MOMENT),
    (str | bytes, b"a"),
    (str | bytes, "a"),
    (str | Color, Color.RED),
    (str | Color, "red"),
    (Literal["a"] | date, date(2024, 1, 1)),
    (Literal["a"] | date, "a"),
    (str | list[str], ["a"]),
    (list[int] | set[int], {1}),
    (list[int] | list[str], ["a"]),
    (list[Card | Cash | None], [Card("1"), Cash("1"), None]),
    (Card | dict[str, Any], {"Card": {"number": "1"}}),
    (Card | dict[str, Any], Card("1")),
    (dict[str, str] | datetime | UUID, {"UUID": "x"}),
    (Order | SpecialOrder, SpecialOrder(ID, [], MOMENT)),
    (Order, Order(ID, [Line("a", Decimal("0.10")), Line("b", Decimal(2), 3)], MOMENT, {Color.RED: {"x", "y"}}, b"\0")),
    (Tree, Tree("root", [Tree("leaf", parent_id=ID), Tree("other", [Tree("deep")])])),
    (Branch, Branch([Branch([])])),
    (Box[datetime], Box(MOMENT, [MOMENT])),
    (Box[Box[bytes]], Box(Box(b"x"))),
    (Options, {"until": date(2024, 1, 1)}),
    (Options, {"until": date(2024, 1, 1), "depth": 3}),
    (Point, Point(1.0, MOMENT)),
    (Pair[bytes], Pair(b"a", [b"b"])),
    (Page[date], {"items": [date(2024, 1, 1)], "next": {"items": []}}),
    (Any, {"a": [None, True, 1, 1.5, "x", {}]}),
    (object, [1]),
]


def _id(part: object) -> str:
    """A name that is the same in every process: the order of a set is not."""
    return repr(sorted(map(repr, part)) if isinstance(part, set | frozenset) else part)[:60]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(("annotation", "value"), ROUND_TRIPS, ids=_id)
def test_a_value_comes_back_equal_and_of_its_own_class(codec: str, annotation: Any, value: Any) -> None:
    task = returning(annotation, codec)
    ((argument,), kwargs) = task.decode_call(task.encode_call((value,), {}))
    result = task.decode_result(task.encode_result(value))
    assert kwargs == {}
    for back in (argument, result):
        assert back == value
        assert type(back) is type(value)
        assert repr(back) == repr(value) or isinstance(value, set | frozenset | Order)


@pytest.mark.parametrize(
    ("annotation", "value", "back"),
    [
        (float, 3, 3.0),
        (str, Word.A, "a"),
        (int, Level.HIGH, 2),
        (Sequence[int], (1, 2), [1, 2]),
        (float | datetime, 3, 3.0),
    ],
)
def test_a_value_that_only_resembles_its_annotation_comes_back_as_the_annotation_says(
    annotation: Any, value: Any, back: Any
) -> None:
    task = returning(annotation)
    result = task.decode_result(task.encode_result(value))
    assert (result, type(result)) == (back, type(back))


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("annotation", "value", "reason"),
    [
        (int, "7", "expected int, got str"),
        (int, 7.0, "expected int, got float"),
        (float, "7", "expected float, got str"),
        (float, 2**53 + 1, "no float can hold"),
        (float, 10**400, "too large"),
        (str, 7, "expected str, got int"),
        (str, b"a", "expected str, got bytes"),
        (bool, 1, "expected bool, got int"),
        (None, 5, "expected None, got int"),
        (int, None, "expected int, got None"),
        (date, MOMENT, "expected date, got datetime"),
        (datetime, date(2024, 1, 1), "expected datetime, got date"),
        (datetime, "2024-01-01", "expected datetime, got str"),
        (time, time(1, tzinfo=ZoneInfo("Europe/Berlin")), "offset depends on the date"),
        (UUID, str(ID), "expected UUID, got str"),
        (bytes, bytearray(b"a"), "expected bytes, got bytearray"),
        (Color, "red", "expected Color, got str"),
        (Literal["a", 1], True, "something else of type bool"),
        (Literal["a", 1], [], "something else of type list"),
        (list[str], "abc", "expected list[str], got str"),
        (list[int], (1, 2), "expected list[int], got tuple"),
        (list[int], [1, 2, "3"], "at [2]: expected int, got str"),
        (Sequence[str], "abc", "expected Sequence[str], got str"),
        (tuple[int, ...], [1], "expected tuple[int, ...], got list"),
        (tuple[int, str], (1,), "with 2 items, got 1"),
        (tuple[int, str], (1, 2), "at [1]: expected str, got int"),
        (dict[str, int], [("a", 1)], "expected dict[str, int], got list"),
        (dict[str, int], {"a": "b"}, "at ['a']: expected int, got str"),
        (dict[int, int], {"a": 1}, "at ['a']: expected int, got str"),
        (int | None, "x", "expected int | None, got str"),
        (Card | Cash, Line("a", Decimal(1)), "expected Card | Cash, got Line"),
        (Line | None, Line("a", 1.5), "at .price: expected Decimal, got float"),  # type: ignore[arg-type]  # on purpose
        (Order, SpecialOrder(ID, [], MOMENT), "expected Order, got SpecialOrder; annotate the subclass"),
        (list[Order], [Order(ID, [Line("a", 2)], MOMENT)], "at [0].lines[0].price: expected Decimal, got int"),  # type: ignore[arg-type]  # on purpose
        (Options, {}, "the key 'until' of Options is missing"),
        (Options, {"until": date(2024, 1, 1), "x": 1}, "Options has no key 'x'"),
        (Page[date], {}, "the key 'items' of Page[date] is missing"),
        (Options, {"until": 1}, "at ['until']: expected date, got int"),
        (Callable[[], int], len, "annotated Callable[[], int] cannot travel"),
        (type[int], int, "cannot travel"),
        (Any, MOMENT, "a datetime travels only where an annotation says so"),
        (Any, {"a": [1, {2}]}, "at ['a'][1]: a set travels only"),
        (Any, (1, 2), "a tuple travels only"),
        (Any, {1: 2}, "needs keys of type str, not int"),
        (dict, {1: 2}, "expected str, got int"),
        (Any, Card("1"), "a Card travels only"),
    ],
    ids=lambda part: repr(part)[:50],
)
def test_what_would_not_come_back_as_it_is_is_refused_with_the_argument_and_the_reason(
    codec: str, annotation: Any, value: Any, reason: str
) -> None:
    task = returning(annotation, codec)
    with pytest.raises(EncodingError) as of_argument:
        task.encode_call((value,), {})
    with pytest.raises(EncodingError) as of_result:
        task.encode_result(value)
    assert reason in str(of_argument.value)
    assert reason in str(of_result.value)
    assert str(of_argument.value).startswith("The argument 'value' of task() cannot be encoded")
    assert str(of_result.value).startswith("The result of task() cannot be encoded")


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_value_that_holds_itself_is_refused(codec: str) -> None:
    endless: list[Any] = []
    endless.append(endless)
    tree = Tree("a")
    tree.children.append(tree)
    for annotation, value in [(Any, endless), (Tree, tree)]:
        with pytest.raises(EncodingError, match="recursion"):
            returning(annotation, codec).encode_result(value)


def test_msgpack_takes_bytes_without_an_annotation_and_json_refuses_them() -> None:
    task = returning(Any, "msgpack")
    assert task.decode_result(task.encode_result([b"\xff"])) == [b"\xff"]
    with pytest.raises(EncodingError, match="a bytes travels only"):
        returning(Any, "json").encode_result([b"\xff"])


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@given(value=plain_values)
def test_nested_plain_values_round_trip_without_annotations(codec: str, value: Any) -> None:
    task = returning(Any, codec)
    assert repr(task.decode_result(task.encode_result(value))) == repr(value)


@given(value=st.timedeltas() | st.datetimes() | st.decimals(allow_nan=False) | st.binary() | st.none())
def test_typed_values_round_trip_through_a_union_of_texts(value: Any) -> None:
    task = returning(timedelta | datetime | Decimal | bytes | None)
    assert task.decode_result(task.encode_result(value)) == value


@pytest.mark.parametrize(
    ("annotation", "stored", "reason"),
    [
        (int, b'"5"', "expected int, got str"),
        (int, b"5.0", "expected int, got float"),
        (str, b"5", "expected str, got int"),
        (datetime, b'"yesterday"', "not the text of a datetime"),
        (datetime, b"5", "expected the text of a datetime, got int"),
        (UUID, b'"x"', "not the text of a UUID"),
        (Decimal, b'"x"', "not the text of a Decimal"),
        (timedelta, b'"Infinity"', "not the text of a timedelta"),
        (timedelta, b'"1E+9"', "it must be seconds"),
        (timedelta, b'"999999999999999"', "not the text of a timedelta"),
        (bytes, b'"?"', "not the text of a bytes"),
        (Color, b'"green"', "expected a value of Color, got 'green'"),
        (Shape, b'"CIRCLE"', "expected a name of Shape, got 'CIRCLE'"),
        (list[int], b"{}", "expected a list for list[int], got dict"),
        (list[int], b'[1,"a"]', "at [1]: expected int, got str"),
        (tuple[int, int], b"[1]", "with 2 items, got 1"),
        (set[Any], b"[[1]]", "unhashable"),
        (dict[int, int], b'{"x":1}', "at ['x']: this key is not JSON"),
        (Order, b"[]", "expected an object for Order, got list"),
        (Line, b'{"sku":"a"}', "the field 'price' of Line is missing"),
        (list[Line], b'[{"sku":"a","price":1}]', "at [0].price: expected the text of a Decimal, got int"),
        (Positive, b'{"value":0}', "Positive refuses its fields"),
        (Card | Cash, b'{"Cheque":{}}', "expected Card | Cash, got dict"),
        (Card | Cash, b'{"Card":{}}', "the field 'number' of Card is missing"),
    ],
    ids=lambda part: repr(part)[:50],
)
def test_a_stored_value_that_does_not_fit_its_annotation_is_a_decoding_error(
    annotation: Any, stored: bytes, reason: str
) -> None:
    task = returning(annotation)
    with pytest.raises(DecodingError) as of_argument:
        task.decode_call(b"[[" + stored + b"]]")
    with pytest.raises(DecodingError) as of_result:
        task.decode_result(stored)
    assert reason in str(of_argument.value)
    assert reason in str(of_result.value)
    assert "argument 'value' of task()" in str(of_argument.value)


@pytest.mark.parametrize(
    "annotation", [int, Color, datetime, Decimal, Positive, dict[int, int], Literal["a"], Card | Cash]
)
@pytest.mark.parametrize("stored", ['"{}"', '{{"value":"{}"}}', '{{"{}":1}}'])
def test_errors_quote_at_most_a_little_of_what_is_stored(annotation: Any, stored: str) -> None:
    secret = "s3cret" * 1000
    with pytest.raises(DecodingError) as raised:
        returning(annotation).decode_result(stored.format(secret).encode())
    assert len(str(raised.value)) < 250


@given(annotation=st.sampled_from([annotation for annotation, _ in ROUND_TRIPS]), stored=plain_values)
def test_whatever_is_stored_decodes_or_is_a_decoding_error(annotation: Any, stored: Any) -> None:
    task = returning(annotation)
    try:
        value = task.decode_result(json.dumps(stored).encode())
    except DecodingError:
        return
    assert task.decode_result(task.encode_result(value)) == value


def test_fields_that_a_reader_does_not_know_are_ignored() -> None:
    task = returning(Card)
    assert task.decode_result(b'{"number":"1","colour":"gold"}') == Card("1")


def test_a_set_is_the_same_bytes_in_every_process() -> None:
    script = (
        "from flowfabric_worker.codec import TaskCodec, find_codec\n"
        "def task(words: set[str]): ...\n"
        "print(TaskCodec(task, find_codec('json')).encode_call(({'a', 'b', 'c', 'd', 'e'},), {}))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, text=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert outputs == {'b\'[[["a","b","c","d","e"]]]\'\n'}


def test_the_decimal_text_of_a_duration_is_in_seconds() -> None:
    task = returning(timedelta)
    assert task.encode_result(timedelta(minutes=1, milliseconds=500)) == b'"60.5"'
    assert task.encode_result(timedelta(minutes=-10)) == b'"-600"'
    assert task.decode_result(b'"90"') == timedelta(seconds=90)


def test_one_conversion_serves_all_who_ask_for_the_same_annotation() -> None:
    conversions = Conversions()
    assert conversions.of(list[int]) is conversions.of(list[int])
    assert conversions.of(Annotated[int, []]) is conversions.of(int)


def test_metadata_that_cannot_be_hashed_does_no_harm() -> None:
    task = returning(list[Annotated[date, {}]])
    assert task.decode_result(task.encode_result([date(2024, 1, 1)])) == [date(2024, 1, 1)]
