"""What production.md says of services, containers and stores holds."""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Mapping
from datetime import timedelta

import pytest

from flowfabric_worker._runtime.supervisor import STOP_WITHIN
from flowfabric_worker.cli.options import duration
from tests.support.cli import COMMANDS, cli, ok
from tests.support.pages import code, section, snippet
from tests.support.servers import ValkeyServer

PAGE = "production.md"
DIRECTIVES: Mapping[str, set[str]] = {
    "Unit": {"Description", "After", "Wants"},
    "Service": {
        "User", "WorkingDirectory", "EnvironmentFile", "ExecStart", "Restart", "RestartSec", "TimeoutStopSec",
    },
    "Install": {"WantedBy"},
}  # fmt: skip


def grace_of(command: str) -> timedelta:
    """Return the grace that a command line names."""
    (text,) = re.findall(r"--grace\"?,? \"?(\w+)", command)
    return duration(text)


def needed(grace: timedelta) -> float:
    """Return the seconds after which even a supervisor that had to kill a process has ended."""
    return grace.total_seconds() + STOP_WITHIN


def test_the_unit_gives_a_stop_its_time_and_says_nothing_unknown() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]  # directives have capitals
    unit.read_string(snippet(PAGE, "ini", "[Service]"))

    assert {name: set(unit[name]) for name in unit.sections()} == DIRECTIVES
    assert int(unit["Service"]["TimeoutStopSec"]) > needed(grace_of(unit["Service"]["ExecStart"]))


def test_the_container_runs_the_worker_itself_and_stops_it_by_sigterm() -> None:
    lines = dict(
        line.split(" ", 1) for line in snippet(PAGE, "dockerfile", "FROM").splitlines() if not line.startswith("RUN")
    )
    times = re.findall(r"(?:--timeout |stop_grace_period: )(\d+)", section(PAGE, "In a container"))

    assert json.loads(lines["CMD"])[:2] == ["flowfabric-worker", "run"]
    assert lines["STOPSIGNAL"] == "SIGTERM"
    assert times
    assert all(int(each) > needed(grace_of(lines["CMD"])) for each in times)


def test_the_pod_gives_a_stop_its_time() -> None:
    pod = snippet(PAGE, "yaml", "terminationGracePeriodSeconds")
    (given,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", pod)

    assert int(given) > needed(grace_of(pod))


def test_options_that_the_page_speaks_of_exist() -> None:
    text = "\n".join(section(PAGE, heading) for heading in ("Stopping", "Monitoring", "Leases"))
    known = {option for command in COMMANDS.values() for each in command.params for option in each.opts}
    spoken = {word.split()[0] for word in code(text) if word.startswith("--")}

    assert spoken <= known


@pytest.fixture
def rights(valkey: ValkeyServer) -> dict[str, str]:
    """Provide the users that the page makes, on a server; the URL of each, under the page's prefix."""
    urls = {}
    for line in snippet(PAGE, "text", "ACL SETUSER").splitlines():
        command = line.split()
        valkey.client().execute_command(*command)
        urls[command[2]] = f"unix://{command[2]}:secret@{valkey.socket}?prefix=ff"
    return urls


def test_the_rights_that_the_page_grants_suffice_and_no_more(rights: Mapping[str, str]) -> None:
    ok("migrate", "--prune", "--url", rights["shop-admin"])

    ok("check", "--url", rights["shop"])
    ok("schedules", "--url", rights["shop"])
    assert cli("migrate", "--prune", "--url", rights["shop"]).code == 4


@pytest.mark.parametrize("words", ["+fcall", "+@hash", "+@sortedset", "+@stream", "+subscribe", "+info", "&ff:*"])
def test_check_finds_it_when_one_of_the_rights_is_missing(valkey: ValkeyServer, words: str) -> None:
    line = next(line for line in snippet(PAGE, "text", "shop-admin").splitlines() if "shop-admin" in line)
    _, _, _, *rules = line.split()
    kept = [rule for rule in rules if rule != words]
    valkey.client().execute_command("ACL", "SETUSER", "less", "reset", *kept)

    assert cli("check", "--url", f"unix://less:secret@{valkey.socket}?prefix=ff").code == 4
