"""What operators read of a store that is away."""

from __future__ import annotations

import logging

import pytest

from flowfabric_worker._runtime import outage_log as outages
from flowfabric_worker._runtime.outage_log import LOG_EVERY, OutageLog
from flowfabric_worker.engine.log_queue import Log

AWAY = ConnectionError("refused")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_an_outage_is_told_once_and_again_after_a_while(
    said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    outage = OutageLog(Log("here"), "Claiming")
    for moment in (0.0, 1.0, LOG_EVERY - 1, LOG_EVERY, LOG_EVERY + 1):
        monkeypatch.setattr(outages, "now", lambda moment=moment: moment)
        outage.note(AWAY)

    assert said.messages == ["Claiming fails; trying again: refused"] * 2


def test_the_end_of_an_outage_is_told_and_nothing_without_one(said: pytest.LogCaptureFixture) -> None:
    outage = OutageLog(Log("here"), "Claiming")
    outage.over()
    outage.note(AWAY)
    outage.over()
    outage.over()
    outage.note(AWAY)

    assert said.messages == [
        "Claiming fails; trying again: refused",
        "Claiming works again.",
        "Claiming fails; trying again: refused",
    ]
