"""Waitpoint tokens: what they are bound to, and that a damaged one opens nothing and tells nothing."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import ExecutionId, WaitpointId
from flowfabric_worker.engine.waitpoint_tokens import (
    check,
    created_at_ms,
    fingerprint,
    from_bearer,
    kid_of,
    sign,
    to_bearer,
)

EXECUTION = ExecutionId.parse("{fp:0}:0192f3a4-0000-7000-8000-000000000001")
WAITPOINT = WaitpointId("0192f3a4-1234-7abc-8def-0123456789ab")
SECRET = bytes(range(32))
TOKEN = sign(SECRET, "k1", EXECUTION, WAITPOINT)


def test_a_token_is_the_documented_mac_of_the_packed_fields() -> None:
    signed = (
        b"1:12:k143:{fp:0}:0192f3a4-0000-7000-8000-00000000000136:0192f3a4-1234-7abc-8def-0123456789ab13:1730664469044"
    )

    assert created_at_ms(WAITPOINT) == int("0192f3a41234", 16)
    assert "k1:" + hmac.new(SECRET, signed, hashlib.sha256).hexdigest() == TOKEN
    assert fingerprint(TOKEN) == TOKEN[3:19]


def test_a_token_opens_its_own_waitpoint() -> None:
    check(TOKEN, SECRET, EXECUTION, WAITPOINT)

    assert kid_of(TOKEN) == "k1"


OTHER_EXECUTION = ExecutionId.parse("{fp:1}:0192f3a4-0000-7000-8000-000000000001")
OTHER_WAITPOINT = WaitpointId("0192f3a4-1234-7abc-8def-0123456789ac")
REFUSED = {
    "another secret": (TOKEN, b"x" * 32, EXECUTION, WAITPOINT),
    "another execution": (TOKEN, SECRET, OTHER_EXECUTION, WAITPOINT),
    "another waitpoint": (TOKEN, SECRET, EXECUTION, OTHER_WAITPOINT),
    "a waitpoint that is no UUIDv7": (TOKEN, SECRET, EXECUTION, WaitpointId("w")),
    "another kid": ("k2" + TOKEN[2:], SECRET, EXECUTION, WAITPOINT),
    "capital letters": (TOKEN.upper(), SECRET, EXECUTION, WAITPOINT),
    "a digit less": (TOKEN[:-1], SECRET, EXECUTION, WAITPOINT),
    "a digit more": (TOKEN + "0", SECRET, EXECUTION, WAITPOINT),
    "no kid": (TOKEN[2:], SECRET, EXECUTION, WAITPOINT),
    "nothing": ("", SECRET, EXECUTION, WAITPOINT),
    "other than ASCII": ("ķ1" + TOKEN[2:], SECRET, EXECUTION, WAITPOINT),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_token_of_another_waitpoint_or_time_is_refused(case: tuple[str, bytes, ExecutionId, WaitpointId]) -> None:
    token, *rest = case
    with pytest.raises(ValidationError) as caught:
        check(token, *rest)  # type: ignore[arg-type]

    assert caught.value.code == "invalid_token"
    assert not token or token not in str(caught.value)


def test_a_bearer_text_holds_everything_and_can_stand_in_a_url() -> None:
    text = to_bearer(EXECUTION, WAITPOINT, TOKEN)

    assert from_bearer(text) == (EXECUTION, WAITPOINT, TOKEN)
    assert text.replace("_", "").replace("-", "").isalnum()


def open_waitpoint(text: str) -> None:
    parts = from_bearer(text)
    check(parts.token, SECRET, parts.execution_id, parts.waitpoint_id)


@given(st.data())
def test_a_damaged_bearer_text_is_refused_like_any_other(data: st.DataObject) -> None:
    text = to_bearer(EXECUTION, WAITPOINT, TOKEN)
    cut = data.draw(st.integers(0, len(text) - 1))
    damaged = data.draw(st.sampled_from([text[:cut], text[cut + 1 :], text[:cut] + "\N{SNOWMAN}" + text[cut:]]))

    # A damaged text that still parses is another token, whose signature does not match.
    with pytest.raises(ValidationError) as caught:
        open_waitpoint(damaged)

    assert caught.value.code == "invalid_token"


@pytest.mark.parametrize("value", [None, 7, b"ffw1_", "ffw1_", "ffw1_====", "k1:00", TOKEN])
def test_what_is_no_bearer_text_is_refused(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        from_bearer(value)

    assert caught.value.code == "invalid_token"
