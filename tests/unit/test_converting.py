"""How values travel by their annotations: exactly, or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import abc
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Optional, Union
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric_worker._codecs import Conversions
from flowfabric_worker.codec import DecodingError, EncodingError
from flowfabric_worker.engine.ids import ExecutionId
from tests.support.converted import (
    ID,
    MOMENT,
    Box,
    Branch,
    Card,
    Cash,
    Color,
    Level,
    Line,
    Options,
    Order,
    Page,
    Pair,
    Permission,
    Point,
    Shape,
    SpecialOrder,
    Tree,
    UserId,
    returning,
)

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
    (ExecutionId, ExecutionId(3, str(ID))),
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
    """Return a name that is the same in every process: the order of a set is not."""
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
    ("annotation", "value"),
    [
        (float, 3),
        (float, 10**400),
        (float, True),
        (int, True),
        (Sequence[int], (1, 2)),
        (Sequence[int], [1, 2]),
        (abc.Set[int], frozenset({1, 2})),
        (float | datetime, 3),
    ],
)
def test_a_value_of_a_subclass_comes_back_as_its_own_class(annotation: Any, value: Any) -> None:
    task = returning(annotation)
    result = task.decode_result(task.encode_result(value))
    assert (result, type(result)) == (value, type(value))


def test_msgpack_takes_bytes_without_an_annotation_and_json_refuses_them() -> None:
    task = returning(Any, "msgpack")
    assert task.decode_result(task.encode_result([b"\xff"])) == [b"\xff"]
    with pytest.raises(EncodingError, match="a bytes is encoded only"):
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


@given(annotation=st.sampled_from([annotation for annotation, _ in ROUND_TRIPS]), stored=plain_values)
def test_any_stored_bytes_decode_or_are_a_decoding_error(annotation: Any, stored: Any) -> None:
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


def test_one_conversion_is_shared_by_all_uses_of_an_annotation() -> None:
    conversions = Conversions()
    assert conversions.of(list[int]) is conversions.of(list[int])
    assert conversions.of(Annotated[int, []]) is conversions.of(int)


def test_metadata_that_cannot_be_hashed_does_no_harm() -> None:
    task = returning(list[Annotated[date, {}]])
    assert task.decode_result(task.encode_result([date(2024, 1, 1)])) == [date(2024, 1, 1)]
