"""Classes whose values travel, and tasks that take and return them, for the tests of conversions."""

from __future__ import annotations

import dataclasses
import enum
import types
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Generic, NamedTuple, NewType, NotRequired, Required, TypedDict, TypeVar
from uuid import UUID

import attrs

from flowfabric_worker.codec import TaskCodec, find_codec

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
    """Return the codec of a task with this annotation for its one parameter and for its result."""

    def task(value):  # type: ignore[no-untyped-def]  # annotated below, with any object
        return value

    task.__annotations__ = {"value": annotation, "return": annotation}
    return TaskCodec(task, find_codec(codec) if isinstance(codec, str) else codec)
