"""JSON Merge Patch (RFC 7396), by which a summary frame changes an attempt's summary document."""

from __future__ import annotations

import json
import math
from typing import Any

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.limits import MAX_SUMMARY_BYTES, MAX_SUMMARY_DEPTH


def merge(document: bytes | None, patch: bytes) -> bytes:
    """Merge a patch into a document, and return the new document.

    Integers keep every digit, `{}` and `[]` are kept, and the members of an object keep their order.

    Args:
        document: JSON in UTF-8; None for a document that does not exist yet.
        patch: JSON in UTF-8.

    Raises:
        ValidationError: `invalid_patch`, the patch is not JSON, nests over 16 deep, or makes the document larger than
            1 MiB; `corruption`, the document is damaged.
    """
    change = _read(patch, "invalid_patch", "The summary frame is not a JSON patch")
    current = None if document is None else _read(document, "corruption", "The summary document is damaged")
    # The depth need not be checked again: the merged document is no deeper than the deeper one of the two.
    data = _write(apply(current, change))
    if len(data) > MAX_SUMMARY_BYTES:
        raise ValidationError(
            "invalid_patch", f"The summary document has {len(data)} bytes; at most {MAX_SUMMARY_BYTES} are allowed."
        )
    return data


def apply(target: Any, patch: Any) -> Any:
    """Merge `patch` into `target`: null removes a member, an object is merged, and anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = apply(result.get(name), value)
    return result


def _read(data: bytes, code: str, problem: str) -> Any:
    try:
        value = json.loads(data.decode(), parse_float=_finite, parse_constant=_refuse_constant)
        if _depth(value) > MAX_SUMMARY_DEPTH:
            raise ValueError(f"it nests more than {MAX_SUMMARY_DEPTH} deep")
    except (ValueError, RecursionError) as error:
        raise ValidationError(code, f"{problem}: {error}.") from None
    return value


def _write(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # Write everything with escapes if there is a lone surrogate, which UTF-8 cannot express.
        return json.dumps(value, separators=(",", ":")).encode()


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text:.40} is out of range")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _depth(value: Any) -> int:
    """Return how many objects and arrays are nested in each other."""
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0
