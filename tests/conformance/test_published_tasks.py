"""workers: workers publish how their tasks are submitted; what nothing publishes any more is forgotten."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import ResourceExhaustedError, ValidationError
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.policies import ExecutionPolicy, RetryPolicy
from flowfabric_worker.engine.types.workers import TaskInfo, TaskPublication
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import raw_client, raw_key, tenant, upkeep_all

DAY = timedelta(days=1)
MOST_TASKS = 10_000


def published(name: str = "shop.send", **changes: Any) -> TaskPublication:
    return TaskPublication(**{"name": name, "lane": "mail", **changes})


def listed(engine: Engine, **asked: Any) -> list[str]:
    return [task.name for task in engine.list_tasks(**asked).tasks if isinstance(task, TaskInfo)]


def test_a_published_task_is_listed_with_everything_that_was_said(engine: Engine, clock: Clock) -> None:
    policy = ExecutionPolicy(
        retry=RetryPolicy(max_retries=5, backoff="fixed", retryable_categories=frozenset({"timeout"})),
        attempt_timeout=timedelta(seconds=5),
        execution_deadline=timedelta(hours=1),
        max_reclaim_count=5,
        retention=timedelta(hours=2),
        dedup_window=timedelta(minutes=3),
        requires=frozenset({"gpu", "eu"}),
        budget_ids=("b", "a"),
        quota_policy_id="q",
    )
    said = {
        "codec": "msgpack",
        "priority": 7,
        "delay": timedelta(seconds=9),
        "tags": {"a": "1"},
        "headers": {"trace": "ä b"},
        "policy": policy,
    }

    engine.publish_tasks([published(**said)])

    (task,) = engine.list_tasks().tasks
    assert task == TaskInfo(
        name="shop.send",
        lane="mail",
        published_at_ms=clock.ms,
        expires_at_ms=clock.ms + 7 * 86_400_000,
        **said,
    )


def test_the_last_publication_of_a_task_stands(engine: Engine, clock: Clock) -> None:
    engine.publish_tasks([published(lane="old")])
    clock.move(DAY)

    engine.publish_tasks([published(lane="new")], keep=DAY)

    (task,) = engine.list_tasks().tasks
    assert isinstance(task, TaskInfo)
    assert (task.lane, task.expires_at_ms) == ("new", clock.ms + 86_400_000)


def test_a_name_finds_the_task_that_has_it_else_those_that_end_in_it(engine: Engine) -> None:
    engine.publish_tasks([published(name) for name in ("shop.send", "blog.send", "a.b.send", "send.blog", "resend")])
    assert listed(engine, name="shop.send") == ["shop.send"]
    assert listed(engine, name="send") == ["a.b.send", "blog.send", "shop.send"]
    assert listed(engine, name="b.send") == []
    assert listed(engine, name="sen") == []

    engine.publish_tasks([published("send")])

    assert listed(engine, name="send") == ["send"]


@pytest.mark.parametrize("name", [None, "f"])
def test_pages_of_published_tasks_show_each_once(engine: Engine, name: str | None) -> None:
    names = [f"{worker}.f" for worker in "abcdefg"]
    engine.publish_tasks([published(name) for name in names])
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = engine.list_tasks(cursor, 2, name)
        seen += [task.name for task in page.tasks if isinstance(task, TaskInfo)]
        cursor = page.next_cursor
        if cursor is None:
            break

    assert seen == names
    assert engine.list_tasks(limit=0).tasks == ()


def test_tasks_of_another_namespace_are_not_listed(engine: Engine) -> None:
    engine.publish_tasks([published()])

    assert tenant(engine, "other").list_tasks().tasks == ()
    assert tenant(engine, "other").list_tasks(name="send").tasks == ()


def test_a_task_that_nothing_publishes_any_more_leaves_no_trace(engine: Engine, clock: Clock, dump: Dump) -> None:
    engine.publish_tasks([published()], keep=DAY)
    assert any(key.endswith(":task") for key in dump())
    clock.move(DAY)
    assert engine.list_tasks().tasks == ()

    upkeep_all(engine)

    assert not [key for key in dump() if key.endswith((":task", ":tasks", ":due", ":retention"))]


def test_a_task_that_is_published_again_in_time_stays(engine: Engine, clock: Clock) -> None:
    engine.publish_tasks([published()], keep=DAY)
    clock.move(DAY / 2)
    engine.publish_tasks([published()], keep=DAY)
    clock.move(DAY / 2)

    upkeep_all(engine)

    assert listed(engine) == ["shop.send"]


def test_a_namespace_has_so_many_tasks_and_not_one_more(engine: Engine) -> None:
    every = [published(f"w.f{number}") for number in range(MOST_TASKS)]
    engine.publish_tasks(every)

    with pytest.raises(ResourceExhaustedError) as full:
        engine.publish_tasks([published("w.more")])

    assert full.value.code == "too_many_tasks"
    engine.publish_tasks([published("w.f0", lane="other")])
    tenant(engine, "other").publish_tasks([published("w.more")])


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": ""}, "invalid_input"),
        ({"name": "a\nb"}, "invalid_input"),
        ({"name": "x" * 257}, "invalid_input"),
        ({"lane": "é"}, "invalid_input"),
        ({"codec": "\0"}, "invalid_input"),
        ({"priority": True}, "invalid_input"),
        ({"delay": 5}, "invalid_input"),
        ({"tags": {"": "x"}}, "invalid_tag_key"),
        ({"tags": {f"t{number}": "x" * 1024 for number in range(64)}}, "invalid_input"),
        ({"headers": {"trace": 5}}, "invalid_input"),
        ({"policy": None}, "invalid_input"),
    ],
)
def test_a_wrong_publication_is_refused_and_leaves_no_trace(
    engine: Engine, dump: Dump, changes: dict[str, Any], code: str
) -> None:
    before = dump()

    with pytest.raises(ValidationError) as refused:
        engine.publish_tasks([published("a.fine"), published(**changes)])

    assert refused.value.code == code
    assert dump() == before


def test_a_task_stands_once_in_a_call(engine: Engine) -> None:
    with pytest.raises(ValidationError) as refused:
        engine.publish_tasks([published(), published()])

    assert refused.value.code == "duplicate_in_call"


@pytest.mark.parametrize("damage", [b"", b"5:abc", b"1:11:1", b"1:x1:11:1", b"14:9999999999999913:17000000000002:xx"])
def test_a_damaged_task_marks_its_row_alone(engine: Engine, damage: bytes) -> None:
    engine.publish_tasks([published("a.f"), published("b.g")])
    raw_client(engine).hset(raw_key(engine, 0, "task"), b"7:defaultf\na.f", damage)

    rows = engine.list_tasks().tasks

    assert isinstance(rows[0], DamagedRow)
    assert rows[0].row_id == "a.f"
    assert isinstance(rows[1], TaskInfo)
    engine.publish_tasks([published("a.f")])
    assert listed(engine) == ["a.f", "b.g"]
