"""Text of exceptions of user code, whose own methods may raise or return anything."""

from __future__ import annotations

import traceback
from typing import Final

# How many of the innermost frames a traceback shows.
_TRACEBACK_FRAMES: Final = -50
_MAX_CHARACTERS: Final = 1 << 20
_class_name = type.__dict__["__name__"].__get__
_traceback_of = BaseException.__dict__["__traceback__"].__get__


def class_name(error: BaseException) -> str:
    """Return the name of an exception's class, even if its metaclass has another `__name__`."""
    name: str = _class_name(type(error))
    return name


def text_of(error: BaseException) -> str:
    """Return the text of an exception, as a plain str."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001  its own __str__ may raise anything, SystemExit too
        return "(its text cannot be had)"
    return plain_text(text)


def plain_text(text: str) -> str:
    """Return a text as a plain str, without the methods of a subclass, cut to a bounded size."""
    return str.__getitem__(text, slice(_MAX_CHARACTERS))


def message_of(error: BaseException) -> str:
    """Return an exception as one line: its class and its text."""
    return f"{class_name(error)}: {text_of(error)}"


def traceback_of(error: BaseException) -> str:
    """Return the end of an exception's traceback as text, with as much as can be read of it."""
    try:
        return "".join(traceback.format_exception(error, limit=_TRACEBACK_FRAMES))[-_MAX_CHARACTERS:]
    except BaseException:  # noqa: BLE001  its causes, notes and text are asked for, and may raise anything
        frames = traceback.format_tb(_traceback_of(error), limit=_TRACEBACK_FRAMES)
        return "".join(["Traceback (most recent call last):\n", *frames, message_of(error), "\n"])
