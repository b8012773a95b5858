"""Schedules: which process leads a group of them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.operations import SECOND
from tests.support.schedules import START_MS, without_counts

pytestmark = pytest.mark.usefixtures("clock")


def test_a_schedule_leader_leads_until_its_term_ends(engine: Engine, clock: Clock) -> None:
    first = engine.lead_schedules("shop", "p1", 6 * SECOND)
    clock.move(5 * SECOND)
    second = engine.lead_schedules("shop", "p2", 6 * SECOND)
    other_group = engine.lead_schedules("blog", "p2", 6 * SECOND)
    clock.move(SECOND)
    third = engine.lead_schedules("shop", "p2", 6 * SECOND)

    assert (first.leads, first.until_ms, first.now_ms) == (True, START_MS + 6000, START_MS)
    assert (second.leads, second.until_ms, second.now_ms) == (False, START_MS + 6000, START_MS + 5000)
    assert other_group.leads
    assert (third.leads, third.until_ms) == (True, START_MS + 12000)


def test_a_leader_renews_its_time_and_resigns(engine: Engine, clock: Clock) -> None:
    engine.lead_schedules("shop", "p1", 6 * SECOND)
    clock.move(5 * SECOND)
    renewed = engine.lead_schedules("shop", "p1", 6 * SECOND)
    engine.resign_schedules("shop", "p2")
    refused_ = engine.lead_schedules("shop", "p2", 6 * SECOND)
    engine.resign_schedules("shop", "p1")

    assert (renewed.leads, renewed.until_ms) == (True, START_MS + 11000)
    assert not refused_.leads
    assert engine.lead_schedules("shop", "p2", 6 * SECOND).leads


def test_leaders_of_two_namespaces_never_meet(engine: Engine, store_url: str) -> None:
    other = open_engine(store_url, namespace="other")

    assert engine.lead_schedules("shop", "p1", 6 * SECOND).leads
    assert other.lead_schedules("shop", "p2", 6 * SECOND).leads
    other.close()


def test_groups_whose_leaders_are_gone_are_forgotten(engine: Engine, clock: Clock, dump: Dump) -> None:
    engine.lead_schedules("shop", "p1", 6 * SECOND)
    engine.resign_schedules("shop", "p1")
    before = dump()
    for number in range(5):
        engine.lead_schedules("shop", f"old{number}", SECOND)
        clock.move(2 * SECOND)
    clock.move(timedelta(hours=2))

    engine.lead_schedules("shop", "p1", 6 * SECOND)
    engine.resign_schedules("shop", "p1")

    assert without_counts(dump()) == without_counts(before)
