"""The command `run`: one worker process."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from datetime import timedelta

import click

from flowfabric_worker.cli.exits import CommandError, ExitCode, debug_option
from flowfabric_worker.cli.parameters import duration, url_option
from flowfabric_worker.config import DEFAULT_THREADS, RunSettings
from flowfabric_worker.engine.ids import check_capabilities, check_lane
from flowfabric_worker.runtime import Runtime
from flowfabric_worker.worker import Worker

_LEVELS = ("debug", "info", "warning", "error")


def lane_weights(text: str) -> dict[str, int]:
    """Reads lanes and how often each goes first: mail=3,etl; 1 where nothing is said."""
    weights = {}
    for part in text.split(","):
        lane, equals, weight = part.strip().partition("=")
        if equals and not (weight.isdecimal() and int(weight) > 0):
            raise click.BadParameter(f"the weight of the lane {lane!r} must be a whole number from 1, not {weight!r}.")
        weights[check_lane(lane)] = int(weight) if equals else 1
    return {str(lane): weight for lane, weight in weights.items()}


def offers_of(text: str) -> frozenset[str]:
    """Reads capabilities: gpu,eu."""
    return frozenset(check_capabilities(part.strip() for part in text.split(",")))


@click.command()
@click.argument("app", metavar="APP:WORKER")
@click.option(
    "--threads",
    type=click.IntRange(1, 1000),
    default=DEFAULT_THREADS,
    show_default=True,
    help="Handlers that run at the same time.",
)
@click.option("--lanes", type=lane_weights, metavar="LANES", help="Where to take work, such as mail=3,etl=1; else all.")
@click.option("--offers", type=offers_of, default=None, metavar="WORDS", help="What this process has, such as gpu,eu.")
@url_option
@click.option("--namespace", help="The tenant in the store; else the worker's own.")
@click.option("--grace", type=duration, default="30s", show_default=True, help="How long a stop waits for handlers.")
@click.option("--lease", type=duration, default="30s", show_default=True, help="How long a claim holds unrenewed.")
@click.option("--log-level", type=click.Choice(_LEVELS), default="info", show_default=True)
@debug_option
def run(
    app: str,
    *,
    threads: int,
    lanes: dict[str, int] | None,
    offers: frozenset[str] | None,
    url: str | None,
    namespace: str | None,
    grace: timedelta,
    lease: timedelta,
    log_level: str,
) -> None:
    """Run a worker, such as shop:worker, until SIGTERM or Ctrl-C.

    Then what runs may finish within the grace, the rest is handed back, and the exit code is 0. A second signal hands
    everything back at once.
    """
    if lease <= timedelta():
        raise click.BadParameter("it must be longer than 0.", param_hint="--lease")
    worker = load_worker(app)
    _log(log_level)
    if not worker.tasks:
        raise CommandError(f"{app} has no tasks: decorate functions with @worker.task.", ExitCode.APP)
    worker.url = url or worker.url
    worker.namespace = namespace or worker.namespace
    settings = RunSettings(threads=threads, lanes=lanes or {}, offers=offers or frozenset(), lease=lease, grace=grace)
    # What the runtime finds is what it leaves behind: a signal that comes after the stop must not spoil its exit code.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        Runtime(worker, settings).run()
    finally:
        worker.close()


def load_worker(app: str) -> Worker:
    """The worker that MODULE:NAME names; modules of the working directory are found.

    Raises:
        click.UsageError: it is not of that form.
        CommandError: the module cannot be imported, has no such name, or it is no worker.
    """
    module_name, colon, name = app.partition(":")
    if not (colon and name and all(part.isidentifier() for part in module_name.split("."))):
        raise click.UsageError(f"{app!r} names no worker; write MODULE:NAME, such as shop:worker.")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the application's own code raises
        raise _not_importable(module_name, error) from error
    worker = getattr(module, name, None)
    if worker is None:
        raise CommandError(
            f"The module {module_name!r} has no {name!r}; its workers are {_workers_in(module)}.", ExitCode.APP
        )
    if not isinstance(worker, Worker):
        raise CommandError(f"{app} is no Worker; it is of type {type(worker).__name__}.", ExitCode.APP)
    # What it opened while it was imported may be another store than the one to run on.
    worker.close()
    return worker


def _not_importable(module: str, error: BaseException) -> CommandError:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return CommandError(f"There is no module {error.name!r}, neither in {os.getcwd()} nor installed.", ExitCode.APP)
    return CommandError(
        f"The module {module!r} cannot be imported: {type(error).__name__}: {error} (--debug shows where).",
        ExitCode.APP,
    )


def _workers_in(module: object) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Worker)]
    return ", ".join(names) or "none"


def _log(level: str) -> None:
    """Logs to stderr, unless the application set up logging of its own."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("flowfabric_worker").setLevel(level.upper())


class _Formatter(logging.Formatter):
    """Says of which execution a record speaks, where it speaks of one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name that logging calls
        message = super().formatMessage(record)
        if not hasattr(record, "execution_id"):
            return message
        named = ("task", "lane", "attempt", "execution_id")
        return f"{message} [{' '.join(f'{name}={getattr(record, name, None)}' for name in named)}]"
