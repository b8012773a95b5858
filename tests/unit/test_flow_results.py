"""The results of parents as arguments: they travel in the parent's form, and are read by the child's annotation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

from flowfabric_worker import DecodingError, ExecutionFailed, ResultError
from flowfabric_worker._codecs.assignable import accepts
from flowfabric_worker.codec import ParentResult, TaskCodec, find_codec
from flowfabric_worker.engine.ids import ExecutionId

JSON, MSGPACK = find_codec("json"), find_codec("msgpack")
MOMENT = datetime(2030, 1, 1, tzinfo=UTC)
FAILURE = ExecutionFailed(ExecutionId.mint(), "no luck")


@attrs.frozen
class Card:
    """A member of a union."""

    number: int


@attrs.frozen
class Cash:
    """Another member, which a card would fit too."""

    number: int


def sent(function: Callable[..., Any], holes: dict[int | str, Any], *args: Any, **kwargs: Any) -> tuple[Any, bytes]:
    codec = TaskCodec(function, JSON)
    return codec, codec.encode_call(args, kwargs, holes)


def result_of(annotation: Any, value: Any, codec: Any = JSON) -> ParentResult:
    def parent() -> Any: ...

    parent.__annotations__["return"] = annotation
    return ParentResult(codec=codec.name, data=TaskCodec(parent, codec).encode_result(value))


def test_each_result_is_read_by_the_annotation_of_its_place() -> None:
    def child(when: datetime, texts: Sequence[bytes], *rest: int, card: Card | Cash, plain: Any = 7) -> None: ...

    codec, payload = sent(
        child,
        {0: None, 1: [None, None], 2: None, "card": "Cash", "plain": None},
        None,
        None,
        None,
        5,
        card=None,
        plain=None,
    )
    args, kwargs = codec.decode_call(
        payload,
        {
            "0": result_of(datetime, MOMENT, MSGPACK),
            "1[0]": result_of(bytes, b"\0", MSGPACK),
            "1[1]": result_of(bytes, b"\1"),
            "2": result_of(int, 3),
            "card": result_of(Cash, Cash(9)),
        },
    )

    assert args == (MOMENT, [b"\0", b"\1"], 3, 5)
    assert kwargs == {"card": Cash(9)}


def test_a_missing_result_shortens_a_list_or_leaves_the_default() -> None:
    def child(first: int, some: tuple[int, ...], fallback: str = "none", *, nested: list[list[int]]) -> None: ...

    codec, payload = sent(
        child,
        {0: {"first": [None, None]}, 1: [None, None, None], 2: None, "nested": [[None], [], [None, None]]},
        *(None, None, None),
        nested=None,
    )
    args, kwargs = codec.decode_call(
        payload,
        {
            "0[1]": result_of(int, 8),
            "1[0]": result_of(int, 1),
            "1[2]": result_of(int, 2),
            "nested[2][1]": result_of(int, 4),
        },
    )

    assert args == (8, (1, 2), "none")
    assert kwargs == {"nested": [[], [], [4]]}


def test_failures_stand_where_results_would() -> None:
    def child(values: list[int | ResultError]) -> None: ...

    codec, payload = sent(child, {"values": [None, "int"]}, values=None)
    _, kwargs = codec.decode_call(payload, {"values[0]": ParentResult(error=FAILURE), "values[1]": result_of(int, 2)})

    assert kwargs == {"values": [FAILURE, 2]}


def test_results_without_holes_fill_the_arguments_that_they_name() -> None:
    def child(quotes: list[int], best: int, other: Any = None) -> None: ...

    payload, one = b'[[],{"other":"x"}]', result_of(int, 1)
    _, kwargs = TaskCodec(child, JSON).decode_call(
        payload, {"quotes": one, "quotes[0]": one, "best": one, "best[0]": one}
    )

    assert kwargs == {"quotes": [1], "best": 1, "other": "x"}


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ({}, "no result came for the argument 'number'"),
        ({"number": ParentResult(codec="json", data=b'"one"')}, "The result for 'number' of child.. cannot be decoded"),
        ({"number": ParentResult(codec="json", data=b"{")}, "is not json"),
        ({"number": ParentResult(codec="pickle", data=b"N.")}, "codec 'pickle'"),
    ],
)
def test_a_result_that_does_not_fit_is_a_decoding_error(results: dict[str, ParentResult], text: str) -> None:
    def child(number: int) -> None: ...

    codec, payload = sent(child, {"number": None}, number=None)
    with pytest.raises(DecodingError, match=text):
        codec.decode_call(payload, results)


@pytest.mark.parametrize("payload", [b"[[],{},[]]", b"[[],{},{},{}]", b'[[],{},{"0":null}]', b'[[],{},{"none":null}]'])
def test_a_damaged_call_with_holes_is_a_decoding_error(payload: bytes) -> None:
    def child(number: int = 0) -> None: ...

    with pytest.raises(DecodingError):
        TaskCodec(child, JSON).decode_call(payload)


FITS: list[tuple[Any, Any]] = [
    (Any, int),
    (int, Any),
    (float, int),
    (int, bool),
    (int | None, int),
    (int | str, bool | str),
    (Sequence[float], list[int]),
    (Sequence[int], tuple[int, int]),
    (tuple[int, ...], tuple[int, int]),
    (dict[str, float], dict[str, int]),
    (list[Any], list[Card]),
    (object, Card),
    (Card | ResultError, Card),
]
DIFFERS: list[tuple[Any, Any]] = [
    (int, str),
    (int, float),
    (int, int | None),
    (str, datetime),
    (Card, Cash),
    (Card, dict[str, int]),
    (list[int], list[str]),
    (list[int], Sequence[int]),
    (tuple[int, ...], list[int]),
    (tuple[int, int], tuple[int, int, int]),
    (dict[str, int], dict[str, str]),
    (None, int),
]


@pytest.mark.parametrize(("parameter", "result"), FITS)
def test_a_result_fits_a_wider_annotation(parameter: Any, result: Any) -> None:
    assert accepts(parameter, result)


@pytest.mark.parametrize(("parameter", "result"), DIFFERS)
def test_a_result_of_another_annotation_does_not_fit(parameter: Any, result: Any) -> None:
    assert not accepts(parameter, result)
