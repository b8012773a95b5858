"""The command `list`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import RetryPolicy, Worker
from flowfabric_worker.client import Client
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.reads import ExecutionInfo
from tests.support.cli import ok, submitted
from tests.support.executions import put_into_newer_phase

OPTIONS: dict[str, Any] = {
    "lane": "mail",
    "priority": 7,
    "retry": RetryPolicy(max_retries=5),
    "timeout": timedelta(minutes=2),
    "tags": {"color": "red"},
}

pytestmark = pytest.mark.usefixtures("url")


def test_list_applies_filters_and_the_limit(client: Client) -> None:
    sums = [submitted("add", number, "--lane", "sums", "--tag", f"n={number}") for number in range(3)]
    mail = submitted("send", "--lane", "mail")
    client.cancel(sums[0])

    def listed(*options: object) -> list[str]:
        return [document["execution_id"] for document in ok("list", "--json", *options).documents]

    assert listed() == [*sums, mail]
    assert listed("--lane", "sums") == listed("--task", "add") == sums
    assert listed("--tag", "n=1") == [sums[1]]
    assert listed("--state", "cancelled") == [sums[0]]
    assert listed("--lane", "sums", "--state", "waiting") == sums[1:]
    assert listed("--limit", 2) == sums[:2]


def test_list_prints_a_plain_table_without_a_terminal() -> None:
    ids = [submitted("add", "--lane", "l" * 64, "--tag", f"n={number}") for number in range(2)]

    ran = ok("list", "--limit", 1)

    headers, row = ran.out.splitlines()
    assert headers.split() == ["ID", "STATE", "AGE", "LANE", "TASK"]
    assert [row.split()[place] for place in (0, 1, 3, 4)] == [ids[0], "waiting", "l" * 64, "add"]
    assert "--limit" in ran.err
    assert ok("list", "--limit", 2).err == ""
    assert ok("list", "--lane", "other").err == "No executions found.\nThe store has no lane 'other' yet.\n"


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_list_reports_that_a_limit_left_executions_out(client: Client, as_json: tuple[str, ...]) -> None:
    client.submit_many("add", [()] * 3)

    cut, whole = ok("list", "--limit", 2, *as_json), ok("list", "--limit", 3, *as_json)

    assert cut.err == "There are more than 2 executions; set --limit to see more.\n"
    assert whole.err == ""


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--task", "add"), "--task has"),
        (("--state", "waiting", "--tag", "n=1"), "--state waiting and --tag have"),
        (("--tag", "n=1", "--json"), "--tag has"),
    ],
)
def test_list_without_an_index_reports_how_many_it_scanned(client: Client, options: tuple[str, ...], what: str) -> None:
    client.submit_many("add", [()] * 3)

    assert ok("list", *options).err.endswith(f"Scanned 3 executions: {what} no index, unlike --lane.\n")


def test_list_with_an_index_reports_no_scan(client: Client) -> None:
    client.submit_many("add", [()] * 3, lane="sums")

    assert ok("list", "--lane", "sums").err == ok("list", "--state", "failed", "--json").err == ""


def test_list_shows_fifty_rows_and_prints_all_as_json(client: Client) -> None:
    client.submit_many("add", [()] * 60)

    table, documents = ok("list"), ok("list", "--json")

    assert len(table.out.splitlines()) == 51
    assert "There are more than 50" in table.err
    assert len(documents.documents) == 60
    assert documents.err == ""


def test_list_shows_the_executions_of_one_namespace() -> None:
    execution_id = submitted("add", "--namespace", "one")

    assert ok("list", "--namespace", "one", "--json").document["execution_id"] == execution_id
    assert ok("list", "--namespace", "two").out == ""


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
def test_list_accepts_the_bare_name_of_a_task(client: Client) -> None:
    submitted = info_of(client, "send_receipt", 7)

    documents = ok("list", "--task", "send_receipt", "--json").documents

    assert [document["execution_id"] for document in documents] == [submitted.execution_id.plain]


def test_list_marks_an_execution_in_a_phase_of_a_newer_release(client: Client) -> None:
    newer = submitted("add", 1, 2, "--lane", "sums")
    put_into_newer_phase(client.engine, ExecutionId.parse(newer))

    (row,) = [line for line in ok("list").out.splitlines() if newer in line]

    assert "newer release" in row
    assert "sums" in row
    assert "damaged" not in row
