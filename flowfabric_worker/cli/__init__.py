"""The command line: `python -m flowfabric_worker`, also `flowfabric-worker`."""

from __future__ import annotations

import click

from flowfabric_worker._version import __version__
from flowfabric_worker.cli.approve import approve
from flowfabric_worker.cli.bench import bench
from flowfabric_worker.cli.budgets import budgets
from flowfabric_worker.cli.cancel import cancel
from flowfabric_worker.cli.check import check
from flowfabric_worker.cli.completion import completion
from flowfabric_worker.cli.demo import demo
from flowfabric_worker.cli.exit_codes import Commands, exit_codes_help
from flowfabric_worker.cli.explain import explain
from flowfabric_worker.cli.flows import flow, flows
from flowfabric_worker.cli.lanes import lanes
from flowfabric_worker.cli.list import list_
from flowfabric_worker.cli.migrate import migrate
from flowfabric_worker.cli.quotas import quotas
from flowfabric_worker.cli.replay import replay
from flowfabric_worker.cli.result import result
from flowfabric_worker.cli.resume import resume
from flowfabric_worker.cli.run import run
from flowfabric_worker.cli.schedules import schedules
from flowfabric_worker.cli.secrets import secrets
from flowfabric_worker.cli.signal import signal
from flowfabric_worker.cli.status import status
from flowfabric_worker.cli.submit import submit
from flowfabric_worker.cli.suspended import suspended
from flowfabric_worker.cli.tail import tail
from flowfabric_worker.cli.waitpoints import waitpoints
from flowfabric_worker.cli.workers import workers


@click.group(cls=Commands, epilog=exit_codes_help())
@click.version_option(__version__, package_name="flowfabric_worker", message="flowfabric_worker %(version)s")
def main() -> None:
    """Run workers, submit durable executions, and follow them to their results.

    Start with "demo". Run a command with --help for its details. The store is --url, or $FLOWFABRIC_URL, or
    embedded://.flowfabric in the current directory.
    """


for command in (
    demo,
    run,
    submit,
    status,
    result,
    tail,
    list_,
    explain,
    cancel,
    replay,
    suspended,
    waitpoints,
    signal,
    approve,
    resume,
    flows,
    flow,
    lanes,
    workers,
    schedules,
    budgets,
    quotas,
    secrets,
    check,
    migrate,
    bench,
    completion,
):
    main.add_command(command)
