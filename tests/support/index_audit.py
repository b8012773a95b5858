"""What the indexes of a store hold, read behind the engine's back, and what a model says that they must hold."""

from __future__ import annotations

from typing import Any

import attrs

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.reads import INDEXED_STATES, ExecutionInfo
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.wire import WorkClass, pack, unpack_text
from tests.support.executions import raw_client, raw_key
from tests.support.model import Model
from tests.support.model_partition import RUNNING, Execution, Partition

ALL = (0, -1)


@attrs.frozen(kw_only=True)
class Indexes:
    """Everything but the records themselves.

    Attributes:
        ready: per class, who may be claimed with what score.
        due: when time will change an execution, and which index says so.
        ids: every execution.
        listed: of each lane, and of each state that has an index, the executions that a listing finds there.
        keys: the execution that each idempotency key stands for.
        depths: per lane the counters that are not zero.
    """

    ready: dict[WorkClass, dict[str, int]]
    due: dict[str, tuple[str, int]]
    ids: set[str]
    listed: dict[str, set[str]]
    keys: dict[tuple[str, str], str]
    depths: dict[str, dict[str, int]]


def stored_indexes(engine: Engine, number: int, model: Model, keys: set[str]) -> Indexes:
    """Return what the indexes of a partition hold."""
    client: Any = raw_client(engine, number)
    base = raw_key(engine, number, "").encode()
    namespace = pack((engine.namespace,))
    ready = {
        work_class: client.zrange(base + b"ready:" + work_class.encode(), *ALL, withscores=True)
        for work_class in model.classes
    }
    counters = {lane: client.hgetall(base + b"lane:" + pack((engine.namespace, lane))) for lane in model.lanes}
    named = [(task, key) for task in {each.task for each in model.classes} for key in keys]
    standing = {each: client.get(base + b"key:" + pack((engine.namespace, *each))) for each in named}
    lanes = [pack((engine.namespace, lane)) for lane in model.lanes]
    due = {
        member[1:].decode(): (index.partition(b":")[0].decode(), int(score))
        for index in (b"due", b"retention", *(b"delays:" + lane for lane in lanes))
        for member, score in client.zrange(base + index, *ALL, withscores=True)
        if member.startswith(b"x")
    }
    delayed = client.zrange(base + b"delayed", *ALL)
    assert sorted(delayed) == sorted(lane for lane in lanes if client.exists(base + b"delays:" + lane))
    return Indexes(
        ready={
            work_class: {member.decode(): int(score) for member, score in members}
            for work_class, members in ready.items()
            if members
        },
        due=due,
        ids={member.removeprefix(namespace).decode() for member in client.zrange(base + b"ids", *ALL)},
        listed=_stored_listings(client, base, namespace, model),
        keys={key: uuid.decode() for key, uuid in standing.items() if uuid},
        depths={
            lane: {state: int(stored[state.encode()]) for state in PublicState if int(stored.get(state.encode(), 0))}
            for lane, stored in counters.items()
        },
    )


def _stored_listings(client: Any, base: bytes, namespace: bytes, model: Model) -> dict[str, set[str]]:
    """Return the executions in the index of each lane and of each public state, where there are any."""
    keys = {lane: b"of_lane:" + pack((unpack_text(namespace)[0], lane)) for lane in model.lanes}
    keys |= {state: b"of_state:" + state.encode() + b":" + namespace for state in PublicState}
    found = {name: client.zrange(base + key, *ALL) for name, key in keys.items()}
    return {name: {member.decode() for member in members} for name, members in found.items() if members}


def demanded_indexes(partition: Partition, model: Model) -> Indexes:
    """Return what the indexes of a partition must hold."""
    ready: dict[WorkClass, dict[str, int]] = {}
    depths: dict[str, dict[str, int]] = {lane: {} for lane in model.lanes}
    listed: dict[str, set[str]] = {}
    for each in partition.executions.values():
        if each.is_claimable:
            ready.setdefault(each.work_class, {})[each.id.uuid] = each.score
        for name in {each.args.lane, each.public} & {each.args.lane, *INDEXED_STATES}:
            listed.setdefault(name, set()).add(each.id.uuid)
        depths[each.args.lane][each.public] = depths[each.args.lane].get(each.public, 0) + 1
    return Indexes(
        ready=ready,
        due={
            each.id.uuid: (each.due_index, each.due) for each in partition.executions.values() if each.due is not None
        },
        ids=set(partition.executions),
        listed=listed,
        keys=dict(partition.keys),
        depths=depths,
    )


def stored_feed(engine: Engine, number: int) -> list[tuple[str, str]]:
    """Return the ends that a partition's feed holds, in order."""
    client: Any = raw_client(engine, number)
    entries = client.xrange(raw_key(engine, number, "feed"))
    return [(fields[b"execution"].decode(), fields[b"outcome"].decode()) for _, fields in entries]


def stored_execution(info: ExecutionInfo) -> dict[str, Any]:
    """Return what the engine says of an execution, as far as the model knows it."""
    lease = info.current_lease
    return {
        "state": info.state,
        "priority": info.priority,
        "created": info.created_at_ms,
        "key": info.idempotency_key,
        "deadline": info.deadline_at_ms,
        "delay": info.delay_until_ms,
        "removed": info.remove_at_ms,
        "attempt": info.current_attempt and (info.current_attempt.attempt_index, info.current_attempt.attempt_id),
        "lease": lease and (lease.lease_epoch, lease.worker_instance_id, lease.expires_at_ms),
        "timeout": info.timeout_at_ms if info.state.ownership_state == "leased" else None,
        "counts": (info.total_attempt_count, info.retry_count, info.reclaim_count, info.replay_count, info.step_count),
        "past attempts": len(info.past_attempts),
        "progress": (info.progress_percent, info.progress_message),
    }


def demanded_execution(each: Execution) -> dict[str, Any]:
    """Return the same of the model."""
    return {
        "state": each.vector,
        "priority": each.priority,
        "created": each.created,
        "key": each.key,
        "deadline": each.deadline,
        "delay": each.delay_until if each.public is PublicState.DELAYED else None,
        "removed": each.remove_at if each.is_terminal else None,
        "attempt": None if each.attempt_index is None else (each.attempt_index, each.attempt_id),
        "lease": (each.epoch, each.holder, each.expires) if each.state.startswith("active") else None,
        "timeout": each.timeout_at if each.state == RUNNING else None,
        "counts": (each.attempt_count, each.retry_count, each.reclaim_count, each.replay_count, len(each.steps)),
        "past attempts": each.past_attempts,
        # An empty message reads as none.
        "progress": (each.progress[0], each.progress[1] or None),
    }


def audit(engine: Engine, model: Model, number: int, partition: Partition, keys: set[str]) -> None:
    """Compare a partition with what a model says of it: every record, every index, and the ends that were told."""
    assert stored_indexes(engine, number, model, keys) == demanded_indexes(partition, model)
    for each in partition.executions.values():
        info = engine.read_execution_info(ExecutionId(number, each.id.uuid))
        assert info is not None
        assert stored_execution(info) == demanded_execution(each)
        assert engine.get_execution_result(each.id) == each.result
    # The feed keeps entries for a day.
    feed = stored_feed(engine, number)
    assert feed == partition.feed[len(partition.feed) - len(feed) :]


def audit_lanes(engine: Engine, model: Model) -> None:
    """Compare what the engine says of its lanes with a model."""
    listed = {lane.lane: lane for lane in engine.list_lanes().lanes}
    assert model.lanes_to_list() <= set(listed) <= set(model.lanes)
    for name, lane in listed.items():
        held = [each.public for each in model.executions() if each.args.lane == name]
        assert lane.depths == {state: held.count(state) for state in PublicState}
        assert lane.paused_since_ms == model.paused.get(name)
