"""The codecs, which write plain values as bytes and read them."""

from __future__ import annotations

import importlib
import json
import pickle
import warnings
from collections.abc import Callable, Collection
from typing import Any, ClassVar, Final, Protocol

from flowfabric_worker._codecs import brief
from flowfabric_worker.engine.suggestions import did_you_mean


class Codec(Protocol):
    """Write plain values as bytes, and read them; any object with these members is a codec.

    Plain values are None, bool, int, float, str, and lists and dicts (with str keys) of plain values. A codec
    that writes further classes by itself may list them in an attribute `native: Collection[type]`; their instances
    are passed to it unchanged. If `object` is among them, no value is converted or checked.

    Attributes:
        name: stored with what the codec wrote, so that the same codec reads it.
    """

    name: str

    def encode(self, value: Any) -> bytes:
        """Write a plain value; raise ValueError or TypeError if that is not possible."""

    def decode(self, data: bytes) -> Any:
        """Read what `encode` wrote; raise ValueError or TypeError if it is damaged."""


class JsonCodec:
    """JSON as UTF-8: compact, exact for integers of any size, without NaN, infinities and lone surrogates."""

    name = "json"

    def __init__(self) -> None:
        # Circular values end in a RecursionError, here or in the checks before, and are refused.
        self._encoder = json.JSONEncoder(
            ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
        )
        self._decoder = json.JSONDecoder(parse_constant=_refuse_constant)

    def encode(self, value: Any) -> bytes:
        """Write a plain value; raise ValueError for what JSON does not have."""
        # The encoder makes another encoder for each value, which small results are not worth.
        if value is None:
            return b"null"
        if value.__class__ is int:
            return str(value).encode()
        return self._encoder.encode(value).encode()

    def decode(self, data: bytes) -> Any:
        """Read one JSON document; raise ValueError if it is not valid, or contains lone surrogates."""
        document = data.decode().strip(" \t\r\n")
        value, end = self._decoder.raw_decode(document)
        if end != len(document):
            raise ValueError(f"something follows the document at character {end}")
        if b"\\u" in data:
            self.encode(value)  # this raises if an escape stands for a lone surrogate
        return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class MsgpackCodec:
    """MessagePack: bytes travel as they are, integers beyond 64 bits as extension type 1."""

    name = "msgpack"
    native: ClassVar[Collection[type]] = (bytes,)

    def __init__(self) -> None:
        try:
            self._msgpack = importlib.import_module("msgpack")
        except ImportError as error:
            raise ImportError("The codec 'msgpack' needs: pip install 'flowfabric_worker[msgpack]'") from error

    def encode(self, value: Any) -> bytes:
        """Write a plain value or bytes."""
        packed: bytes = self._msgpack.packb(value, default=self._write_big)
        return packed

    def decode(self, data: bytes) -> Any:
        """Read one MessagePack value; raise ValueError if it is not one."""
        return self._msgpack.unpackb(data, ext_hook=self._read_big)

    def _write_big(self, value: Any) -> Any:
        if not isinstance(value, int):
            raise TypeError(f"msgpack cannot write a {type(value).__name__}")
        return self._msgpack.ExtType(1, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))

    def _read_big(self, code: int, data: bytes) -> int:
        if code != 1:
            raise ValueError(f"unknown extension type {code}")
        return int.from_bytes(data, "big", signed=True)


class PickleCodec:
    """pickle: it writes any object of Python, and runs any code that stored bytes contain."""

    name = "pickle"
    native: ClassVar[Collection[type]] = (object,)

    def encode(self, value: Any) -> bytes:
        """Write a value; raise ValueError if it cannot be pickled."""
        try:
            return pickle.dumps(value)
        except pickle.PickleError as error:
            raise ValueError(brief(error)) from error

    def decode(self, data: bytes) -> Any:
        """Read a value, which may run code; raise ValueError if that fails."""
        try:
            return pickle.loads(data)
        except (pickle.PickleError, EOFError, ImportError) as error:
            raise ValueError(brief(error)) from error


_CODECS: Final[dict[str, Callable[[], Codec]]] = {
    "json": JsonCodec,
    "msgpack": MsgpackCodec,
    "pickle": PickleCodec,
}


def find_codec(codec: str | Codec) -> Codec:
    """Return the codec of a name, or the given codec itself.

    Args:
        codec: "json", "msgpack", "pickle", or an object with the members of `Codec`.

    Raises:
        ValueError: no codec has that name.
        TypeError: the object lacks a member of `Codec`.
        ImportError: msgpack is not installed.

    Warns:
        RuntimeWarning: the codec is pickle, which can run any code when it reads.
    """
    if isinstance(codec, str):
        if codec not in _CODECS:
            hint = did_you_mean(codec, _CODECS)
            raise ValueError(f"There is no codec {codec!r}.{hint} Use {', '.join(_CODECS)}, or an object of your own.")
        if codec == "pickle":
            warnings.warn(
                "The codec 'pickle' runs code in stored bytes: use it only if all clients that can write to the store "
                "may run code in the workers.",
                RuntimeWarning,
                stacklevel=2,
            )
        return _CODECS[codec]()
    missing = [member for member in ("name", "encode", "decode") if not hasattr(codec, member)]
    if missing:
        raise TypeError(f"{type(codec).__name__} is not a codec: it has no {', '.join(missing)}.")
    return codec
