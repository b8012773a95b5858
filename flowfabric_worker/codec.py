"""Encoding of arguments and results: annotations convert them to plain values, and a codec writes those."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from inspect import Parameter
from itertools import chain
from types import MappingProxyType, NoneType, SimpleNamespace
from typing import Any, Final, TypeVar

import attrs

from flowfabric_worker._codecs import (
    FAULTS,
    PLAIN,
    REGISTERED,
    UNRESOLVED,
    Conversions,
    RegisteredClass,
    brief,
    unsupported,
)
from flowfabric_worker._codecs.calls import BY_NAME, BY_PLACE, binder, count_before_skipped
from flowfabric_worker._codecs.formats import Codec, find_codec
from flowfabric_worker._codecs.generators import innermost, is_generator, outputs_of
from flowfabric_worker._codecs.holes import MISSING, Shape, fill, put, shapes_of
from flowfabric_worker._codecs.kinds import unchanged, untouched
from flowfabric_worker._codecs.ports import DecodingError, EncodingError, Port, Ports, decode_at, encode_at, reason_of

__all__ = [
    "Codec",
    "DecodingError",
    "EncodingError",
    "TaskCodec",
    "check_annotation",
    "decode_value",
    "encode_value",
    "find_codec",
    "register",
]

T = TypeVar("T")


def register(kind: type[T], to: Callable[[T], Any], from_: Callable[[Any], T]) -> None:
    """Register how the instances of a class are encoded.

    Call it in every process, before a task whose annotations name the class is decorated.

    Args:
        kind: the class; it does not include its subclasses.
        to: converts an instance to a plain value: None, bool, int, float, str, or lists and dicts (with str keys) of
            these.
        from_: converts such a plain value back to an equal instance.

    Raises:
        TypeError: `kind` is not a class, its instances are plain already, or `to` or `from_` cannot be called.
    """
    if not isinstance(kind, type) or kind in PLAIN:
        raise TypeError(f"codec.register() takes a class whose instances are not plain values, not {kind!r}.")
    for what, function in (("to", to), ("from", from_)):
        if not callable(function):
            raise TypeError(f"codec.register() takes a function as {what!r}, not {function!r}.")
    REGISTERED[kind] = RegisteredClass(to, from_)
    _conversions.cache_clear()


@lru_cache(maxsize=64)
def _conversions(native: frozenset[type]) -> Conversions:
    """Return the conversions that are shared by all tasks whose codecs write the same classes natively."""
    return Conversions(native)


def conversions_of(codec: Codec) -> Conversions:
    """Return the conversions of the values that a codec writes."""
    return _conversions(frozenset(getattr(codec, "native", ())))


@attrs.frozen(kw_only=True)
class ParentResult:
    """The result of another execution, or the error that stands for it.

    Attributes:
        codec: the name of the codec that encoded it.
        data: the encoded result; None if the task returned none.
        error: the error, if the execution did not succeed.
    """

    codec: str = ""
    data: bytes | None = attrs.field(default=None, repr=False)
    error: Exception | None = None


# Stands for the port of an argument that a result fills.
HOLE: Final = Port("An argument that a result fills", unchanged("None", NoneType))


class TaskCodec:
    """Encode and decode the calls, results and frames of one task by the annotations of its function.

    Annotations are resolved at first use, so they may name classes that are defined later. A call is stored as
    `[args, kwargs]`, as it was made; an omitted argument gets the default of the worker's function. The call of a node
    that takes results of other nodes is `[args, kwargs, holes]`.

    Args:
        function: the task's function.
        codec: writes and reads plain values.
        skip: the names of the parameters that the runtime passes by keyword, and callers do not pass.

    Raises:
        TypeError: a skipped parameter cannot be passed by keyword.
    """

    def __init__(self, function: Callable[..., Any], codec: Codec, *, skip: Collection[str] = ()) -> None:
        self._function = function
        self._codec = codec
        self._skip = frozenset(skip)
        self._name = f"{getattr(function, '__name__', type(function).__name__)}()"
        parameters = list(inspect.signature(function).parameters.values())
        self._parameters = [parameter for parameter in parameters if parameter.name not in skip]
        self._places = [parameter.name for parameter in self._parameters if parameter.kind in BY_PLACE]
        self._before_skipped = count_before_skipped(parameters, skip, self._name)
        self._bind = binder(function, self._parameters)

    def check(self, *, final: bool) -> None:
        """Check that the annotations can be encoded, so that no work is done for a result that cannot be stored.

        Args:
            final: True if every name in an annotation must be defined already.

        Raises:
            TypeError: an annotation cannot be encoded, or does not resolve; the message names it.
        """
        ports = self._ports
        every = [*ports.names.values(), *ports.places, ports.rest, ports.more, ports.result, ports.frame]
        for port in every:
            refusal, unresolved = port.refusal()
            if unresolved and not final:
                # Cache nothing: the name may be defined further down in the module.
                del self.__dict__["_ports"]
                _conversions.cache_clear()
                return
            if refusal:
                raise TypeError(f"{port.where} cannot be encoded: {refusal.rstrip('.')}.")

    @property
    def codec(self) -> Codec:
        """The codec that writes and reads plain values."""
        return self._codec

    @property
    def parameters(self) -> Sequence[Parameter]:
        """The parameters that callers pass."""
        return self._parameters

    @property
    def codec_name(self) -> str:
        """The name of the codec, which is stored with what it writes."""
        return self._codec.name

    def named(self, name: str) -> TaskCodec:
        """Return the `TaskCodec` of this task for the codec that a stored execution was written with.

        Args:
            name: the stored name of the codec; empty for this codec.

        Raises:
            DecodingError: the stored codec differs, and is neither json nor msgpack, which run no code.
        """
        if name in ("", self._codec.name):
            return self
        if name not in _SAFE:
            raise DecodingError(f"{self._name} was submitted with the codec {name!r}, not with {self._codec.name!r}.")
        return TaskCodec(self._function, find_codec(name), skip=self._skip)

    def encode_call(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], holes: Mapping[int | str, Shape] = MappingProxyType({})
    ) -> bytes:
        """Encode a call, and return its payload.

        Args:
            args: the positional arguments.
            kwargs: the named arguments.
            holes: the shapes of the arguments that results of other executions fill, by index or name; each is None in
                the call.

        Raises:
            TypeError: the call does not match the signature; this is Python's own error.
            EncodingError: an argument would not come back equal.
        """
        self._bind(*args, **kwargs)
        ports = self._ports
        places: Iterable[Port] = ports.in_order()
        if holes:
            places = (HOLE if index in holes else port for index, port in enumerate(places))
        call: list[Any] = [
            [
                value if value.__class__ in port.plain else port.send(value)
                for value, port in zip(args, places, strict=False)
            ]
        ]
        if kwargs or holes:
            call.append(
                {name: (HOLE if name in holes else ports.named(name)).send(value) for name, value in kwargs.items()}
            )
        if holes:
            call.append({str(place): shape for place, shape in holes.items()})
        try:
            return self._codec.encode(call)
        except FAULTS as error:
            raise self._refused_call(call, error) from error

    def decode_call(
        self, payload: bytes | None, results: Mapping[str, ParentResult] = MappingProxyType({})
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Decode a call, and return the arguments of the function without the skipped parameters.

        Args:
            payload: the stored call.
            results: the results that fill its holes, by path.

        Raises:
            DecodingError: the payload is not a call, or does not match this function.
        """
        sent_args, sent_kwargs, holes = self._read_call(payload)
        if results:
            named = shapes_of(results, holes, self.place)
            holes, sent_kwargs = {**holes, **named}, {**dict.fromkeys(named), **sent_kwargs}
        try:
            self._bind(*sent_args, **sent_kwargs)
        except TypeError as error:
            raise DecodingError(
                f"The stored call does not match the parameters of {self._name}: {brief(error)}."
            ) from error
        ports = self._ports
        places: Iterable[Port] = ports.in_order()
        if holes:
            places = (HOLE if str(index) in holes else port for index, port in enumerate(places))
        received = [
            value if value.__class__ in port.plain else port.receive(value)
            for value, port in zip(sent_args, places, strict=False)
        ]
        kwargs: dict[str, Any] = {}
        for name, value in sent_kwargs.items():
            kwargs[name] = (HOLE if name in holes else ports.named(name)).receive(value)
        if holes:
            received = self._fill(holes, results, received, kwargs)
        kept = self._before_skipped
        if kept is not None:
            kwargs.update(zip(self._places[kept:], received[kept:], strict=False))
            received = received[:kept]
        return tuple(received), kwargs

    def _fill(
        self, holes: Mapping[str, Shape], results: Mapping[str, ParentResult], args: list[Any], kwargs: dict[str, Any]
    ) -> list[Any]:
        """Fill the holes of a call with results; return its positional arguments."""

        def read(path: str, annotation: Any, tag: str | None) -> Any:
            result = results.get(path)
            if result is None:
                return MISSING
            return result.error or self._read_result(
                result, annotation, tag, f"The result for {path!r} of {self._name}"
            )

        try:
            values = {place: fill(shape, place, self.place(place).annotation, read) for place, shape in holes.items()}
            return put(values, args, kwargs, self._parameters)
        except (LookupError, RecursionError, TypeError) as error:
            raise DecodingError(f"The results of its parents do not fit {self._name}: {brief(error)}.") from error

    def _read_result(self, result: ParentResult, annotation: Any, tag: str | None, where: str) -> Any:
        """Return the result of another task, which travels in the form of that task, as this task reads it."""
        codec = self.named(result.codec)._codec
        port = Port(where, conversions_of(codec).of(annotation))
        plain = decode_at(Port(where, untouched()), codec, result.data)
        return port.receive({tag: plain} if tag in port.tags else plain)

    def place(self, place: str) -> Port:
        """Return the port of an argument, by its index or its name."""
        ports = self._ports
        if not place.isdigit():
            return ports.named(place)
        return ports.places[int(place)] if int(place) < len(ports.places) else ports.rest

    @property
    def result_annotation(self) -> Any:
        """The annotation of the result."""
        return self._ports.result.annotation

    def encode_result(self, value: Any) -> bytes:
        """Encode the result of the task.

        Raises:
            EncodingError: the result would not come back equal.
        """
        return self._encode(self._ports.result, value)

    def decode_result(self, data: bytes | None) -> Any:
        """Decode the result of the task by its return annotation; return None if no result is stored.

        Raises:
            DecodingError: the bytes are not such a result.
        """
        return self._decode(self._ports.result, data)

    def encode_frame(self, value: Any) -> bytes:
        """Encode one value that the task yielded; raise the errors of `encode_result`."""
        return self._encode(self._ports.frame, value)

    def decode_frame(self, data: bytes) -> Any:
        """Decode one value that the task yielded; raise the errors of `decode_result`."""
        return self._decode(self._ports.frame, data)

    def _encode(self, port: Port, value: Any) -> bytes:
        return encode_at(port, self._codec, value)

    def _decode(self, port: Port, data: bytes | None) -> Any:
        return decode_at(port, self._codec, data)

    def _read_call(self, payload: bytes | None) -> tuple[list[Any], dict[str, Any], dict[str, Shape]]:
        if payload is None:
            return [], {}, {}
        try:
            call = self._codec.decode(payload)
        except FAULTS as error:
            raise DecodingError(f"The payload of {self._name} is not {self._codec.name}{reason_of(error)}") from error
        if isinstance(call, list) and 1 <= len(call) <= 3 and isinstance(call[0], list):
            kwargs, holes = call[1] if len(call) > 1 else {}, call[2] if len(call) > 2 else {}
            if isinstance(kwargs, dict) and isinstance(holes, dict):
                return call[0], kwargs, holes
        raise DecodingError(f"The payload of {self._name} is not a call: it must be [args] or [args, kwargs].")

    def _refused_call(self, call: list[Any], error: Exception) -> EncodingError:
        """Return the error for a call that the codec refused, which names the first refused argument."""
        args, kwargs = [*call, {}][:2]
        ports = self._ports
        named = ((ports.named(name), value) for name, value in kwargs.items())
        for port, value in chain(zip(ports.in_order(), args, strict=False), named):
            try:
                self._codec.encode(value)
            except FAULTS as refused:
                return EncodingError(f"{port.where} cannot be encoded{reason_of(refused)}")
        return EncodingError(f"The call of {self._name} cannot be encoded{reason_of(error)}")

    def _hints(self) -> dict[str, Any]:
        """Return the annotations of the encoded values. Those of skipped parameters may not resolve at run time."""
        function = innermost(self._function)
        if not inspect.isroutine(function) and not inspect.isclass(function):
            function = type(function).__call__
        annotations = getattr(function, "__annotations__", {})
        kept = {name: hint for name, hint in annotations.items() if name not in self._skip}
        names = getattr(function, "__globals__", {})
        return typing.get_type_hints(SimpleNamespace(__annotations__=kept), names, include_extras=True)

    @cached_property
    def _ports(self) -> Ports:
        conversions = conversions_of(self._codec)
        hints: Mapping[str, Any] = {}
        unresolved = ""
        try:
            hints = self._hints()
        except UNRESOLVED as error:
            unresolved = f"the annotations of {self._name} do not resolve: {error}"

        def port(where: str, annotation: Any, refusal: str = "") -> Port:
            if unresolved or refusal:
                conversion = unsupported("", unresolved or refusal, unresolved=bool(unresolved))
            else:
                conversion = conversions.of(annotation)
            return Port(f"{where} of {self._name}", conversion, annotation)

        ports = {p.name: port(f"The argument {p.name!r}", hints.get(p.name, Any)) for p in self._parameters}
        by_kind = {p.kind: ports[p.name] for p in self._parameters}
        result, frame, refusal = hints.get("return", Any), Any, ""
        if is_generator(self._function):
            result, frame, refusal = outputs_of(result)
        unused = port("An argument", Any)  # never used, because binding refuses extra arguments
        return Ports(
            places=[ports[name] for name in self._places],
            rest=by_kind.get(Parameter.VAR_POSITIONAL, unused),
            names={p.name: ports[p.name] for p in self._parameters if p.kind in BY_NAME},
            more=by_kind.get(Parameter.VAR_KEYWORD, unused),
            result=port("The result", result, refusal),
            frame=port("An emitted value", frame),
        )


def encode_plain_json(where: str, value: Any) -> bytes:
    """Encode a plain value as JSON.

    Args:
        where: the name of the value in errors.

    Raises:
        EncodingError: the value is not plain, or JSON does not have it.
    """
    return encode_at(_json_port(where, Any), find_codec("json"), value)


def encode_value(value: Any, where: str) -> bytes:
    """Encode a value that belongs to no signature, such as the payload of a signal, as JSON by its own class.

    Args:
        value: the value.
        where: what the value is, for errors.

    Raises:
        EncodingError: the value would not come back equal.
    """
    return encode_at(_json_port(where, Any if type(value) in PLAIN else type(value)), find_codec("json"), value)


def decode_value(data: bytes | None, annotation: Any, where: str) -> Any:
    """Decode what `encode_value` encoded, by an annotation; return None if there are no bytes.

    Raises:
        DecodingError: the bytes are not JSON, or not such a value.
    """
    return decode_at(_json_port(where, annotation), find_codec("json"), data)


def check_annotation(annotation: Any, where: str) -> None:
    """Refuse an annotation by which `decode_value` can decode nothing.

    Raises:
        TypeError: the message says why.
    """
    refusal, _ = _json_port(where, annotation).refusal()
    if refusal:
        raise TypeError(f"{where} cannot be decoded: {refusal.rstrip('.')}.")


def _json_port(where: str, annotation: Any) -> Port:
    return Port(where, _conversions(frozenset()).of(annotation))


# The codecs that a stored record may choose, because decoding them runs no code.
_SAFE: Final = ("json", "msgpack")
