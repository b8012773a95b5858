"""The rules of durable calls, such as `step` and `sleep`: where they may be made, and what their names are.

A handler that runs again finds the results of its earlier runs by these names. So each stands once in a run, and a call
that the next run would not make in the same way is refused.
"""

from __future__ import annotations

import contextvars
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from flowfabric_worker.engine import forks
from flowfabric_worker.engine.ids import check_name
from flowfabric_worker.outcomes import Delay, DurableCallError, HandlerExit, WaitChildren

# What the package itself keeps beside the steps of a handler.
RESERVED: Final = "ff:"
MAX_STEP_NAME_BYTES: Final = 240

_NOT_RUN_BY_A_CALL: Final = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_step_around: contextvars.ContextVar[str | None] = contextvars.ContextVar("flowfabric_step", default=None)


class DurableCalls:
    """The durable calls of one run.

    Attributes:
        leaving: what a call raised to leave the run for a while; None while the run goes on.
    """

    __slots__ = ("_depth", "_places", "_thread", "leaving")

    def __init__(self) -> None:
        self._places: dict[str, tuple[str]] = {}
        self._thread = threading.get_ident()
        self._depth = forks.depth()
        self.leaving: HandlerExit | None = None

    def begin(self, name: str, place: str, *, leaves: bool = False) -> None:
        """Check that a durable call may be made here, and take its name.

        Args:
            leaves: whether the call may leave the run, which the thread of the handler alone can do.

        Raises:
            DurableCallError: it may not be made here, or the name was used before.
        """
        call = f"The durable call {name.removeprefix(RESERVED)!r} at {place}"
        self._check_place(call)
        if leaves and threading.get_ident() != self._thread:
            raise DurableCallError(f"{call} was made in another thread than the handler's: make it there.")
        mine = (place,)
        first = self._places.setdefault(name, mine)
        if first is not mine:
            raise DurableCallError(
                f"The step {name!r} was used at {first[0]} and again at {place}, in one run: the second call would get "
                "the result of the first. Give each call a name that no other has, for instance with its number."
            )

    def _check_place(self, call: str) -> None:
        around = _step_around.get()
        if around is not None:
            raise DurableCallError(
                f"{call} was made inside the step {around!r}, where later runs would not come to it: move it out."
            )
        if forks.depth() != self._depth:
            raise DurableCallError(f"{call} was made in a forked process: make it in the handler itself.")
        leaving = self.leaving or sys.exception()
        if isinstance(leaving, Delay | WaitChildren):
            raise DurableCallError(
                f"{call} was made while the run is being left ({type(leaving).__name__}), such as in a `finally` "
                "block, which runs each time: move it out."
            )

    def leave(self, exit_: HandlerExit) -> HandlerExit:
        """Remember that the run is being left, for the case that the handler catches what is raised."""
        self.leaving = exit_
        return exit_


def caller() -> str:
    """Return the place in the code that called the function that asks."""
    frame = sys._getframe(2)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def check_step(name: str, function: Callable[..., Any]) -> None:
    """Check what a step is given.

    Raises:
        ValidationError: the name is not valid.
        DurableCallError: the name is reserved or too long, or calling the function would not run it.
    """
    check_name(name, "a step's name")
    if name.startswith(RESERVED) or len(name.encode()) > MAX_STEP_NAME_BYTES:
        raise DurableCallError(
            f"A step cannot be named {name!r}: a name has at most {MAX_STEP_NAME_BYTES} bytes, and does not begin with "
            f"{RESERVED!r}."
        )
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


@contextmanager
def inside_step(name: str) -> Iterator[None]:
    """Refuse durable calls within the block."""
    token = _step_around.set(name)
    try:
        yield
    finally:
        _step_around.reset(token)


def check_step_result(name: str, value: object) -> None:
    """Check that a step has done its work.

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
