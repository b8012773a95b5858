"""waitpoints: where an execution takes signals."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest

from flowfabric_worker.client import Client
from flowfabric_worker.engine.limits import MAX_DURATION_MS
from flowfabric_worker.engine.types.conditions import AllOf, SignalMatcher, Single
from tests.support.cli import UNKNOWN_ID, cli, ok
from tests.support.cli_suspensions import claimed, waiting

pytestmark = pytest.mark.usefixtures("url")


def test_waitpoints_shows_what_takes_signals_and_never_a_token(client: Client) -> None:
    condition = AllOf([Single("deploy", SignalMatcher("approved")), Single("tests")])
    one = waiting(client, "deploy", "tests", condition=condition, timeout=timedelta(minutes=5, seconds=30))
    token = one.waitpoints[0].token

    ran, documents = ok("waitpoints", one.id), ok("waitpoints", one.id, "--json").documents

    header, deploy, tests = ran.out.splitlines()
    assert header.split() == ["WAITPOINT", "STATE", "UNTIL", "SIGNALS", "KID", "FINGERPRINT"]
    fingerprint = token.partition(":")[2][:16]
    assert re.fullmatch(rf"deploy +active +in 5m +approved +k1 +{fingerprint}", deploy)
    assert re.match(r"tests +active +in 5m +any +k1 ", tests)
    assert [each["waitpoint_key"] for each in documents] == ["deploy", "tests"]
    assert token.partition(":")[2][:17] not in ran.out + json.dumps(documents)


def test_a_waitpoint_that_ends_with_its_execution_shows_no_end(client: Client) -> None:
    found = claimed(client)
    client.engine.create_waitpoint(found.handle, "approval", timedelta(milliseconds=MAX_DURATION_MS))

    _, row = ok("waitpoints", found.execution_id.plain).out.splitlines()

    assert re.match(r"approval +pending +- +any ", row)


def test_waitpoints_of_an_execution_that_takes_no_signals_are_none(client: Client) -> None:
    run = client.submit("add")

    assert "No waitpoints found" in ok("waitpoints", run.id.plain).err
    assert cli("waitpoints", UNKNOWN_ID).code == 1
