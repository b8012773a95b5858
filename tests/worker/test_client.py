"""`Client`: producing, watching and operating without the tasks' code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

import pytest

from flowfabric_worker import (
    Call,
    Client,
    EncodingError,
    EngineTimeoutError,
    ExecutionCancelled,
    ExecutionFailed,
    Fail,
    NotFoundError,
    RetryPolicy,
    Runtime,
    StateError,
    ValidationError,
    Worker,
    WorkerSettings,
)
from flowfabric_worker.engine.types.feed import CompletionFilter
from flowfabric_worker.engine.types.states import PublicState, TerminalOutcome
from flowfabric_worker.engine.types.workers import WorkerInfo

UNKNOWN_ID = "{fp:0}:01890000-0000-7000-8000-000000000000"


@pytest.fixture
def url() -> str:
    """Provide a store in this process for one test."""
    return f"memory://{uuid4().hex}"


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    shop(url).publish()
    with Client(url) as client:
        yield client


def shop(url: str, *, codec: str = "json", namespace: str = "default") -> Worker:
    """Return a worker with two tasks."""
    worker = Worker("shop", url, codec=codec, namespace=namespace)

    @worker.task
    def add(left: int, right: int = 0) -> int:
        return left + right

    @worker.task
    def refuse(why: str) -> None:
        raise Fail(why)

    return worker


@contextmanager
def serving(url: str, *, codec: str = "json", namespace: str = "default") -> Iterator[None]:
    """Provide the worker `shop`, for the length of a block."""
    worker = shop(url, codec=codec, namespace=namespace)
    runtime = Runtime(worker, WorkerSettings(threads=1))
    runtime.start()
    try:
        yield
    finally:
        runtime.stop()
        worker.close()


def test_a_client_submits_by_name_and_gets_the_plain_result(client: Client, url: str) -> None:
    with serving(url):
        assert client.submit("add", (1, 2)).result(timeout=10) == 3
        assert client.submit("add", {"left": 1, "right": 3}).result(timeout=10) == 4
        assert client.submit("add", (1,), {"right": 4}).result(timeout=10) == 5
        assert client.result(client.submit("add", [1]).id, timeout=10) == 1


def test_submit_many_accepts_sequences_mappings_and_calls_in_order(client: Client, url: str) -> None:
    runs = client.submit_many("add", [(1, 1), {"left": 2}, Call(3, right=4)])

    with serving(url):
        assert [run.result(timeout=10) for run in runs] == [2, 2, 7]


def test_a_text_is_not_taken_for_a_sequence_of_arguments(client: Client) -> None:
    with pytest.raises(TypeError, match="not str"):
        client.submit("add", "12")
    assert list(client.list()) == []


def test_the_options_of_a_submission_reach_the_execution(client: Client) -> None:
    retry = RetryPolicy(max_retries=7)
    run = client.submit(
        "add",
        lane="sums",
        priority=5,
        delay=timedelta(hours=1),
        key="k",
        tags={"a": "b"},
        retry=retry,
        requires=["gpu"],
    )

    info = client.get(run.id)
    assert info is not None
    assert (info.task, info.lane, info.priority, info.public_state) == ("shop.add", "sums", 5, PublicState.DELAYED)
    assert (info.idempotency_key, dict(info.tags), info.policy.retry) == ("k", {"a": "b"}, retry)
    assert info.policy.requires == {"gpu"}


def test_a_second_submission_under_a_key_finds_the_first(client: Client) -> None:
    first, second = client.submit("add", (1,), key="k"), client.submit("add", (1,), key="k")

    assert first.id == second.id
    assert (first.created, second.created) == (True, False)


@pytest.mark.parametrize("option", ["lease", "codec", "permanent", "prioritty"])
def test_an_option_that_is_not_one_of_a_submission_is_refused(client: Client, option: str) -> None:
    with pytest.raises(TypeError, match=option):
        client.submit("add", **{option: None})
    assert list(client.list()) == []


def test_an_argument_that_is_not_plain_is_refused_before_any_write(client: Client) -> None:
    with pytest.raises(EncodingError):
        client.submit("add", [object()])
    assert list(client.list()) == []


@pytest.mark.parametrize("of_client", ["json", "msgpack"])
@pytest.mark.parametrize("of_worker", ["json", "msgpack"])
def test_client_and_worker_understand_each_other_whatever_their_codecs(
    url: str, of_client: str, of_worker: str
) -> None:
    with Client(url, codec=of_client) as client, serving(url, codec=of_worker):
        run = client.submit("add", (2**70, 1))

        assert run.result(timeout=10) == 2**70 + 1
    with Client(url) as another:
        assert another.result(run.id, timeout=10) == 2**70 + 1


def test_an_execution_that_did_not_succeed_raises_how_it_ended(client: Client, url: str) -> None:
    with serving(url):
        failed = client.submit("refuse", ("no tea",))
        with pytest.raises(ExecutionFailed, match="no tea"):
            client.result(failed.id, timeout=10)
    cancelled = client.submit("add", (1,))
    client.cancel(str(cancelled.id), "not needed")
    with pytest.raises(ExecutionCancelled, match="not needed"):
        client.result(cancelled.id)


def test_waiting_for_a_result_ends_in_time_and_the_work_goes_on(client: Client) -> None:
    run = client.submit("add", (1,))

    with pytest.raises(EngineTimeoutError):
        client.result(run.id, timeout=0.05)
    assert run.state() is PublicState.WAITING


def test_what_does_not_exist_is_none_or_not_found(client: Client) -> None:
    assert client.get(UNKNOWN_ID) is None
    assert client.explain(UNKNOWN_ID) is None
    for call in (client.result, client.cancel, client.replay):
        with pytest.raises(NotFoundError):
            call(UNKNOWN_ID)
    with pytest.raises(ValidationError, match="abc"):
        client.get("abc")


def test_an_ended_execution_is_replayed_and_a_waiting_one_is_not(client: Client, url: str) -> None:
    run = client.submit("add", (1, 1))
    with pytest.raises(StateError):
        client.replay(run.id)
    client.cancel(run.id)
    client.replay(run.id)

    with serving(url):
        assert client.result(run.id, timeout=10) == 2


def test_list_reads_every_page_and_honours_each_filter(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowfabric_worker.client.MAX_PAGE_SIZE", 2)
    mail = client.submit_many("send", [()] * 5, force=True, lane="mail", tags={"to": "a"})
    sums = client.submit_many("add", [()] * 3, lane="sums")
    client.cancel(sums[0].id)

    def listed(**filters: object) -> set[object]:
        return {summary.execution_id for summary in client.list(**filters)}  # type: ignore[arg-type]  # per filter

    assert listed() == {run.id for run in mail + sums}
    assert listed(lane="mail") == listed(task="send") == listed(tags={"to": "a"}) == {run.id for run in mail}
    assert listed(state="cancelled") == {sums[0].id}
    assert listed(state=PublicState.WAITING, task="add") == {run.id for run in sums[1:]}
    with pytest.raises(ValidationError, match="asleep"):
        listed(state="asleep")


def test_a_listing_counts_what_the_store_looked_at_for_it(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowfabric_worker.client.MAX_PAGE_SIZE", 2)
    client.submit_many("send", [()] * 5, force=True, lane="mail")
    client.submit("add", lane="sums")

    by_task, by_lane = client.list(task="add"), client.list(lane="sums")

    assert len([*by_task]) == len([*by_lane]) == 1
    assert (by_task.looked_at, by_task.unindexed) == (6, ("task",))
    assert (by_lane.looked_at, by_lane.unindexed) == (1, ())


def test_lanes_are_listed_over_pages_paused_and_resumed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowfabric_worker.client.MAX_PAGE_SIZE", 1)
    for lane in ("a", "b", "c"):
        client.submit("add", lane=lane)

    assert (client.pause_lane("b"), client.pause_lane("b")) == (True, False)
    assert [(lane.lane, lane.paused_since_ms is not None) for lane in client.lanes()] == [
        ("a", False),
        ("b", True),
        ("c", False),
    ]
    assert (client.resume_lane("b"), client.resume_lane("b")) == (True, False)


def test_explain_says_why_nothing_happens(client: Client) -> None:
    run = client.submit("add")

    explanation = client.explain(run.id)

    assert explanation is not None
    assert explanation.code == "no_worker"


def test_workers_are_listed_as_alive_until_they_stop(client: Client, url: str) -> None:
    with serving(url):
        (alive,) = client.workers()
        assert isinstance(alive, WorkerInfo)
        assert (alive.worker_id, alive.tasks, alive.alive) == ("shop", ("shop.add", "shop.refuse"), True)
    (gone,) = client.workers()
    assert isinstance(gone, WorkerInfo)
    assert not gone.alive


def test_completions_go_on_behind_a_cursor(client: Client, url: str) -> None:
    with serving(url):
        first, second = (client.submit("add", (number,)) for number in (1, 2))
        other = client.submit("refuse", ("no",))
        for run in (first, second):
            run.result(timeout=10)
        with pytest.raises(ExecutionFailed):
            other.result(timeout=10)

    feed = client.completions(timeout=timedelta())
    cursor = next(feed).cursor
    rest = list(client.completions(cursor, timeout=timedelta()))
    adds = list(client.completions(None, CompletionFilter(tasks={"add"}), timedelta()))

    assert [event.execution_id for event in rest] == [second.id, other.id]
    assert rest[-1].outcome is TerminalOutcome.FAILED
    assert [event.execution_id for event in adds] == [first.id, second.id]


def test_a_feed_can_be_the_first_thing_that_is_asked_for(client: Client) -> None:
    assert list(client.completions(timeout=timedelta())) == []


def test_two_namespaces_do_not_see_each_other(url: str) -> None:
    with Client(url, namespace="one") as one, Client(url, namespace="two") as two, serving(url, namespace="one"):
        run = one.submit("add", (1,), key="k")
        run.result(timeout=10)

        assert two.submit("add", (1,), force=True, key="k", delay=timedelta(hours=1)).created
        assert run.id not in {summary.execution_id for summary in two.list()}
        assert list(two.workers()) == []
        assert list(two.completions(timeout=timedelta())) == []


def test_nothing_is_connected_before_the_first_call() -> None:
    with Client("valkey://127.0.0.1:1"):
        pass


def test_a_client_submits_with_the_options_that_the_worker_has_published(url: str) -> None:
    worker = Worker("shop", url)

    @worker.task(
        lane="mail",
        retry=RetryPolicy(max_retries=2),
        timeout=timedelta(seconds=7),
        priority=5,
        tags={"team": "a"},
        headers={"trace": "1"},
        requires=["gpu"],
        delay=timedelta(hours=1),
        max_reclaims=3,
        retention=timedelta(hours=5),
    )
    def send() -> None: ...

    own = send.submit()
    worker.publish()
    with Client(url) as client:
        info = client.get(client.submit("send").id)
        changed = client.get(client.submit("shop.send", lane="other").id)
        expected = client.get(own.id)

    assert info is not None
    assert expected is not None
    assert changed is not None
    for name in ("task", "lane", "policy", "priority", "tags", "headers", "public_state"):
        assert getattr(info, name) == getattr(expected, name), name
    assert (changed.lane, changed.policy) == ("other", expected.policy)


def test_a_change_of_published_options_reaches_a_client_within_seconds(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = [100.0]
    monkeypatch.setattr("flowfabric_worker.client.monotonic", lambda: moment[0])
    shop(url).publish()
    with Client(url) as client:
        client.submit("add")
        moved = Worker("shop", url)
        moved.task(lane="moved")(add_nothing)
        moved.publish()

        client.submit("shop.add_nothing")
        again = Worker("shop", url)
        again.task(lane="again")(add_nothing)
        again.publish()
        still = client.get(client.submit("shop.add_nothing").id)
        moment[0] += 10
        fresh = client.get(client.submit("shop.add_nothing").id)

    assert still is not None
    assert fresh is not None
    assert (still.lane, fresh.lane) == ("moved", "again")


def add_nothing() -> None: ...


def test_a_name_that_no_worker_has_published_is_told_with_a_likely_one(client: Client) -> None:
    with pytest.raises(NotFoundError, match=r"'shop\.ad'.*Did you mean 'shop\.add'\?.*force=True") as unknown:
        client.submit("shop.ad", (1,))

    assert unknown.value.code == "task_not_found"
    assert list(client.list()) == []
    with pytest.raises(NotFoundError, match="refuse"):
        client.submit_many("refusal", [(1,)])


def test_force_submits_what_no_worker_has_published(client: Client) -> None:
    run = client.submit("later.task", (1,), force=True, lane="l")

    info = client.get(run.id)
    assert info is not None
    assert (info.task, info.lane) == ("later.task", "l")


def test_a_bare_name_that_several_tasks_have_is_refused(client: Client, url: str) -> None:
    blog = Worker("blog", url)
    blog.task(name="blog.add")(add_nothing)
    blog.publish()

    for force in (False, True):
        with pytest.raises(ValidationError, match=r"'add' may be any of blog\.add, shop\.add") as ambiguous:
            client.submit("add", force=force)
        assert ambiguous.value.code == "ambiguous_task"
    client.submit("blog.add")


def test_two_workers_on_one_store_do_not_take_each_others_work(url: str) -> None:
    shop_worker, blog = Worker("shop", url), Worker("blog", url)

    @shop_worker.task(name=None)
    def send() -> str:
        return "shop"

    @blog.task
    def send_() -> str:
        return "never"

    theirs = blog.task(_blog_send)
    runs = [send.submit(), theirs.submit()]

    assert shop_worker.run_until_idle() == 1
    assert blog.run_until_idle() == 1
    assert [run.result(0) for run in runs] == ["shop", "blog"]


def _blog_send() -> str:
    return "blog"


_blog_send.__name__ = "send"
