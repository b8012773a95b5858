"""The texts of exceptions of user code, whose methods may raise or return anything."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

# A traceback shows this many of the innermost frames.
_TRACEBACK_FRAMES: Final = -50
_MAX_CHARACTERS: Final = 1 << 20
_PACKAGE: Final = str(Path(__file__).parents[1]) + os.sep
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
        return "(its text cannot be read)"
    return plain_text(text)


def plain_text(text: str) -> str:
    """Return a text of bounded size as a plain str, without the methods of a subclass."""
    return str.__getitem__(text, slice(_MAX_CHARACTERS))


def message_of(error: BaseException) -> str:
    """Return an exception as one line: its class and its text."""
    return f"{class_name(error)}: {text_of(error)}"


def traceback_of(error: BaseException) -> str:
    """Return the end of an exception's traceback as text, from the user's code on, as far as it can be read."""
    frames = _from_user_code(_traceback_of(error))
    try:
        lines = traceback.format_exception(type(error), error, frames, limit=_TRACEBACK_FRAMES)
        return "".join(lines)[-_MAX_CHARACTERS:]
    except BaseException:  # noqa: BLE001  reading its causes, notes and text may raise anything
        read = traceback.format_tb(frames, limit=_TRACEBACK_FRAMES)
        return "".join(["Traceback (most recent call last):\n", *read, message_of(error), "\n"])


def _from_user_code(frames: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that begins in code outside of this package; all of it if there is none."""
    rest = frames
    while rest is not None and rest.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        rest = rest.tb_next
    return rest or frames
