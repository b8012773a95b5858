"""Calls, results and frames of tasks, and the codecs that write them."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Generator, Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import (
    Any,
)
from uuid import UUID

import attrs
import pytest

from flowfabric_worker.codec import DecodingError, EncodingError, TaskCodec, find_codec

ID = UUID("01234567-89ab-7def-8123-456789abcdef")
MOMENT = datetime(2024, 2, 29, 12, 30, 59, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))


@attrs.frozen
class Card:
    number: str


def returning(annotation: Any, codec: Any = "json") -> TaskCodec:
    """Return the codec of a task with this annotation for its one parameter and for its result."""

    def task(value):  # type: ignore[no-untyped-def]  # annotated below, with any object
        return value

    task.__annotations__ = {"value": annotation, "return": annotation}
    return TaskCodec(task, find_codec(codec) if isinstance(codec, str) else codec)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "a\ud800", "\udfff", 10**5000], ids=lambda value: type(value).__name__
)
def test_json_refuses_what_it_cannot_hold_and_names_the_argument(value: Any) -> None:
    def task(first, second): ...  # type: ignore[no-untyped-def]  # unannotated on purpose

    with pytest.raises(EncodingError, match=r"^The argument 'second' of task\(\) cannot be encoded: "):
        TaskCodec(task, find_codec("json")).encode_call((1,), {"second": [value]})
    with pytest.raises(EncodingError, match=r"^The result of task\(\) cannot be encoded: "):
        TaskCodec(task, find_codec("json")).encode_result({"x": value})


def send_receipt(order_id: int, to: str, *copies: str, when: datetime | None = None, **more: UUID) -> None: ...


def test_a_call_is_stored_as_it_was_written_and_defaults_are_not() -> None:
    task = TaskCodec(send_receipt, find_codec("json"))
    assert task.encode_call((7, "a@b.c"), {}) == b'[[7,"a@b.c"]]'
    assert task.encode_call((7,), {"to": "ä"}) == '[[7],{"to":"ä"}]'.encode()
    assert task.decode_call(task.encode_call((7,), {"to": "a"})) == ((7,), {"to": "a"})
    assert TaskCodec(lambda: None, find_codec("json")).encode_call((), {}) == b"[[]]"


def test_no_payload_is_a_call_without_arguments_and_no_result_is_none() -> None:
    task = TaskCodec(lambda: None, find_codec("json"))
    assert task.decode_call(None) == ((), {})
    assert task.decode_result(None) is None
    assert task.decode_result(b"null") is None


def test_star_arguments_are_converted_one_by_one() -> None:
    task = TaskCodec(send_receipt, find_codec("json"))
    call = ((7, "a", "b", "c"), {"when": MOMENT, "reference": ID})
    assert task.decode_call(task.encode_call(*call)) == call
    with pytest.raises(EncodingError, match="argument 'copies' of"):
        task.encode_call((7, "a", "b", 1), {})
    with pytest.raises(EncodingError, match="argument 'more' of"):
        task.encode_call((7, "a"), {"reference": "x"})


def plain_defaults(a: int, /, b: int, c: int = 3, *, d: int, e: int = 5) -> None: ...


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (plain_defaults, (), {}),
        (plain_defaults, (1,), {}),
        (plain_defaults, (1, 2), {}),
        (plain_defaults, (1, 2, 3, 4), {"d": 1}),
        (plain_defaults, (1, 2), {"b": 1, "d": 1}),
        (plain_defaults, (1, 2), {"d": 1, "x": 2}),
        (plain_defaults, (), {"a": 1, "b": 2, "d": 1}),
        (send_receipt, (), {}),
        (send_receipt, (1,), {"copies": 2}),
        (send_receipt, (1, "a"), {"order_id": 1}),
        (lambda: None, (1,), {}),
        (lambda: None, (), {"x": 1}),
    ],
)
def test_a_wrong_call_raises_what_python_itself_would_say(
    function: Callable[..., None], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(TypeError) as of_python:
        function(*args, **kwargs)
    with pytest.raises(TypeError) as of_codec:
        TaskCodec(function, find_codec("json")).encode_call(args, kwargs)
    assert str(of_codec.value) == str(of_python.value)


def test_a_function_is_never_run_by_its_codec() -> None:
    def task(value: int = 1) -> int:
        raise AssertionError(value)

    codec = TaskCodec(task, find_codec("json"))
    assert codec.decode_call(codec.encode_call((), {})) == ((), {})


def test_forward_references_are_resolved_at_first_use() -> None:
    codec = TaskCodec(takes_later, find_codec("json"))
    value = Later([Later([])])
    assert codec.decode_call(codec.encode_call((value,), {})) == ((value,), {})


def takes_later(value: Later) -> None: ...


@attrs.frozen
class Later:
    inner: list[Later]


def test_an_annotation_that_does_not_resolve_is_named() -> None:
    def task(value: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - that is the point

    codec = TaskCodec(task, find_codec("json"))
    with pytest.raises(EncodingError, match=r"annotations of task\(\) do not resolve: name 'Missing'"):
        codec.encode_call((1,), {})
    with pytest.raises(DecodingError, match=r"annotations of task\(\) do not resolve: name 'Missing'"):
        codec.decode_call(b"[[1]]")


class Context:
    """Stands for what a runtime passes by itself."""


def with_context_first(context: Context, a: int, b: int = 2) -> None: ...


def with_context_last(a: int, *rest: int, context: Context) -> None: ...


def test_a_skipped_parameter_is_left_to_be_filled_by_keyword() -> None:
    first = TaskCodec(with_context_first, find_codec("json"), skip=["context"])
    args, kwargs = first.decode_call(first.encode_call((1, 5), {}))
    assert (args, kwargs) == ((), {"a": 1, "b": 5})
    with_context_first(*args, **kwargs | {"context": Context()})

    last = TaskCodec(with_context_last, find_codec("json"), skip=["context"])
    assert last.decode_call(last.encode_call((1, 2, 3), {})) == ((1, 2, 3), {})


def test_a_caller_cannot_pass_a_skipped_parameter() -> None:
    task = TaskCodec(with_context_first, find_codec("json"), skip=["context"])
    with pytest.raises(TypeError, match="unexpected keyword argument 'context'"):
        task.encode_call((1,), {"context": 1})
    with pytest.raises(TypeError, match="takes from 1 to 2 positional arguments but 3 were given"):
        task.encode_call((1, 2, 3), {})


def test_a_skipped_parameter_that_no_keyword_reaches_is_refused_at_once() -> None:
    def before_star(context: Context, *rest: int) -> None: ...

    def by_place_only(context: Context, /) -> None: ...

    for function in (before_star, by_place_only):
        with pytest.raises(TypeError, match="make it keyword-only"):
            TaskCodec(function, find_codec("json"), skip=["context"])


def counting(n: int) -> Generator[Decimal, None, date]:
    yield Decimal(n)
    return date(2024, 1, n)


def iterating(n: int) -> Iterator[UUID]:
    yield UUID(int=n)


@functools.wraps(counting)
def wrapped(n: int) -> Any:
    return counting(n)


def test_a_generator_yields_frames_and_returns_a_result() -> None:
    task = TaskCodec(counting, find_codec("json"))
    assert task.decode_frame(task.encode_frame(Decimal("1.0"))) == Decimal("1.0")
    assert task.decode_result(task.encode_result(date(2024, 1, 1))) == date(2024, 1, 1)
    with pytest.raises(EncodingError, match=r"^An emitted value of counting\(\) cannot be encoded"):
        task.encode_frame(1)
    assert TaskCodec(wrapped, find_codec("json")).encode_result(date(2024, 1, 1)) == b'"2024-01-01"'
    iterator = TaskCodec(iterating, find_codec("json"))
    assert iterator.decode_frame(iterator.encode_frame(ID)) == ID
    assert iterator.encode_result(None) == b"null"


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"{", b"null", b"7", b"[]", b"{}", b"[1]", b"[[1],[]]", b"[[1],{},{},{}]", b"[[1]] x", b"\xff"),
        *(b"[[NaN]]", b'[["\\ud800"]]', b"[" * 100_000),
    ],
)
def test_a_payload_that_is_no_call_is_a_decoding_error(payload: bytes) -> None:
    with pytest.raises(DecodingError, match=r"^The payload of task\(\) is not "):
        returning(Any).decode_call(payload)


def test_white_space_around_a_payload_is_ignored() -> None:
    assert returning(Any).decode_call(b" \n[[1]]\n") == ((1,), {})


@pytest.mark.parametrize("payload", [b"[[]]", b"[[1,2]]", b'[[1],{"x":1}]', b'[[1],{"value":1}]'])
def test_a_payload_that_does_not_fit_the_signature_is_a_decoding_error(payload: bytes) -> None:
    with pytest.raises(DecodingError, match=r"^The stored call does not match the parameters of task\(\): "):
        returning(Any).decode_call(payload)


def test_an_object_with_the_members_of_a_codec_is_one() -> None:
    class Shouting:
        name = "shouting"

        def encode(self, value: Any) -> bytes:
            return repr(value).upper().encode()

        def decode(self, data: bytes) -> Any:
            return eval(data.decode().lower())

    codec = Shouting()
    assert find_codec(codec) is codec
    task = returning(date | None, codec)
    assert task.encode_call((date(2024, 1, 1),), {}) == b"[['2024-01-01']]"
    assert task.decode_call(b"[['2024-01-01']]") == ((date(2024, 1, 1),), {})


def test_a_codec_gets_the_classes_that_it_calls_native_as_they_are() -> None:
    class Remembering:
        name = "remembering"
        native = (datetime,)

        def __init__(self) -> None:
            self.seen: list[Any] = []

        def encode(self, value: Any) -> bytes:
            self.seen.append(value)
            return b"x" * len(self.seen)

        def decode(self, data: bytes) -> Any:
            return self.seen[len(data) - 1]

    codec = Remembering()
    task = returning(dict[datetime, list[datetime]], codec)
    data = task.encode_result({MOMENT: [MOMENT]})
    assert codec.seen == [{MOMENT.isoformat(): [MOMENT]}]
    assert task.decode_result(data) == {MOMENT: [MOMENT]}


def test_an_object_that_lacks_a_member_is_no_codec() -> None:
    with pytest.raises(TypeError, match="int is not a codec: it has no name, encode, decode"):
        find_codec(7)  # type: ignore[arg-type]  # on purpose


def test_an_unknown_name_lists_the_codecs() -> None:
    with pytest.raises(ValueError, match=r"no codec 'yaml'\. Use json, msgpack, pickle"):
        find_codec("yaml")


def test_msgpack_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(ImportError, match=r"pip install 'flowfabric_worker\[msgpack\]'"):
        find_codec("msgpack")


def test_msgpack_that_is_damaged_or_of_another_kind_is_a_decoding_error() -> None:
    task = returning(Any, "msgpack")
    for data in (b"", b"\xc1", b"\x92\x01", b"\x01\x01", b"\xa1\xff", b"\xd4\x05\x00", b"\x81\x01\x01"):
        with pytest.raises(DecodingError, match=r"^The result of task\(\) is not msgpack: "):
            task.decode_result(data)


def test_pickle_warns_that_it_runs_code_and_takes_any_object_as_it_is() -> None:
    with pytest.warns(RuntimeWarning, match="runs code in stored bytes"):
        codec = find_codec("pickle")
    task = returning(int, codec)
    value = {Card("1"), (1, MOMENT)}
    assert task.decode_call(task.encode_call((value,), {})) == ((value,), {})
    assert task.decode_result(task.encode_result(value)) == value


def test_pickle_that_fails_is_an_encoding_or_decoding_error() -> None:
    with pytest.warns(RuntimeWarning):
        task = returning(Any, find_codec("pickle"))
    with pytest.raises(EncodingError, match="cannot be encoded"):
        task.encode_result(lambda: None)
    for data in (b"", b"x", b"cno_such_module\nname\n."):
        with pytest.raises(DecodingError, match="is not pickle"):
            task.decode_result(data)
