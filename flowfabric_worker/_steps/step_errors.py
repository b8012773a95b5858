"""The exception of a step as it is kept: what a handler caught once, later runs of it have to catch again.

Kept are the class by its name, the text, and of the arguments and attributes what is plain JSON. No code runs when they
are read but that of a class which is already imported.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from flowfabric_worker.codec import DecodingError
from flowfabric_worker.engine.exception_text import class_name, text_of
from flowfabric_worker.outcomes import StepFailed

_MAX_TEXT: Final = 4096
_MAX_BYTES: Final = 16 * 1024


def encode_error(error: Exception) -> bytes:
    """Return an exception as bytes."""
    text = text_of(error)[:_MAX_TEXT]
    kind = type(error)
    try:
        named = {"module": str(kind.__module__), "class": str(kind.__qualname__), "text": text}
        reduced = error.__reduce__()
        arguments = list(reduced[1]) if isinstance(reduced, tuple) and reduced[0] is kind else list(error.args)
        whole = {
            **named,
            "args": arguments if _is_plain(arguments) else [text],
            "attributes": {name: value for name, value in vars(error).items() if _is_plain(value)},
        }
        data = json.dumps(whole).encode()
        return data if len(data) <= _MAX_BYTES else json.dumps({**named, "args": [text], "attributes": {}}).encode()
    except BaseException:  # noqa: BLE001  its own code may raise anything
        bare = {"module": "", "class": class_name(error), "text": text, "args": [], "attributes": {}}
        return json.dumps(bare).encode()


def decode_error(data: bytes, step: str) -> Exception:
    """Return the exception that was kept of a step; a `StepFailed` where its class cannot be had.

    Raises:
        DecodingError: the bytes hold something else.
    """
    try:
        kept = json.loads(data)
        module, qualified_name, text = str(kept["module"]), str(kept["class"]), str(kept["text"])
        arguments, attributes = list(kept["args"]), dict(kept["attributes"])
    except (ValueError, TypeError, LookupError) as damage:
        raise DecodingError(f"What is kept of the failed step {step!r} is damaged: {damage}.") from damage
    name = f"{module}.{qualified_name}".lstrip(".")
    kind = _find_class(module, qualified_name)
    error: Exception = StepFailed(step, name, text)
    if kind is not None:
        try:
            # Not by its __init__, which may want other arguments than those that the exception shows.
            error = kind.__new__(kind, *arguments)
            vars(error).update(attributes)
        except Exception as failure:  # noqa: BLE001  a class of the user may refuse in any way
            error.add_note(f"The class {name} could not be made again: {text_of(failure)}")
    error.add_note(f"The step {step!r} raised this in an earlier run of the execution: {name}: {text}")
    return error


def _find_class(module: str, qualified_name: str) -> type[Exception] | None:
    """Return a class of exceptions by its name, if its module is imported."""
    found: Any = sys.modules.get(module)
    for part in qualified_name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _is_plain(value: object) -> bool:
    """Return True if JSON brings a value back as it is."""
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(key) is str for key in value) and all(map(_is_plain, value.values()))
    return value is None or type(value) in (str, int, bool) or (type(value) is float and value - value == 0)
