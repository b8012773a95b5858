"""Handles: what they carry, and how they cross processes."""

from __future__ import annotations

import pickle

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.handle import HANDLE_KINDS, Handle, HandleKind
from flowfabric_worker.engine.ids import ExecutionId

names = st.text(max_size=64).filter(lambda text: text.isprintable())
handles = st.builds(
    Handle,
    backend=names,
    kind=st.sampled_from(HandleKind),
    execution_id=st.builds(
        lambda partition, uuid: ExecutionId(partition, str(uuid)), st.integers(0, 65535), st.uuids()
    ),
    attempt_index=st.integers(0, 2**32 - 1),
    attempt_id=st.uuids().map(str),
    lease_id=st.uuids().map(str),
    lease_epoch=st.integers(0, 2**64 - 1),
    lease_ttl_ms=st.integers(0, 2**64 - 1),
    lane=names,
    worker_instance_id=names,
)
HANDLE = Handle(
    backend="memory",
    kind=HandleKind.RESUMED,
    execution_id=ExecutionId(7, "01987654-3210-7abc-8def-0123456789ab"),
    attempt_index=3,
    attempt_id="550e8400-e29b-41d4-a716-446655440000",
    lease_id="6ba7b810-9dad-41d1-80b4-00c04fd430c8",
    lease_epoch=7,
    lease_ttl_ms=30_000,
    lane="mail",
    worker_instance_id="wörker-1",
)
DATA = HANDLE.to_bytes()


def is_refused(data: bytes) -> bool:
    """Return True if bytes are refused as a damaged handle; nothing else may come of them but a handle."""
    try:
        Handle.from_bytes(data)
    except ValidationError as error:
        return error.code == "corruption"
    return False


@given(handles)
def test_a_handle_reads_back(handle: Handle) -> None:
    assert Handle.from_bytes(handle.to_bytes()) == handle


def test_a_handle_is_pickled() -> None:
    assert pickle.loads(pickle.dumps(HANDLE)) == HANDLE


def test_the_fence_is_lease_epoch_and_attempt() -> None:
    assert HANDLE.fence == f"{HANDLE.lease_id}:7:{HANDLE.attempt_id}"


def test_every_kind_is_found_by_its_stored_word() -> None:
    assert {word: kind.name for word, kind in HANDLE_KINDS.items()} == {
        b"fresh": "FRESH",
        b"resumed": "RESUMED",
        b"reclaimed": "RECLAIMED",
        b"suspended": "SUSPENDED",
    }


@pytest.mark.parametrize("size", range(len(DATA)))
def test_a_handle_that_is_cut_short_is_refused(size: int) -> None:
    assert is_refused(DATA[:size])


@pytest.mark.parametrize("more", [b"\0", DATA])
def test_a_handle_with_something_behind_it_is_refused(more: bytes) -> None:
    assert is_refused(DATA + more)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_a_handle_of_another_version_is_refused(version: int) -> None:
    assert is_refused(bytes([version]) + DATA[1:])


@pytest.mark.parametrize("kind", [0, 5, 255])
def test_a_handle_of_an_unknown_kind_is_refused(kind: int) -> None:
    assert is_refused(DATA[:1] + bytes([kind]) + DATA[2:])


@pytest.mark.parametrize("field", ["attempt_id", "lease_id"])
@pytest.mark.parametrize("value", ["", "no uuid", "a:1:b"])
def test_a_handle_with_a_wrong_id_is_refused(field: str, value: str) -> None:
    assert is_refused(attrs.evolve(HANDLE, **{field: value}).to_bytes())


def test_a_handle_with_a_wrong_execution_id_is_refused() -> None:
    assert is_refused(attrs.evolve(HANDLE, execution_id=ExecutionId(1, "no uuid")).to_bytes())


@given(st.binary(max_size=300))
def test_any_bytes_are_a_handle_or_refused(data: bytes) -> None:
    assert is_refused(data) or Handle.from_bytes(data).to_bytes() == data


@given(st.integers(0, len(DATA) - 1), st.integers(0, 255))
def test_a_changed_byte_makes_another_handle_or_none(at: int, value: int) -> None:
    changed = DATA[:at] + bytes([value]) + DATA[at + 1 :]

    assert is_refused(changed) or (Handle.from_bytes(changed) == HANDLE) == (changed == DATA)
