"""Damage to what a partition has once, such as its settings and its secrets, stops no work and is told as such."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.suspension import SignalAccepted
from tests.support.executions import claim_one, created, raw_client, raw_key, refused, upkeep_all
from tests.support.suspensions import signal, suspended

JUNK = ["", "x", "9" * 20, "-1", "1:x", "5:ab", "\xff"]


def damage_everywhere(engine: Engine, key: str, field: str, value: str) -> None:
    """Set a field of a key to a value in every partition."""
    for partition in range(engine.partitions):
        raw_client(engine, partition).hset(raw_key(engine, partition, key), field, value)


def another(engine: Engine) -> Engine:
    """Return an engine of another process on the same store."""
    return Engine(lambda: (engine.store, None), retry_for=0)


@pytest.mark.parametrize("value", JUNK)
@pytest.mark.parametrize("field", ["current", "kids", "sk1"])
def test_waits_go_on_after_the_secrets_were_damaged(engine: Engine, field: str, value: str) -> None:
    suspended(engine)
    damage_everywhere(engine, "secrets", field, value)

    for tried in (engine, another(engine)):
        execution, waitpoint = suspended(tried)
        assert tried.list_pending_waitpoints(execution).waitpoints
        assert isinstance(signal(tried, execution, waitpoint), SignalAccepted)
        tried.complete(claim_one(tried).handle)


@pytest.mark.parametrize("value", JUNK)
@pytest.mark.parametrize("field", ["feed_last", "feed_age", "watcher", "turns", "upkeep", "removed", "prepared"])
def test_work_goes_on_after_a_setting_was_damaged(engine: Engine, field: str, value: str) -> None:
    damage_everywhere(engine, "meta", field, value)

    for tried in (engine, another(engine)):
        execution = created(tried)
        claimed = claim_one(tried)
        tried.complete(claimed.handle, b"1")
        assert tried.wait_for_result(execution, timedelta(seconds=5)).result == b"1"
        upkeep_all(tried)


@pytest.mark.parametrize("value", JUNK)
@pytest.mark.parametrize("field", ["major", "partitions"])
def test_a_process_is_told_that_the_configuration_is_damaged(engine: Engine, field: str, value: str) -> None:
    damage_everywhere(engine, "meta", field, value)

    with refused("corruption") as caught:
        another(engine).prepare()

    assert f"{field} is " in str(caught.value)
