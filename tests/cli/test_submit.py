"""submit: the options that a task's worker has published, and names that none has."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import RetryPolicy, Worker
from flowfabric_worker.cli.exit_codes import ExitCode
from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.reads import ExecutionInfo
from tests.support.cli import cli, ok

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
def test_what_is_submitted_has_the_published_options_of_its_task(client: Client, name: str) -> None:
    info = info_of(client, name, 7, "--kwargs", '{"to": "a@b.c"}')

    assert (info.task, info.lane, info.priority, info.tags) == ("shop.send_receipt", "mail", 7, {"color": "red"})
    assert info.policy.retry == OPTIONS["retry"]
    assert info.policy.attempt_timeout == OPTIONS["timeout"]


@pytest.mark.usefixtures("shops")
def test_an_option_that_is_given_stands_over_the_published_one(client: Client) -> None:
    given = ("--lane", "other", "--priority", 1, "--retries", 2, "--tag", "size=l")

    info = info_of(client, "send_receipt", 7, *given)

    assert (info.lane, info.priority, info.tags) == ("other", 1, {"size": "l"})
    assert info.policy.retry == RetryPolicy(max_retries=2)
    assert info.policy.attempt_timeout == OPTIONS["timeout"]
    assert info_of(client, "send_receipt", 7, "--retries", 0).policy.retry is None


@pytest.mark.usefixtures("shops")
def test_submit_refuses_a_task_that_no_worker_has_published() -> None:
    ran = cli("submit", "send_reciept", 7)

    assert ran.code == ExitCode.FAILED
    assert "No worker has published a task 'send_reciept'" in ran.err
    assert "Did you mean 'shop.send_receipt'?" in ran.err
    assert "--force" in ran.err
    assert ok("list").out == ""


@pytest.mark.usefixtures("shops")
def test_a_name_that_several_tasks_have_is_told_with_their_whole_names() -> None:
    ran = cli("submit", "clean")

    assert ran.code == ExitCode.USAGE
    assert "blog.clean, shop.clean" in ran.err
    assert ok("list").out == ""


@pytest.mark.usefixtures("shops")
def test_force_submits_what_no_worker_has_published_with_default_options(client: Client) -> None:
    info = info_of(client, "--force", "elsewhere.work", 1)

    assert (info.task, info.lane, info.policy.retry) == ("elsewhere.work", "default", None)


@pytest.mark.usefixtures("shops")
def test_headers_and_a_key_that_was_used_otherwise_are_options(client: Client) -> None:
    first = info_of(client, "send_receipt", 7, "--key", "k", "--header", "origin=cli", "--header", "a=b=c")

    refused = cli("submit", "send_receipt", 8, "--key", "k")
    again = info_of(client, "send_receipt", 8, "--key", "k", "--on-conflict", "return")

    assert first.headers == {"origin": "cli", "a": "b=c"}
    assert (refused.code, again.execution_id) == (ExitCode.REFUSED, first.execution_id)
    assert cli("submit", "send_receipt", 9, "--header", "nothing").code == ExitCode.USAGE


@pytest.mark.usefixtures("shops")
def test_list_takes_a_bare_name_too(client: Client) -> None:
    submitted = info_of(client, "send_receipt", 7)

    documents = ok("list", "--task", "send_receipt", "--json").documents

    assert [document["execution_id"] for document in documents] == [submitted.execution_id.plain]
