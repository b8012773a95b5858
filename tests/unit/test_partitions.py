"""Partitions: which one an id, a key or a text stands for."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.partitions import (
    crc16,
    parse_partition_key,
    partition_key,
    partition_of_names,
    partition_of_uuid,
)

TEXTS = {
    b"123456789": 0x31C3,
    b"default": 54870,
    b"workers-a": 11969,
    b"a": 31879,
    b"gpu": 14480,
    b"worker-pool-1": 38989,
    b"": 0,
}
UUIDS = {
    "550e8400-e29b-41d4-a716-446655440000": 36888,
    "00000000-0000-0000-0000-000000000000": 0,
    "00000000-0000-0000-0000-000000000001": 4129,
}

uuids = st.uuids()
counts = st.integers(1, 1024)


@pytest.mark.parametrize(("text", "value"), TEXTS.items(), ids=ascii)
def test_the_checksum_of_a_text_is_crc16_xmodem(text: bytes, value: int) -> None:
    assert crc16(text) == value


@pytest.mark.parametrize(("uuid", "value"), UUIDS.items())
@pytest.mark.parametrize("partitions", [1, 5, 16, 32, 256])
def test_an_id_lies_in_the_partition_of_its_sixteen_bytes(uuid: str, value: int, partitions: int) -> None:
    assert crc16(UUID(uuid).bytes) == value
    assert partition_of_uuid(UUID(uuid), partitions) == value % partitions


def test_a_key_lies_in_the_partition_of_namespace_task_and_key() -> None:
    assert partition_of_names(("default", "send", "order-7"), 1024) == crc16(b"default\0send\0order-7") % 1024
    assert partition_of_names(("default", "ü"), 1024) == crc16(b"default\0\xc3\xbc") % 1024


@given(uuid=uuids, key=st.text(), partitions=counts)
def test_every_id_and_key_lies_in_a_partition_that_exists(uuid: UUID, key: str, partitions: int) -> None:
    assert 0 <= partition_of_uuid(uuid, partitions) < partitions
    assert 0 <= partition_of_names(("default", "task", key), partitions) < partitions


@pytest.mark.parametrize("number", [0, 7, 1023, 65535])
def test_the_text_of_a_partition_reads_back(number: int) -> None:
    assert partition_key(number) == f"{{fp:{number}}}"
    assert parse_partition_key(partition_key(number)) == number


@pytest.mark.parametrize(
    "text",
    ["", "7", "fp:7", "{fp:7", "{fp:}", "{fp:-1}", "{fp:+1}", "{fp:07}", "{fp:1 }", "{b:1}", "{fp:1}:", "{fp:100000}"],
)
def test_a_text_of_another_form_is_no_partition(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_partition_key(text)

    assert caught.value.code == "invalid_partition_key"
