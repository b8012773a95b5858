"""Values that would not travel exactly are refused, when they are sent and when they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import pytest

from flowfabric_worker.codec import DecodingError, EncodingError
from tests.support.converted import (
    ID,
    MOMENT,
    Card,
    Cash,
    Color,
    Line,
    Options,
    Order,
    Page,
    Positive,
    Shape,
    SpecialOrder,
    Tree,
    returning,
)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("annotation", "value", "reason"),
    [
        (int, "7", "expected int, got str"),
        (int, 7.0, "expected int, got float"),
        (float, "7", "expected float, got str"),
        (str, 7, "expected str, got int"),
        (str, b"a", "expected str, got bytes"),
        (bool, 1, "expected bool, got int"),
        (None, 5, "expected None, got int"),
        (int, None, "expected int, got None"),
        (date, MOMENT, "expected date, got datetime"),
        (datetime, date(2024, 1, 1), "expected datetime, got date"),
        (datetime, "2024-01-01", "expected datetime, got str"),
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
        (Callable[[], int], len, "annotated Callable[[], int] cannot be encoded"),
        (type[int], int, "cannot be encoded"),
        (Any, MOMENT, "a datetime is encoded only if an annotation names its type"),
        (Any, {"a": [1, {2}]}, "at ['a'][1]: a set is encoded only"),
        (Any, (1, 2), "a tuple is encoded only"),
        (Any, {1: 2}, "needs keys of type str, not int"),
        (dict, {1: 2}, "expected str, got int"),
        (Any, Card("1"), "a Card is encoded only"),
    ],
    ids=lambda part: repr(part)[:50],
)
def test_a_value_that_would_change_is_refused_with_argument_and_reason(
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
        (Card | Cash, b'{"Cheque":{}}', "no member of Card | Cash"),
        (Card | Cash, b'{"Card":{}}', "the field 'number' of Card is missing"),
    ],
    ids=lambda part: repr(part)[:50],
)
def test_a_stored_value_of_another_type_is_a_decoding_error(annotation: Any, stored: bytes, reason: str) -> None:
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
