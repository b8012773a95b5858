"""The classes of the engine's errors; `errors.py` has the table of codes, and exports these classes.

FlowFabricError              the root of every error of this package, also of codecs and results
EngineError
├── NotFoundError            an object does not exist; `entity` says of which kind
├── ValidationError          the call is wrong, and repeating it cannot help
├── ContentionError          another call was first; try again
├── ConflictError            the call contradicts what is stored
├── StateError               the operation is not possible in the present state, such as after a lost lease
├── UnavailableError         this engine does not offer the operation; `op` names it
├── ResourceExhaustedError   a limit is reached; try again later
├── EngineTimeoutError       a wait ended before the event
└── TransportError           the store could not be reached or did not answer; `backend` names it
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

_BEARER = re.compile(r"ffw1_[\w=%+/-]*")


def without_tokens(text: str) -> str:
    """Return a text in which only the prefix is left of each waitpoint token, also of one that is cut short.

    A token may be given in the place of any name, and errors repeat names.
    """
    return _BEARER.sub("ffw1_...", text) if "ffw1_" in text else text


class FlowFabricError(Exception):
    """The root of the errors that this package defines: those of the engine, of codecs and of results."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(without_tokens(each) if isinstance(each, str) else each for each in args))


class EngineError(FlowFabricError):
    """The base of every error that the engine raises.

    Attributes:
        code: the stable name of the error, in snake_case.
        retryable: whether the same call may succeed later.
        details: ids, limits and outcomes that the error is about.
    """

    default_code: ClassVar[str] = "engine_error"

    def __init__(self, code: str | None = None, message: str = "", **details: Any) -> None:
        self.code = code or self.default_code
        row = ROWS.get(self.code)
        self.retryable = row.retryable if row else False
        self.details: Mapping[str, Any] = details
        super().__init__(message or (row.sentence if row else self.code))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.code, str(self), dict(self.details), dict(self.__dict__))


class NotFoundError(EngineError):
    """An object does not exist, or was removed; `entity` says of which kind."""

    default_code = "not_found"

    def __init__(self, code: str | None = None, message: str = "", **details: Any) -> None:
        super().__init__(code, message, **details)
        self.entity = self.code.removesuffix("_not_found")


class ValidationError(EngineError):
    """The call is wrong, and repeating it cannot help."""

    default_code = "invalid_input"


class ContentionError(EngineError):
    """Another call was first; try again."""

    default_code = "contention"


class ConflictError(EngineError):
    """The call contradicts what is stored, and repeating it cannot help."""

    default_code = "conflict"


class StateError(EngineError):
    """The operation is not possible in the present state, such as after a lost lease."""

    default_code = "invalid_state"


class UnavailableError(EngineError):
    """This engine does not offer the operation `op`."""

    default_code = "unavailable"

    def __init__(self, op: str, message: str = "", code: str | None = None, **details: Any) -> None:
        super().__init__(
            code, message or f"This engine does not offer '{op}'; capabilities() lists what it does.", **details
        )
        self.op = op


class ResourceExhaustedError(EngineError):
    """A limit is reached; try again later."""

    default_code = "resource_exhausted"


class EngineTimeoutError(EngineError):
    """A wait ended before the event."""

    default_code = "timeout"


class TransportError(EngineError):
    """The store could not be reached, or its answer does not tell what happened.

    `backend` names the store, and `__cause__` is the error of the driver.
    """

    default_code = "transport"

    def __init__(self, code: str | None = None, message: str = "", *, backend: str = "unknown", **details: Any) -> None:
        super().__init__(code, message, **details)
        self.backend = backend


@attrs.frozen
class Row:
    """One row of the table of codes."""

    error: type[EngineError]
    retryable: bool
    sentence: str
    details: tuple[str, ...] = ()


# The rows of the table of codes, which errors.py fills.
ROWS: dict[str, Row] = {}


def _restore(
    kind: type[EngineError], code: str, message: str, details: dict[str, Any], state: dict[str, Any]
) -> EngineError:
    """Rebuild a pickled error with its code and its message."""
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    error.details = details
    error.code = code
    return error
