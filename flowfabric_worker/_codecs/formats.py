"""The codecs: what turns plain values into bytes and back."""

from __future__ import annotations

import importlib
import json
import pickle
import warnings
from collections.abc import Callable, Collection
from typing import Any, ClassVar, Final, Protocol

from flowfabric_worker._codecs import brief


class Codec(Protocol):
    """What turns plain values into bytes and back; any object with these members is one.

    Plain values are None, bool, int, float, str, and lists and dicts (with str keys) of plain values. A codec
    that writes further classes by itself may list them in an attribute `native: Collection[type]`; values of
    these reach it as they are. With `object` among them nothing is converted or checked at all.

    Attributes:
        name: stored beside what the codec wrote, so that it is read by the same codec.
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
        # Circles are found by the checks before, or end in a RecursionError, which is refused as well.
        self._encoder = json.JSONEncoder(
            ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
        )
        self._decoder = json.JSONDecoder(parse_constant=_refuse_constant)

    def encode(self, value: Any) -> bytes:
        """Write a plain value; raise ValueError for what JSON does not have."""
        return self._encoder.encode(value).encode()

    def decode(self, data: bytes) -> Any:
        """Read one JSON document; raise ValueError if it is not one, or hold lone surrogates."""
        document = data.decode().strip(" \t\r\n")
        value, end = self._decoder.raw_decode(document)
        if end != len(document):
            raise ValueError(f"something follows the document at character {end}")
        if b"\\u" in data:
            self.encode(value)  # an escape may hide a lone surrogate
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
            raise ImportError("The codec 'msgpack' needs: pip install flowfabric_worker[msgpack]") from error

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
    """pickle: any object of Python, and any code that whoever can write to the store wants to run here."""

    name = "pickle"
    native: ClassVar[Collection[type]] = (object,)

    def encode(self, value: Any) -> bytes:
        """Pickles any value; raises ValueError if it cannot be pickled."""
        try:
            return pickle.dumps(value)
        except pickle.PickleError as error:
            raise ValueError(brief(error)) from error

    def decode(self, data: bytes) -> Any:
        """Unpickles a value, which may run code; raises ValueError if that fails."""
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
    """Return the codec of a name, or the very object that was given.

    Args:
        codec: "json", "msgpack", "pickle", or an object with the members of `Codec`.

    Raises:
        ValueError: no codec has that name.
        TypeError: the object lacks a member of `Codec`.
        ImportError: msgpack is not installed.

    Warns:
        RuntimeWarning: pickle was asked for; reading what it wrote can run any code.
    """
    if isinstance(codec, str):
        if codec not in _CODECS:
            raise ValueError(f"There is no codec {codec!r}; there are {', '.join(_CODECS)}, and objects of your own.")
        if codec == "pickle":
            warnings.warn(
                "The codec 'pickle' runs whatever code the stored bytes ask for: use it only where everybody "
                "who can write to the store may run code in the workers.",
                RuntimeWarning,
                stacklevel=2,
            )
        return _CODECS[codec]()
    missing = [member for member in ("name", "encode", "decode") if not hasattr(codec, member)]
    if missing:
        raise TypeError(f"{type(codec).__name__} is not a codec: it has no {', '.join(missing)}.")
    return codec
