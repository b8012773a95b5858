"""JSON Merge Patch: the vectors of RFC 7396, and what other libraries lose on the way."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.limits import MAX_SUMMARY_BYTES, MAX_SUMMARY_DEPTH
from flowfabric_worker.engine.merge_patch import merge

# Appendix A of the RFC: original, patch, result.
RFC_7396 = [
    ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
    ('{"a":"b"}', '{"a":null}', "{}"),
    ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
    ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
    ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
    ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
    ('["a","b"]', '["c","d"]', '["c","d"]'),
    ('{"a":"b"}', '["c"]', '["c"]'),
    ('{"a":"foo"}', "null", "null"),
    ('{"a":"foo"}', '"bar"', '"bar"'),
    ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
    ("[1,2]", '{"a":"b","c":null}', '{"a":"b"}'),
    ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
]

EXACT = {
    "an empty object changes nothing": ('{"a":{"b":1}}', '{"a":{}}', '{"a":{"b":1}}'),
    "an empty object replaces a scalar": ('{"a":1}', '{"a":{}}', '{"a":{}}'),
    "an empty array stays an array": ("{}", '{"a":[],"b":[[]]}', '{"a":[],"b":[[]]}'),
    "nulls inside an array stay": ("{}", '{"a":[null]}', '{"a":[null]}'),
    "large integers keep every digit": ("{}", '{"a":12345678901234567890}', '{"a":12345678901234567890}'),
    "a float stays a float": ("{}", '{"a":1.0}', '{"a":1.0}'),
    "a slash is not escaped": ("{}", '{"a":"/"}', '{"a":"/"}'),
    "other alphabets stay readable": ("{}", '{"a":"ü"}', '{"a":"ü"}'),
    "a lone surrogate keeps its escape": ("{}", '{"a":"\\ud800"}', '{"a":"\\ud800"}'),
    "no word is special": ("{}", '{"a":"__ff_null__"}', '{"a":"__ff_null__"}'),
}


@pytest.mark.parametrize(("document", "patch", "result"), RFC_7396)
def test_a_vector_of_the_rfc_merges_exactly(document: str, patch: str, result: str) -> None:
    assert merge(document.encode(), patch.encode()) == result.encode()


@pytest.mark.parametrize(("document", "patch", "result"), EXACT.values(), ids=EXACT.keys())
def test_a_merge_is_exact(document: str, patch: str, result: str) -> None:
    assert merge(document.encode(), patch.encode()) == result.encode()


def test_the_first_patch_makes_the_document() -> None:
    assert merge(None, b'{"a":{"b":null,"c":1}}') == b'{"a":{"c":1}}'


def nested(depth: int) -> bytes:
    return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)


def test_a_patch_nests_up_to_the_limit() -> None:
    assert merge(None, nested(MAX_SUMMARY_DEPTH)) == nested(MAX_SUMMARY_DEPTH)


def test_a_patch_that_nests_too_deep_is_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        merge(None, nested(MAX_SUMMARY_DEPTH + 1))

    assert caught.value.code == "invalid_patch"


@pytest.mark.parametrize(
    "patch", [b"", b"{", b"\xff", b"NaN", b'{"a":Infinity}', b'{"a":1e999}', b"[" * 100_000, b'{"a":' * 5_000]
)
def test_what_is_no_patch_is_refused(patch: bytes) -> None:
    with pytest.raises(ValidationError) as caught:
        merge(b"{}", patch)

    assert caught.value.code == "invalid_patch"


def test_a_damaged_document_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        merge(b"{", b"{}")

    assert caught.value.code == "corruption"


def test_a_document_has_at_most_one_mib() -> None:
    free = MAX_SUMMARY_BYTES - len(b'{"a":""}')
    assert len(merge(None, b'{"a":"%s"}' % (b"x" * free))) == MAX_SUMMARY_BYTES

    with pytest.raises(ValidationError) as caught:
        merge(None, b'{"a":"%s"}' % (b"x" * (free + 1)))

    assert caught.value.code == "invalid_patch"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(values, values)
def test_a_patch_that_came_twice_changes_nothing_more(document: object, patch: object) -> None:
    once = merge(json.dumps(document).encode(), json.dumps(patch).encode())

    assert merge(once, json.dumps(patch).encode()) == once
