"""Random values come back equal, or are refused."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from flowfabric_worker._codecs.equality import same
from flowfabric_worker.codec import EncodingError
from tests.support.converted import returning
from tests.support.values import Level, Number, P, Pair, Row, Word

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
