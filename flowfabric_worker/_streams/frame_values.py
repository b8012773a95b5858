"""What the frames of a task's stream hold: encoded values, and patches of the summary document."""

from __future__ import annotations

import json
from typing import Any, Final

from flowfabric_worker.codec import DecodingError, EncodingError, TaskCodec, encode_plain_json
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.limits import MAX_FRAME_BYTES
from flowfabric_worker.engine.merge_patch import merge
from flowfabric_worker.engine.types.streams import Frame, StreamFrame

# The type of a frame that holds an encoded value begins with this; the name of the codec follows.
_VALUE: Final = "value:"
# The type of a frame that tells of a budget above a limit.
BUDGET_LIMIT: Final = "budget_limit"


def frame_type_of(codec: TaskCodec) -> str:
    """Return the type of the frames whose values a codec encodes."""
    return _VALUE + codec.codec_name


def encode_value(codec: TaskCodec, task: str, value: Any) -> bytes:
    """Encode a value that a task emits.

    Raises:
        EncodingError: the value would not come back equal, or is too large for a frame.
    """
    return _checked(codec.encode_frame(value), task, "an emitted value")


def decode_value(codec: TaskCodec, frame: StreamFrame) -> Any:
    """Decode the value of a frame; return the bytes of a frame that another writer than this package has appended.

    Raises:
        DecodingError: the bytes are no value of the task, or the codec is not known here.
    """
    if not frame.frame_type.startswith(_VALUE):
        return frame.payload
    return codec.named(frame.frame_type.removeprefix(_VALUE)).decode_frame(frame.payload)


def budget_limit_frame(budget: str, dimension: str, used: int, limit: int) -> Frame:
    """Return the frame that tells of a budget above a limit."""
    # It has no number, because a handler that runs again may not pass the limit again.
    return Frame(payload=json.dumps([budget, dimension, used, limit]).encode(), frame_type=BUDGET_LIMIT)


def decode_budget_limit(frame: StreamFrame) -> tuple[str, str, int, int]:
    """Return the budget, the dimension, its counter and its limit of a frame that tells of a budget above a limit.

    Raises:
        DecodingError: the frame is damaged.
    """
    try:
        budget, dimension, used, limit = json.loads(frame.payload)
        return str(budget), str(dimension), int(used), int(limit)
    except (ValueError, TypeError, RecursionError):
        raise DecodingError(f"A frame about a budget is damaged: {frame.payload!r:.100}.") from None


def encode_patch(task: str, patch: Any) -> bytes:
    """Encode a patch of the summary document.

    Raises:
        EncodingError: the patch is not plain JSON, nests too deep, or is too large for a frame.
    """
    data = _checked(encode_plain_json(f"A summary patch of {task!r}", patch), task, "a summary patch")
    try:
        merge(None, data)
    except ValidationError as error:
        raise EncodingError(f"{task!r} cannot merge a summary patch: {error}") from None
    return data


def _checked(data: bytes, task: str, what: str) -> bytes:
    if len(data) > MAX_FRAME_BYTES:
        raise EncodingError(
            f"payload_too_large: {what} of {task!r} has {len(data)} bytes; at most {MAX_FRAME_BYTES} are allowed. "
            "Emit it in parts, or store it elsewhere and emit where it is."
        )
    return data
