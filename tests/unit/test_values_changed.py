"""Values that were encoded under another annotation."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import attrs
import pytest

from flowfabric_worker._codecs.equality import same
from flowfabric_worker.codec import DecodingError
from tests.support.converted import returning
from tests.support.values import AMBIGUOUS, Level, P, Word


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


def test_an_ambiguous_renamed_class_is_not_guessed() -> None:
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
