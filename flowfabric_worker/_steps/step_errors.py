"""Encodes the exceptions of steps: an exception that a handler caught is raised again in its later runs.

The record has the name of the class, the text, and those arguments and attributes that are plain JSON. Decoding runs
only code of a class that is already imported.
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
    """Encode an exception."""
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
    except BaseException:  # noqa: BLE001  methods of its class may raise any exception
        bare = {"module": "", "class": class_name(error), "text": text, "args": [], "attributes": {}}
        return json.dumps(bare).encode()


def decode_error(data: bytes, step: str) -> Exception:
    """Decode the exception of a step; return a `StepFailed` if its class is not available.

    Raises:
        DecodingError: the bytes are not such a record.
    """
    try:
        kept = json.loads(data)
        module, qualified_name, text = str(kept["module"]), str(kept["class"]), str(kept["text"])
        arguments, attributes = list(kept["args"]), dict(kept["attributes"])
    except (ValueError, TypeError, LookupError) as damage:
        raise DecodingError(f"The record of the failed step {step!r} is damaged: {damage}.") from damage
    name = f"{module}.{qualified_name}".lstrip(".")
    kind = _find_class(module, qualified_name)
    error: Exception = StepFailed(step, name, text)
    if kind is not None:
        try:
            # __init__ is not called, because it may need other arguments than those of the exception.
            error = kind.__new__(kind, *arguments)
            vars(error).update(attributes)
        except Exception as failure:  # noqa: BLE001  a class of a user may raise any exception
            error.add_note(f"An instance of {name} could not be created: {text_of(failure)}")
    error.add_note(f"The step {step!r} raised this in an earlier run of the execution: {name}: {text}")
    return error


def _find_class(module: str, qualified_name: str) -> type[Exception] | None:
    """Return an exception class by its name, if its module is imported; else None."""
    found: Any = sys.modules.get(module)
    for part in qualified_name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _is_plain(value: object) -> bool:
    """Return True if a value comes back from JSON unchanged."""
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(key) is str for key in value) and all(map(_is_plain, value.values()))
    return value is None or type(value) in (str, int, bool) or (type(value) is float and value - value == 0)
