"""The command line: `python -m flowfabric_worker`, also `flowfabric-worker`."""

from __future__ import annotations

from typing import Final

import click

from flowfabric_worker._version import __version__
from flowfabric_worker.cli.exit_codes import Commands, exit_codes_help

# The module and the name of each command, in the order in which a new user needs the commands.
_HOMES: Final = {
    "demo": "demo:demo",
    "run": "run:run",
    "submit": "submit:submit",
    "status": "status:status",
    "result": "result:result",
    "tail": "tail:tail",
    "list": "list:list_",
    "explain": "explain:explain",
    "cancel": "cancel:cancel",
    "replay": "replay:replay",
    "suspended": "suspended:suspended",
    "waitpoints": "waitpoints:waitpoints",
    "signal": "signal:signal",
    "approve": "approve:approve",
    "resume": "resume:resume",
    "flows": "flows:flows",
    "flow": "flows:flow",
    "lanes": "lanes:lanes",
    "workers": "workers:workers",
    "schedules": "schedules:schedules",
    "budgets": "budgets:budgets",
    "quotas": "quotas:quotas",
    "secrets": "secrets:secrets",
    "check": "check:check",
    "migrate": "migrate:migrate",
    "bench": "bench:bench",
    "completion": "completion:completion",
}


@click.group(cls=Commands, homes=_HOMES, epilog=exit_codes_help())
@click.version_option(__version__, package_name="flowfabric_worker", message="flowfabric_worker %(version)s")
def main() -> None:
    """Run workers, submit durable executions, and follow them to their results.

    Start with "demo". Run a command with --help for its details. The store is --url, or $FLOWFABRIC_URL, or
    embedded://.flowfabric in the current directory.
    """
