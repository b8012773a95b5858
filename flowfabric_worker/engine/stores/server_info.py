"""What servers report about themselves, and whether they can be used."""

from __future__ import annotations

import re
from collections.abc import Iterable

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.stores.base import StoreInfo

OLDEST = {"valkey": (7, 2), "redis": (7, 0)}
_FUNCTION_USE = re.compile(r"calls=([0-9]+),usec=([0-9]+)")


def versions_wanted() -> str:
    """Return the oldest supported versions of servers, in words."""
    return " or ".join(f"{name.capitalize()} {major}.{minor}" for name, (major, minor) in OLDEST.items())


def read_info(address: str, answers: Iterable[bytes]) -> StoreInfo:
    """Describe the servers of a store, and refuse servers that do not work or would lose data.

    Args:
        address: the store in words, for messages.
        answers: the answer of each server to INFO; at least one.

    Raises:
        UnavailableError: `store_not_supported`, a server is too old, or evicts keys when its memory is full.
    """
    found: list[tuple[str, str]] = []
    warnings: list[str] = []
    spent: list[tuple[int, int]] = []
    for answer in answers:
        fields = _parse_info(answer)
        found.append(_check_product(address, fields))
        _check_eviction(address, fields)
        if fields.get("aof_enabled") == "0":
            warnings.append(f"{address} keeps no append-only file: a restart loses everything since its last save.")
        spent.append(_function_use(fields))
    product, version = found[0]
    calls, busy_us = map(sum, zip(*spent, strict=True))
    return StoreInfo(
        product=product,
        version=version,
        warnings=tuple(dict.fromkeys(warnings)),
        servers=len(found),
        calls=calls,
        busy_us=busy_us,
    )


def _check_product(address: str, fields: dict[str, str]) -> tuple[str, str]:
    product = "valkey" if "valkey_version" in fields else "redis"
    version = fields.get(f"{product}_version", "0")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST[product]:
        raise UnavailableError(
            "prepare", f"{address} is {product} {version}; {versions_wanted()} is needed.", "store_not_supported"
        )
    return product, version


def _check_eviction(address: str, fields: dict[str, str]) -> None:
    policy = fields.get("maxmemory_policy", "noeviction")
    if policy.startswith("allkeys"):
        raise UnavailableError(
            "prepare",
            f"{address} evicts keys when its memory is full (maxmemory-policy {policy}), which would "
            "lose work: set it to noeviction.",
            "store_not_supported",
        )


def _function_use(fields: dict[str, str]) -> tuple[int, int]:
    """Return how many functions a server has run since it started, and how long they took in microseconds."""
    numbers = _FUNCTION_USE.match(fields.get("cmdstat_fcall", ""))
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _parse_info(text: bytes) -> dict[str, str]:
    lines = text.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
