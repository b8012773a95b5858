"""The places where values enter or leave a task: its parameters, its result and its frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import attrs

from flowfabric_worker._codecs.formats import Codec
from flowfabric_worker._codecs.kinds import FAULTS, Conversion, Mismatch, brief, refusal_in
from flowfabric_worker.engine.errors import FlowFabricError


class EncodingError(FlowFabricError, ValueError):
    """A value cannot be encoded, because it would not come back equal; the message says where the value is."""

    # Applications import it from there.
    __module__ = "flowfabric_worker.codec"


class DecodingError(FlowFabricError, ValueError):
    """A stored value cannot be decoded by the task's annotations; trying again cannot help."""

    __module__ = "flowfabric_worker.codec"


class Port:
    """A place where values enter or leave a task: a parameter, the result or the frames.

    Attributes:
        where: the name of the place in errors.
        annotation: the annotation of the values.
        plain: the classes whose instances need no conversion; callers skip the call for them, to save time.
        tags: the names under which the members of a union are encoded.
    """

    __slots__ = ("_conversion", "annotation", "plain", "tags", "where")

    def __init__(self, where: str, conversion: Conversion, annotation: Any = Any) -> None:
        self.where = where
        self.annotation = annotation
        self.plain = conversion.plain
        self.tags = conversion.tags
        self._conversion = conversion

    def refusal(self) -> tuple[str, bool]:
        """Return the reason why no value can be encoded here, or "", and whether it is an unresolved name."""
        return refusal_in(self._conversion)

    def send(self, value: Any) -> Any:
        try:
            return self._conversion.encode(value)
        except FAULTS as error:
            raise EncodingError(f"{self.where} cannot be encoded{reason_of(error)}") from error

    def receive(self, value: Any) -> Any:
        try:
            return self._conversion.decode(value)
        except FAULTS as error:
            raise DecodingError(f"{self.where} cannot be decoded{reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    place = f" at {error.path}" if isinstance(error, Mismatch) and error.path else ""
    words = str(error) if isinstance(error, Mismatch) else brief(error)
    return f"{place}: {words.rstrip('.')}."


@attrs.frozen(kw_only=True, eq=False)
class Ports:
    """All ports of a task. `rest` and `more` are those of `*args` and `**kwargs`."""

    places: Sequence[Port]
    rest: Port
    names: Mapping[str, Port]
    more: Port
    result: Port
    frame: Port

    def in_order(self) -> Iterator[Port]:
        return chain(self.places, repeat(self.rest))

    def named(self, name: str) -> Port:
        return self.names.get(name, self.more)


def encode_at(port: Port, codec: Codec, value: Any) -> bytes:
    plain = value if value.__class__ in port.plain else port.send(value)
    try:
        return codec.encode(plain)
    except FAULTS as error:
        raise EncodingError(f"{port.where} cannot be encoded{reason_of(error)}") from error


def decode_at(port: Port, codec: Codec, data: bytes | None) -> Any:
    if data is None:
        return None
    try:
        plain = codec.decode(data)
    except FAULTS as error:
        raise DecodingError(f"{port.where} is not {codec.name}{reason_of(error)}") from error
    return plain if plain.__class__ in port.plain else port.receive(plain)
