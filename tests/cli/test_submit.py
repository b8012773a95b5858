"""The command `submit`: options of a task, names of tasks, keys and results."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import RetryPolicy, Worker
from flowfabric_worker.cli.exit_codes import ExitCode
from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.reads import ExecutionInfo
from tests.support.cli import cli, ok, serving, submitted

pytestmark = pytest.mark.usefixtures("url")
OPTIONS: dict[str, Any] = {
    "lane": "mail",
    "priority": 7,
    "retry": RetryPolicy(max_retries=5),
    "timeout": timedelta(minutes=2),
    "tags": {"color": "red"},
}


@pytest.fixture
def shops(url: str) -> None:
    """Publish the tasks of two workers, `shop` and `blog`."""
    for name in ("shop", "blog"):
        worker = Worker(name, url)
        worker.task(**OPTIONS)(send_receipt) if name == "shop" else worker.task(post)
        worker.task(clean)
        worker.engine.publish_tasks([task.publication() for task in worker.tasks.values()])
        worker.close()


def send_receipt(order: int, to: str = "") -> None: ...


def post() -> None: ...


def clean() -> None: ...


def info_of(client: Client, *arguments: object) -> ExecutionInfo:
    """Return everything about an execution that is submitted with these arguments."""
    info = client.get(ok("submit", *arguments).out.strip())
    assert info is not None
    return info


@pytest.mark.usefixtures("shops")
@pytest.mark.parametrize("name", ["shop.send_receipt", "send_receipt"])
def test_submit_applies_the_published_options_of_the_task(client: Client, name: str) -> None:
    info = info_of(client, name, 7, "--kwargs", '{"to": "a@b.c"}')

    assert (info.task, info.lane, info.priority, info.tags) == ("shop.send_receipt", "mail", 7, {"color": "red"})
    assert info.policy.retry == OPTIONS["retry"]
    assert info.policy.attempt_timeout == OPTIONS["timeout"]


@pytest.mark.usefixtures("shops")
def test_submit_options_override_published_ones(client: Client) -> None:
    given = ("--lane", "other", "--priority", 1, "--retries", 2, "--tag", "size=l")

    info = info_of(client, "send_receipt", 7, *given)

    assert (info.lane, info.priority, info.tags) == ("other", 1, {"size": "l"})
    assert info.policy.retry == RetryPolicy(max_retries=2)
    assert info.policy.attempt_timeout == OPTIONS["timeout"]
    assert info_of(client, "send_receipt", 7, "--retries", 0).policy.retry is None


@pytest.mark.usefixtures("shops")
def test_submit_refuses_an_unpublished_task_and_suggests_another() -> None:
    ran = cli("submit", "send_reciept", 7)

    assert ran.code == ExitCode.FAILED
    assert "No worker has published a task 'send_reciept'" in ran.err
    assert "Did you mean 'shop.send_receipt'?" in ran.err
    assert "--force" in ran.err
    assert ok("list").out == ""


@pytest.mark.usefixtures("shops")
def test_submit_refuses_an_ambiguous_name_and_lists_full_names() -> None:
    ran = cli("submit", "clean")

    assert ran.code == ExitCode.USAGE
    assert "blog.clean, shop.clean" in ran.err
    assert ok("list").out == ""


@pytest.mark.usefixtures("shops")
def test_submit_force_uses_default_options_for_an_unpublished_task(client: Client) -> None:
    info = info_of(client, "--force", "elsewhere.work", 1)

    assert (info.task, info.lane, info.policy.retry) == ("elsewhere.work", "default", None)


@pytest.mark.usefixtures("shops")
def test_submit_takes_headers_and_what_to_do_about_a_key_conflict(client: Client) -> None:
    first = info_of(client, "send_receipt", 7, "--key", "k", "--header", "origin=cli", "--header", "a=b=c")

    refused = cli("submit", "send_receipt", 8, "--key", "k")
    again = info_of(client, "send_receipt", 8, "--key", "k", "--on-conflict", "return")

    assert first.headers == {"origin": "cli", "a": "b=c"}
    assert (refused.code, again.execution_id) == (ExitCode.REFUSED, first.execution_id)
    assert cli("submit", "send_receipt", 9, "--header", "nothing").code == ExitCode.USAGE


def test_submit_prints_the_id_of_an_execution_with_its_options(client: Client) -> None:
    execution_id = submitted(
        "add", 1, "--kwargs", '{"right": 2}', "--lane", "sums", "--priority", 5, "--delay", "2h", "--key", "k",
        "--retries", 3, "--tag", "a=b", "--tag", "c=d=e",
    )  # fmt: skip

    info = client.get(execution_id)

    assert info is not None
    assert (info.task, info.lane, info.priority, info.idempotency_key) == ("add", "sums", 5, "k")
    assert dict(info.tags) == {"a": "b", "c": "d=e"}
    assert info.delay_until_ms is not None
    assert 7_100_000 < info.delay_until_ms - info.created_at_ms <= 7_200_000
    assert info.policy.retry is not None
    assert info.policy.retry.max_retries == 3


def test_submit_with_a_used_key_prints_the_first_id_and_says_so() -> None:
    first = submitted("add", 1, "--key", "k")
    second = ok("submit", "--force", "add", 1, "--key", "k")

    assert second.out.strip() == first
    assert "submitted earlier with the same key" in second.err
    assert ok("submit", "--force", "add", 1, "--key", "k", "--json").document == {
        "execution_id": first,
        "created": False,
    }


def test_submit_wait_prints_the_result_and_exits_1_for_a_failure(url: str) -> None:
    with serving(url):
        assert ok("submit", "add", 1, 2, "--lane", "sums", "--wait").document == 3
        as_json = ok("submit", "add", 1, 2, "--lane", "sums", "--wait", "--json").document
        failed = cli("submit", "refuse", '"no tea"', "--lane", "sums", "--wait")

    assert (as_json["state"], as_json["result"]) == ("completed", 3)
    assert failed.code == 1
    assert "no tea" in failed.err
    assert failed.out == ""
