"""Values of pydantic models and of registered classes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import attrs
import pydantic
import pytest

from flowfabric_worker import codec
from flowfabric_worker._codecs import REGISTERED
from flowfabric_worker.codec import DecodingError, EncodingError
from tests.support.converted import returning
from tests.support.values import AMBIGUOUS, P


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
def test_a_wrong_registration_of_a_class_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="register"):
        codec.register(*wrong)
