"""Encoding of arguments and results: annotations convert them to plain values, and a codec writes those."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from inspect import Parameter
from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any, Final, TypeVar

import attrs

from flowfabric_worker._codecs import (
    FAULTS,
    PLAIN,
    REGISTERED,
    UNRESOLVED,
    Conversion,
    Conversions,
    Mismatch,
    RegisteredClass,
    brief,
    refusal_in,
    unsupported,
)
from flowfabric_worker._codecs.formats import Codec, find_codec
from flowfabric_worker._codecs.generators import innermost, is_generator, outputs_of
from flowfabric_worker.engine.errors import FlowFabricError

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


class EncodingError(FlowFabricError, ValueError):
    """A value cannot be encoded, because it would not come back equal; the message says where the value is."""


class DecodingError(FlowFabricError, ValueError):
    """A stored value cannot be decoded by the task's annotations; trying again cannot help."""


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


class _Port:
    """A place where values enter or leave a task: a parameter, the result or the frames.

    Attributes:
        where: the name of the place in errors.
        plain: the classes whose instances need no conversion; callers skip the call for them, to save time.
    """

    __slots__ = ("_conversion", "plain", "where")

    def __init__(self, where: str, conversion: Conversion) -> None:
        self.where = where
        self.plain = conversion.plain
        self._conversion = conversion

    def refusal(self) -> tuple[str, bool]:
        """Return the reason why no value can be encoded here, or "", and whether it is an unresolved name."""
        return refusal_in(self._conversion)

    def send(self, value: Any) -> Any:
        try:
            return self._conversion.encode(value)
        except FAULTS as error:
            raise EncodingError(f"{self.where} cannot be encoded{_reason(error)}") from error

    def receive(self, value: Any) -> Any:
        try:
            return self._conversion.decode(value)
        except FAULTS as error:
            raise DecodingError(f"{self.where} cannot be decoded{_reason(error)}") from error


def _reason(error: Exception) -> str:
    place = f" at {error.path}" if isinstance(error, Mismatch) and error.path else ""
    words = str(error) if isinstance(error, Mismatch) else brief(error)
    return f"{place}: {words.rstrip('.')}."


@attrs.frozen(kw_only=True, eq=False)
class _Ports:
    """All ports of a task. `rest` and `more` are those of `*args` and `**kwargs`."""

    places: Sequence[_Port]
    rest: _Port
    names: Mapping[str, _Port]
    more: _Port
    result: _Port
    frame: _Port

    def in_order(self) -> Iterator[_Port]:
        return chain(self.places, repeat(self.rest))

    def named(self, name: str) -> _Port:
        return self.names.get(name, self.more)


class TaskCodec:
    """Encode and decode the calls, results and frames of one task by the annotations of its function.

    Annotations are resolved at first use, so they may name classes that are defined later. A call is stored as
    `[args, kwargs]`, as it was made; an omitted argument gets the default of the worker's function.

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
        self._places = [parameter.name for parameter in self._parameters if parameter.kind in _BY_PLACE]
        self._before_skipped = _count_before_skipped(parameters, skip, self._name)
        self._bind = _binder(function, self._parameters)

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

    def encode_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        """Encode a call, and return its payload.

        Raises:
            TypeError: the call does not match the signature; this is Python's own error.
            EncodingError: an argument would not come back equal.
        """
        self._bind(*args, **kwargs)
        ports = self._ports
        call: list[Any] = [
            [
                value if value.__class__ in port.plain else port.send(value)
                for value, port in zip(args, ports.in_order(), strict=False)
            ]
        ]
        if kwargs:
            call.append({name: ports.named(name).send(value) for name, value in kwargs.items()})
        try:
            return self._codec.encode(call)
        except FAULTS as error:
            raise self._refused_call(call, error) from error

    def decode_call(self, payload: bytes | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Decode a call, and return the arguments of the function without the skipped parameters.

        Raises:
            DecodingError: the payload is not a call, or does not match this function.
        """
        sent_args, sent_kwargs = self._read_call(payload)
        try:
            self._bind(*sent_args, **sent_kwargs)
        except TypeError as error:
            raise DecodingError(
                f"The stored call does not match the parameters of {self._name}: {brief(error)}."
            ) from error
        ports = self._ports
        received = [
            value if value.__class__ in port.plain else port.receive(value)
            for value, port in zip(sent_args, ports.in_order(), strict=False)
        ]
        kwargs = {name: ports.named(name).receive(value) for name, value in sent_kwargs.items()}
        kept = self._before_skipped
        if kept is not None:
            kwargs.update(zip(self._places[kept:], received[kept:], strict=False))
            received = received[:kept]
        return tuple(received), kwargs

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

    def _encode(self, port: _Port, value: Any) -> bytes:
        return _encode_at(port, self._codec, value)

    def _decode(self, port: _Port, data: bytes | None) -> Any:
        return _decode_at(port, self._codec, data)

    def _read_call(self, payload: bytes | None) -> tuple[list[Any], dict[str, Any]]:
        if payload is None:
            return [], {}
        try:
            call = self._codec.decode(payload)
        except FAULTS as error:
            raise DecodingError(f"The payload of {self._name} is not {self._codec.name}{_reason(error)}") from error
        if isinstance(call, list) and 1 <= len(call) <= 2 and isinstance(call[0], list):
            kwargs = call[1] if len(call) == 2 else {}
            if isinstance(kwargs, dict):
                return call[0], kwargs
        raise DecodingError(f"The payload of {self._name} is not a call: it must be [args] or [args, kwargs].")

    def _refused_call(self, call: list[Any], error: Exception) -> EncodingError:
        """Return the error for a call that the codec refused, which names the first refused argument."""
        args, kwargs = call if len(call) == 2 else (call[0], {})
        ports = self._ports
        named = ((ports.named(name), value) for name, value in kwargs.items())
        for port, value in chain(zip(ports.in_order(), args, strict=False), named):
            try:
                self._codec.encode(value)
            except FAULTS as refused:
                return EncodingError(f"{port.where} cannot be encoded{_reason(refused)}")
        return EncodingError(f"The call of {self._name} cannot be encoded{_reason(error)}")

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
    def _ports(self) -> _Ports:
        conversions = _conversions(frozenset(getattr(self._codec, "native", ())))
        hints: Mapping[str, Any] = {}
        unresolved = ""
        try:
            hints = self._hints()
        except UNRESOLVED as error:
            unresolved = f"the annotations of {self._name} do not resolve: {error}"

        def port(where: str, annotation: Any, refusal: str = "") -> _Port:
            if unresolved or refusal:
                conversion = unsupported("", unresolved or refusal, unresolved=bool(unresolved))
            else:
                conversion = conversions.of(annotation)
            return _Port(f"{where} of {self._name}", conversion)

        ports = {p.name: port(f"The argument {p.name!r}", hints.get(p.name, Any)) for p in self._parameters}
        by_kind = {p.kind: ports[p.name] for p in self._parameters}
        result, frame, refusal = hints.get("return", Any), Any, ""
        if is_generator(self._function):
            result, frame, refusal = outputs_of(result)
        unused = port("An argument", Any)  # never used, because binding refuses extra arguments
        return _Ports(
            places=[ports[name] for name in self._places],
            rest=by_kind.get(Parameter.VAR_POSITIONAL, unused),
            names={p.name: ports[p.name] for p in self._parameters if p.kind in _BY_NAME},
            more=by_kind.get(Parameter.VAR_KEYWORD, unused),
            result=port("The result", result, refusal),
            frame=port("An emitted value", frame),
        )


def _encode_at(port: _Port, codec: Codec, value: Any) -> bytes:
    plain = value if value.__class__ in port.plain else port.send(value)
    try:
        return codec.encode(plain)
    except FAULTS as error:
        raise EncodingError(f"{port.where} cannot be encoded{_reason(error)}") from error


def _decode_at(port: _Port, codec: Codec, data: bytes | None) -> Any:
    if data is None:
        return None
    try:
        plain = codec.decode(data)
    except FAULTS as error:
        raise DecodingError(f"{port.where} is not {codec.name}{_reason(error)}") from error
    return plain if plain.__class__ in port.plain else port.receive(plain)


def encode_plain_json(where: str, value: Any) -> bytes:
    """Encode a plain value as JSON.

    Args:
        where: the name of the value in errors.

    Raises:
        EncodingError: the value is not plain, or JSON does not have it.
    """
    return _encode_at(_json_port(where, Any), find_codec("json"), value)


def encode_value(value: Any, where: str) -> bytes:
    """Encode a value that belongs to no signature, such as the payload of a signal, as JSON by its own class.

    Args:
        value: the value.
        where: what the value is, for errors.

    Raises:
        EncodingError: the value would not come back equal.
    """
    return _encode_at(_json_port(where, Any if type(value) in PLAIN else type(value)), find_codec("json"), value)


def decode_value(data: bytes | None, annotation: Any, where: str) -> Any:
    """Decode what `encode_value` encoded, by an annotation; return None if there are no bytes.

    Raises:
        DecodingError: the bytes are not JSON, or not such a value.
    """
    return _decode_at(_json_port(where, annotation), find_codec("json"), data)


def check_annotation(annotation: Any, where: str) -> None:
    """Refuse an annotation by which `decode_value` can decode nothing.

    Raises:
        TypeError: the message says why.
    """
    refusal, _ = _json_port(where, annotation).refusal()
    if refusal:
        raise TypeError(f"{where} cannot be decoded: {refusal.rstrip('.')}.")


def _json_port(where: str, annotation: Any) -> _Port:
    return _Port(where, _conversions(frozenset()).of(annotation))


# The codecs that a stored record may choose, because decoding them runs no code.
_SAFE: Final = ("json", "msgpack")

_BY_PLACE: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME: Final = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def _binder(function: Callable[..., Any], parameters: Sequence[Parameter]) -> Callable[..., None]:
    """Return a function with the same name and parameters that does nothing; calling it checks a call."""
    bare = [
        parameter.replace(
            annotation=Parameter.empty,
            default=Parameter.empty if parameter.default is Parameter.empty else None,
        )
        for parameter in parameters
    ]
    binder: Callable[..., None] = eval(f"lambda {str(inspect.Signature(bare))[1:-1]}: None")
    # Python's TypeError takes the name of the function from its __qualname__.
    binder.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)
    return binder


def _count_before_skipped(parameters: Sequence[Parameter], skip: Collection[str], name: str) -> int | None:
    """Return how many arguments can stay positional if skipped parameters are passed by keyword; None for all."""
    for count, parameter in enumerate(parameters):
        if parameter.name in skip and parameter.kind is not Parameter.KEYWORD_ONLY:
            followers = {follower.kind for follower in parameters[count:]}
            if parameter.kind not in _BY_NAME or Parameter.VAR_POSITIONAL in followers:
                raise TypeError(f"{name} cannot be given {parameter.name!r} by keyword; make it keyword-only.")
            return count
    return None
