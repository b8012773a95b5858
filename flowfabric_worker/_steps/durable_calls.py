"""The rules of durable calls, such as `step` and `sleep`: where they may be made, and their names.

A handler that runs again finds the results of its earlier runs by these names. So each name is used once in a run, and
a call that the next run might not make in the same way is refused.
"""

from __future__ import annotations

import contextvars
import hashlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from flowfabric_worker.codec import EncodingError, TaskCodec
from flowfabric_worker.engine import forks
from flowfabric_worker.engine.ids import check_name
from flowfabric_worker.engine.limits import MAX_JOURNAL_BYTES
from flowfabric_worker.engine.wire import pack
from flowfabric_worker.outcomes import Delay, DurableCallError, HandlerExit, Suspend, WaitChildren

# The prefix of the records that the package itself keeps in the journal of a handler.
RESERVED: Final = "ff:"
MAX_STEP_NAME_BYTES: Final = 240

_NOT_RUN_BY_A_CALL: Final = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_step_around: contextvars.ContextVar[str | None] = contextvars.ContextVar("flowfabric_step", default=None)


class DurableCalls:
    """Check the durable calls of one run of a handler.

    Attributes:
        leaving: the exception by which a call leaves the handler; None while the handler continues.
    """

    __slots__ = ("_depth", "_places", "_thread", "leaving")

    def __init__(self) -> None:
        self._places: dict[str, tuple[str]] = {}
        self._thread = threading.get_ident()
        self._depth = forks.depth()
        self.leaving: HandlerExit | None = None

    def begin(self, name: str, place: str, *, leaves: bool = False) -> None:
        """Check that a durable call may be made here, and reserve its name.

        Args:
            name: the name of the call.
            place: the file and line of the call.
            leaves: True if the call may leave the handler, which only the handler's thread can do.

        Raises:
            DurableCallError: the call may not be made here, or the name was used before.
        """
        call = f"The durable call {name.removeprefix(RESERVED)!r} at {place}"
        self._check_place(call)
        if leaves and threading.get_ident() != self._thread:
            raise DurableCallError(f"{call} was made in another thread than the handler's: make it there.")
        mine = (place,)
        first = self._places.setdefault(name, mine)
        if first is not mine:
            what = "durable call" if name.startswith(RESERVED) else "step"
            raise DurableCallError(
                f"The {what} {name.removeprefix(RESERVED)!r} was used at {first[0]} and again at {place}, in one run: "
                "the second call would get the result of the first. Give each call its own name, for instance with a "
                "number."
            )

    def _check_place(self, call: str) -> None:
        around = _step_around.get()
        if around is not None:
            raise DurableCallError(f"{call} was made inside the step {around!r}, which later runs skip: move it out.")
        if forks.depth() != self._depth:
            raise DurableCallError(f"{call} was made in a forked process: make it in the handler itself.")
        self.check_not_leaving(call)

    def check_not_leaving(self, call: str) -> None:
        """Refuse a call that a later run would not make in the same place, because the handler is being left.

        Raises:
            DurableCallError: the handler is being left, to continue later.
        """
        leaving = self.leaving or sys.exception()
        if isinstance(leaving, Delay | Suspend | WaitChildren):
            raise DurableCallError(
                f"{call} was made while the handler is being left ({type(leaving).__name__}), such as in a `finally` "
                "block, which runs each time: move it out."
            )

    def leave(self, exit_: HandlerExit) -> HandlerExit:
        """Note that the handler is being left, in case it catches the exception."""
        self.leaving = exit_
        return exit_


def caller() -> str:
    """Return the file and line that called the caller of this function."""
    frame = sys._getframe(2)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def check_durable_name(name: str, what: str) -> str:
    """Return the name of a step, a waitpoint or a sleep after checking it.

    Raises:
        ValidationError: the name is not valid.
        DurableCallError: the name is reserved or too long.
    """
    check_name(name, f"a {what}'s name")
    if name.startswith(RESERVED) or len(name.encode()) > MAX_STEP_NAME_BYTES:
        raise DurableCallError(
            f"A {what} cannot be named {name!r}: a name has at most {MAX_STEP_NAME_BYTES} bytes, and does not begin "
            f"with {RESERVED!r}."
        )
    return name


def check_step(name: str, function: Callable[..., Any]) -> None:
    """Check the name and the function of a step.

    Raises:
        ValidationError: the name is not valid.
        DurableCallError: the name is reserved or too long, or the function is async or a generator.
    """
    check_durable_name(name, "step")
    code = getattr(function, "__code__", None)
    if code is not None:
        flags = code.co_flags
    else:
        inner = inspect.unwrap(getattr(function, "func", function))
        inner = inner if inspect.isroutine(inner) or isinstance(inner, type) else type(inner).__call__
        flags = getattr(getattr(inner, "__code__", None), "co_flags", 0)
    if flags & _NOT_RUN_BY_A_CALL:
        raise DurableCallError(
            f"The step {name!r} got an async function or a generator, which calling does not run: give it a function "
            "that does the work before it returns."
        )


def encode_step_result(codec: TaskCodec, name: str, value: object) -> bytes:
    """Encode the result of a step.

    Raises:
        EncodingError: it would not come back equal, or is too large for the journal of an execution.
    """
    try:
        data = codec.encode_result(value)
    except EncodingError as error:
        raise EncodingError(f"The step {name!r}: {error}") from error
    size = len(name.encode()) + len(data)
    if size > MAX_JOURNAL_BYTES:
        raise EncodingError(
            f"payload_too_large: the result of the step {name!r} takes {size} bytes with its name; all steps of an "
            f"execution have {MAX_JOURNAL_BYTES}. Store it elsewhere and return its address."
        )
    return data


def idempotency_key_of(*parts: str) -> str:
    """Return the key that follows from these texts: 40 hexadecimal digits."""
    check_name(parts[-1], "a name of an idempotency key")
    return hashlib.sha256(pack(parts)).hexdigest()[:40]


@contextmanager
def inside_step(name: str) -> Iterator[None]:
    """Refuse durable calls within the block."""
    token = _step_around.set(name)
    try:
        yield
    finally:
        _step_around.reset(token)


def check_step_result(name: str, value: object) -> None:
    """Check that the function of a step has done its work.

    Raises:
        DurableCallError: it returned an awaitable.
    """
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise DurableCallError(
            f"The step {name!r} returned an awaitable, which has not run: give it a function that does the work before "
            "it returns, for instance with asyncio.run()."
        )
