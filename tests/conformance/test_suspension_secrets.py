"""The secrets that sign waitpoint tokens: the first one, their rotation, and that they are never shown."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import Any

import attrs
import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import ConflictError, EngineError
from flowfabric_worker.engine.types.conditions import Count, CountKind
from flowfabric_worker.engine.types.suspension import DeliverSignalArgs, SignalAccepted, SuspendArgs, WaitpointBinding
from flowfabric_worker.engine.types.waitpoint_secrets import (
    RotateWaitpointHmacSecretAllArgs,
    SecretRotated,
    SecretUnchanged,
)
from tests.conftest import Clock
from tests.support.dumps import Dump, dump_of
from tests.support.executions import LANE, raw_client, raw_key, refused, running, tenant
from tests.support.lossy_store import empty_store_beside
from tests.support.suspensions import JANE, MINUTE, SECOND, signal, suspend, suspended

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32
MILLISECOND = timedelta(milliseconds=1)
MANY = Count(n=99, kind=CountKind.SIGNALS, waitpoint_keys=["go"])


def rotate(engine: Engine, kid: str, secret: bytes, grace: timedelta = MINUTE) -> list[Any]:
    """Rotate to a secret; return what became of each partition."""
    args = RotateWaitpointHmacSecretAllArgs(new_kid=kid, new_secret=secret, grace=grace)
    return [each.result for each in engine.rotate_waitpoint_hmac_secret_all(args).partitions]


def rotated(engine: Engine, kid: str, previous: str, collected: int = 0) -> list[SecretRotated]:
    return [SecretRotated(new_kid=kid, previous_kid=previous, collected=collected)] * engine.partitions


# Rotation -------------------------------------------------------------------------------------------------------------


def test_a_rotated_secret_holds_until_the_end_of_its_grace(engine: Engine, clock: Clock) -> None:
    execution, old = suspended(engine, condition=MANY)
    assert rotate(engine, "k2", A) == rotated(engine, "k2", "k1")
    later, new = suspended(engine, condition=MANY)
    assert (old.token[:3], new.token[:3]) == ("k1:", "k2:")
    assert isinstance(signal(engine, execution, old), SignalAccepted)
    clock.move(MINUTE - MILLISECOND)
    assert isinstance(signal(engine, execution, old), SignalAccepted)
    clock.move(MILLISECOND)

    with refused("invalid_token"):
        signal(engine, execution, old)

    assert isinstance(signal(engine, later, new), SignalAccepted)


def test_secrets_that_follow_each_other_within_a_grace_all_hold(engine: Engine) -> None:
    execution, old = suspended(engine, condition=MANY)
    for kid, secret in (("a", A), ("b", B), ("c", C)):
        rotate(engine, kid, secret)

    assert isinstance(signal(engine, execution, old), SignalAccepted)


def test_a_rotation_that_comes_again_changes_nothing(engine: Engine, dump: Dump) -> None:
    rotate(engine, "k2", A)
    before = dump()

    assert rotate(engine, "k2", A) == [SecretUnchanged("k2")] * engine.partitions
    assert dump() == before


@pytest.mark.parametrize("kid", ["k2", "k3"])
def test_a_known_kid_with_other_bytes_is_a_conflict(engine: Engine, dump: Dump, kid: str) -> None:
    rotate(engine, "k2", A)
    rotate(engine, "k3", B)
    before = dump()

    results = rotate(engine, kid, C)

    assert [getattr(each, "code", each) for each in results] == ["rotation_conflict"] * engine.partitions
    assert dump() == before


def test_a_secret_that_signs_again_outlives_the_grace_it_once_had(engine: Engine, clock: Clock) -> None:
    rotate(engine, "a", A)
    execution, first = suspended(engine, condition=MANY)
    rotate(engine, "b", B, SECOND)
    assert rotate(engine, "a", A) == rotated(engine, "a", "b")
    again, second = suspended(engine, condition=MANY)
    clock.move(2 * MINUTE)

    assert rotate(engine, "c", C) == rotated(engine, "c", "a", collected=2)
    assert isinstance(signal(engine, execution, first), SignalAccepted)
    assert isinstance(signal(engine, again, second), SignalAccepted)


def test_a_kid_is_free_again_once_its_secret_is_over(engine: Engine, clock: Clock) -> None:
    execution, old = suspended(engine, condition=MANY)
    rotate(engine, "k2", A)
    clock.move(MINUTE)

    assert rotate(engine, "k1", B) == rotated(engine, "k1", "k2", collected=1)

    with refused("invalid_token"):
        signal(engine, execution, old)


def test_at_most_64_secrets_hold_at_once(engine: Engine, clock: Clock, dump: Dump) -> None:
    for number in range(63):
        rotate(engine, f"n{number}", bytes([number]) * 32)
    before = dump()
    full = rotate(engine, "more", A)
    assert [getattr(each, "code", each) for each in full] == ["too_many_secrets"] * engine.partitions
    assert dump() == before
    clock.move(MINUTE)

    assert isinstance(rotate(engine, "more", A)[0], SecretRotated)


def test_a_partition_that_failed_converges_when_the_rotation_comes_again(engine: Engine) -> None:
    client, key = raw_client(engine), raw_key(engine, 0, "secrets")
    whole = client.hgetall(key)
    client.delete(key)
    client.set(key, b"damaged")
    first = rotate(engine, "k2", A)
    assert isinstance(first[0], EngineError)
    client.delete(key)
    client.hset(key, mapping=whole)  # type: ignore[arg-type]

    second = rotate(engine, "k2", A)

    rest = engine.partitions - 1
    assert first[1:] == rotated(engine, "k2", "k1")[:rest]
    assert second == [rotated(engine, "k2", "k1")[0], *[SecretUnchanged("k2")] * rest]


def test_two_rotations_at_once_leave_one_secret_in_each_partition(engine: Engine, store_url: str) -> None:
    with closing(open_engine(store_url)) as other, ThreadPoolExecutor(2) as pool:
        one, two = pool.map(rotate, (engine, other), ("k2", "k2"), (A, B))
        after = rotate(engine, "k3", C)
        execution, waitpoint = suspended(other)

    for results in zip(one, two, strict=True):
        assert {type(each) for each in results} == {SecretRotated, ConflictError}
    assert after == rotated(engine, "k3", previous="k2")
    assert waitpoint.token.startswith("k3:")
    signal(engine, execution, waitpoint)


def test_an_engine_that_knows_an_old_secret_learns_the_new_one_by_itself(engine: Engine) -> None:
    other = Engine(lambda: (engine.store, None))
    other.prepare()
    rotate(engine, "k2", A)
    claimed = running(engine, lane=LANE)

    pending = other.create_waitpoint(claimed.handle, "go", MINUTE)

    assert pending.token.startswith("k2:")
    rotate(other, "k3", B)
    assert isinstance(signal(engine, claimed.execution_id, pending), SignalAccepted)
    newer = other.create_waitpoint(claimed.handle, "newer", MINUTE)
    assert newer.token.startswith("k3:")
    assert isinstance(signal(engine, claimed.execution_id, newer), SignalAccepted)


def test_a_waitpoint_keeps_its_token_until_its_secret_is_over(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE, lease=timedelta(hours=1))
    first = engine.create_waitpoint(claimed.handle, "go", timedelta(hours=1))
    rotate(engine, "k2", A)
    assert engine.create_waitpoint(claimed.handle, "go", MINUTE).token == first.token
    clock.move(MINUTE)

    second = engine.create_waitpoint(claimed.handle, "go", MINUTE)
    (bound,) = suspend(engine, claimed, "go")

    assert (second.waitpoint_id, second.token[:3]) == (first.waitpoint_id, "k2:")
    assert bound.token == second.token
    assert isinstance(signal(engine, claimed.execution_id, bound), SignalAccepted)


# The first secret -----------------------------------------------------------------------------------------------------


def test_every_partition_is_set_up_with_one_random_secret_of_32_bytes(engine: Engine) -> None:
    rings = [engine._read_secrets(number) for number in range(engine.partitions)]

    assert {ring.signing for ring in rings} == {rings[0].signing}
    assert (rings[0].signing.kid, len(rings[0].signing.value)) == ("k1", 32)


def test_the_environment_names_the_first_secret_and_no_later_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = empty_store_beside(engine)
    monkeypatch.setenv("FLOWFABRIC_WAITPOINT_SECRET", "AB" * 32)
    first = Engine(lambda: (store, engine.partitions))
    assert first.prepare(testing=True).warnings == engine.prepare().warnings[:-1]
    monkeypatch.setenv("FLOWFABRIC_WAITPOINT_SECRET", "cd" * 32)
    second = Engine(lambda: (store, None))

    warnings = second.prepare().warnings

    assert "FLOWFABRIC_WAITPOINT_SECRET" in warnings[-1]
    assert "cd" * 32 not in warnings[-1]
    assert second._read_secrets(0).signing.value == b"\xab" * 32
    second.erase()


@pytest.mark.parametrize("text", ["abc", "xy", "0" * 2050])
def test_an_invalid_secret_of_the_environment_is_refused_unseen(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("FLOWFABRIC_WAITPOINT_SECRET", text)

    with refused("invalid_secret") as caught:
        Engine(lambda: (engine.store, None)).prepare()

    assert text not in str(caught.value)


def test_a_partition_that_lost_its_secrets_gets_new_ones(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    old = engine.create_waitpoint(claimed.handle, "old", MINUTE)
    for number in range(engine.partitions):
        raw_client(engine, number).delete(raw_key(engine, number, "secrets"))

    new = engine.create_waitpoint(claimed.handle, "new", MINUTE)

    assert isinstance(signal(engine, claimed.execution_id, new), SignalAccepted)
    with refused("invalid_token"):
        signal(engine, claimed.execution_id, old)


def test_a_kid_whose_secret_is_damaged_is_collected_by_the_next_rotation(engine: Engine, clock: Clock) -> None:
    rotate(engine, "k2", A)
    for number in range(engine.partitions):
        raw_client(engine, number).hdel(raw_key(engine, number, "secrets"), "sk1")

    assert rotate(engine, "k3", B) == rotated(engine, "k3", "k2", collected=1)
    execution, waitpoint = suspended(engine)
    assert isinstance(signal(engine, execution, waitpoint), SignalAccepted)


# Nothing is shown -----------------------------------------------------------------------------------------------------


def test_no_secret_and_no_token_is_ever_shown(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    claimed = running(engine, lane=LANE)
    pending = engine.create_waitpoint(claimed.handle, "go", MINUTE)
    outcome = engine.suspend(
        claimed.handle, SuspendArgs(condition=MANY, waitpoints=[WaitpointBinding(waitpoint_key="go")])
    )
    args = DeliverSignalArgs(
        execution_id=claimed.execution_id, waitpoint_id=pending.waitpoint_id, token=pending.token, name="x", source=JANE
    )
    rotation = RotateWaitpointHmacSecretAllArgs(new_kid="k2", new_secret=A)
    shown = [pending, outcome, args, rotation, engine.deliver_signal(args), rotate(engine, "k2", A)]
    shown += [rotate(engine, "k2", B), engine.list_pending_waitpoints(claimed.execution_id), engine.secret_rings]
    for token in (pending.token[:-1], "k9" + pending.token[2:]):
        with pytest.raises(EngineError) as caught:
            engine.deliver_signal(attrs.evolve(args, token=token))
        shown += [caught.value, caught.value.details]
    with refused("execution_not_found") as missing:
        tenant(engine, "other").deliver_signal(args)
    text = repr([*shown, missing.value, missing.value.details]) + str(shown) + caplog.text

    digest = pending.token.partition(":")[2]
    secrets = [ring.value for ring in engine._read_secrets(claimed.execution_id.partition_number).by_kid.values()]
    assert len(secrets) == 2
    assert [each for each in (digest, digest[17:]) if each in text] == []
    assert [each for each in secrets if each.hex() in text or repr(each)[2:-1] in text] == []


def test_no_token_lies_in_the_store(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    pending = engine.create_waitpoint(claimed.handle, "go", MINUTE)

    assert pending.token.partition(":")[2][:16] not in repr(dump_of(engine))
