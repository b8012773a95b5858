"""resume: going on whatever is waited for."""

from __future__ import annotations

import pytest

from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.suspension import ResumeReason
from tests.support.cli import cli, ok
from tests.support.cli_suspensions import waiting
from tests.support.executions import request

pytestmark = pytest.mark.usefixtures("url")


def test_resume_continues_an_execution_whatever_it_waits_for(client: Client) -> None:
    first, second = waiting(client), waiting(client)

    ran = ok("resume", "-", second.id, stdin=ok("suspended", "--limit", "1", "--json").out)

    assert ran.out.splitlines() == [f"{first.id} is resumed.", f"{second.id} is resumed."]
    (again,) = client.engine.claim_many(request("ops", tasks=frozenset({"deploy"})))
    assert client.engine.observe_signals(again.handle).reason is ResumeReason.OPERATOR
    assert cli("resume", first.id).code == 1


def test_resume_after_a_delay_makes_it_wait_for_that(client: Client) -> None:
    one = waiting(client)

    ok("resume", one.id, "--delay", "1h")

    assert client.run(one.id).state() == "delayed"
