"""The limits of the engine, each named once. Sizes are in bytes, times in milliseconds."""

from __future__ import annotations

from typing import Final

import attrs

KIB: Final = 1024
MIB: Final = 1024 * KIB

MAX_NAME_BYTES: Final = 256
MAX_LANE_CHARACTERS: Final = 64
MAX_PRIORITY: Final = 9000

MAX_BATCH_ITEMS: Final = 500
MAX_BATCH_BYTES: Final = 8 * MIB
# The most items of one call of a stored function, so that it takes the server at most about 3 ms.
MAX_CALL_ITEMS: Final = 100
MAX_CALL_BYTES: Final = 2 * MIB
# How many executions one call claims, completes or fails: at most, and while others submit work and wait for calls.
MAX_LEASE_ITEMS: Final = 100
SHARED_LEASE_ITEMS: Final = 25
MAX_CALL_ROWS: Final = 200
MAX_PAGE_SIZE: Final = 1000
MAX_DAMAGED: Final = 1000
MAX_CALLS_REMEMBERED: Final = 8

MAX_CAPABILITIES: Final = 256
MAX_CAPABILITIES_BYTES: Final = 4096
MAX_CLASSES_PER_LANE: Final = 1024
MAX_CLASSES_PER_CLAIM: Final = 64
MAX_LANES_PER_CLAIM: Final = 64

# The most attempts in a window, and executions at once, that a quota policy may allow.
MAX_QUOTA: Final = 1_000_000_000

MAX_TAGS: Final = 64
# The most budgets that an execution may name.
MAX_BUDGETS: Final = 64
MAX_TAG_VALUE_BYTES: Final = 1024

MAX_HEADERS: Final = 64
MAX_HEADER_VALUE_BYTES: Final = 8 * KIB

MAX_REGISTRATION_BYTES: Final = 64 * KIB

MAX_FLOW_ROWS: Final = 1000
MAX_EDGES_SEARCHED: Final = 500
DEFAULT_CANCEL_GRACE_MS: Final = 30_000
# How many bytes of inputs of an execution are read before it runs.
DEFAULT_INPUT_BYTES: Final = 64 * MIB

MAX_STEPS: Final = 1000
MAX_JOURNAL_BYTES: Final = MIB

MAX_SIGNAL_PAYLOAD_BYTES: Final = 64 * KIB
MAX_FRAME_BYTES: Final = 64 * KIB
MAX_FRAMES_PER_ITEM: Final = 100
MAX_DURABLE_FRAMES: Final = 100_000
MAX_DURABLE_BYTES: Final = 64 * MIB
MAX_SEQ: Final = 2**53 - 1
MAX_TAILS: Final = 1000
MAX_CONDITION_BYTES: Final = 8 * KIB
MAX_CONDITION_DEPTH: Final = 4
MAX_WAITPOINTS: Final = 64
MAX_OPEN_WAITPOINTS: Final = 1000
DEFAULT_SIGNALS_PER_EXECUTION: Final = 10_000
MAX_SECRET_BYTES: Final = KIB
MAX_GRACE_MS: Final = 365 * 24 * 3600 * 1000
MAX_SUMMARY_DEPTH: Final = 16
MAX_SUMMARY_BYTES: Final = MIB
MAX_TAIL_BLOCK_MS: Final = 30_000
MAX_READ_COUNT: Final = 10_000
MAX_BUDGET_DIMENSIONS: Final = 64
# No amount, counter or limit of a budget is larger, so that every store counts exactly.
MAX_COUNT: Final = 2**53 - 1

MAX_MESSAGE_BYTES: Final = 2 * KIB
MAX_DETAIL_BYTES: Final = 16 * KIB

DEFAULT_RETENTION_MS: Final = 24 * 3600 * 1000
DEFAULT_DEDUP_WINDOW_MS: Final = 24 * 3600 * 1000
DEFAULT_LEASE_MS: Final = 30_000
MAX_LEASE_MS: Final = 24 * 3600 * 1000
MAX_DURATION_MS: Final = 100 * 365 * 24 * 3600 * 1000
MAX_GRANT_MS: Final = 60_000
DEFAULT_MAX_RECLAIMS: Final = 100
DEFAULT_MAX_REPLAYS: Final = 10


@attrs.frozen(kw_only=True)
class Limits:
    """The limits that an operator may set for one engine.

    Attributes:
        payload_bytes: the largest payload and the largest result of an execution, in bytes.
        fan_in_bytes: the largest total size of the results that an execution of a flow gets from its parents, in bytes.
        signals_per_execution: how many signals an execution accepts; fixed when the execution is created.
        durable_frames: how many durable frames one attempt may append.
        durable_bytes: the largest total size of the payloads of those frames, in bytes.
        feed_age_ms: how long ends stay in the feed, for every user of the store, in ms; None to keep the present value,
            which is a day for a new store.
    """

    payload_bytes: int = attrs.field(default=MIB, validator=attrs.validators.ge(1))
    fan_in_bytes: int = attrs.field(default=64 * MIB, validator=attrs.validators.ge(1))
    signals_per_execution: int = attrs.field(default=DEFAULT_SIGNALS_PER_EXECUTION, validator=attrs.validators.ge(1))
    durable_frames: int = attrs.field(default=MAX_DURABLE_FRAMES, validator=attrs.validators.ge(1))
    durable_bytes: int = attrs.field(default=MAX_DURABLE_BYTES, validator=attrs.validators.ge(1))
    feed_age_ms: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1000)))
