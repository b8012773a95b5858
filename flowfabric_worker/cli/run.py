"""The command `run`: run one worker process, or several under a supervisor."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import FrameType
from typing import Any, Final

import click

from flowfabric_worker._runtime import signal_handlers
from flowfabric_worker._runtime.log_filter import ExecutionLogFilter, ExecutionLogFormatter
from flowfabric_worker._runtime.memory_limit import CLOSE, resident_bytes
from flowfabric_worker._runtime.shutdown import BackgroundCall
from flowfabric_worker._runtime.supervisor import Supervisor
from flowfabric_worker._runtime.supervisor_channel import socket_from_environment
from flowfabric_worker.cli.exit_codes import CommandError, ExitCode, debug_option
from flowfabric_worker.cli.options import duration, size, url_option
from flowfabric_worker.config import DEFAULT_MAX_STUCK_THREADS, DEFAULT_THREADS, MAX_THREADS, WorkerSettings
from flowfabric_worker.engine import log_queue
from flowfabric_worker.engine.ids import check_capabilities, check_lane
from flowfabric_worker.runtime import RestartRequired, Runtime
from flowfabric_worker.worker import Worker

_LEVELS = ("debug", "info", "warning", "error")
_GIVEN = f"{__name__}.given"
# Seconds that a process waits at its end for threads that handlers have left running.
_LINGER: Final = 1.0
_CLOSE_WITHIN: Final = 0.5

log = log_queue.Log(__name__)


def lane_weights(text: str) -> dict[str, int]:
    """Read lanes and their weights, such as mail=3,etl; the default weight is 1."""
    weights = {}
    for part in text.split(","):
        lane, equals, weight = part.strip().partition("=")
        if equals and not (weight.isdecimal() and int(weight) > 0):
            raise click.BadParameter(
                f"The weight of the lane {lane!r} must be a whole number of at least 1, not {weight!r}."
            )
        weights[check_lane(lane)] = int(weight) if equals else 1
    return {str(lane): weight for lane, weight in weights.items()}


def capabilities_of(text: str) -> frozenset[str]:
    """Read capabilities, such as gpu,eu."""
    return frozenset(check_capabilities(part.strip() for part in text.split(",")))


class _Run(click.Command):
    """A command that keeps its arguments, so that the supervisor can pass them to its processes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_GIVEN] = list(args)
        return super().parse_args(ctx, args)


@click.command(cls=_Run)
@click.argument("app", metavar="APP:WORKER")
@click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    default=DEFAULT_THREADS,
    show_default=True,
    help="How many handlers each process runs at the same time.",
)
@click.option(
    "--processes", type=click.IntRange(1, 1000), metavar="N", help="Run N processes, and replace each that dies."
)
@click.option(
    "--lanes", type=lane_weights, metavar="LANES", help="The lanes and weights, such as mail=3,etl=1; defaults to all."
)
@click.option(
    "--capabilities",
    type=capabilities_of,
    default=None,
    metavar="WORDS",
    help="The capabilities of the process, such as gpu,eu.",
)
@url_option
@click.option("--namespace", help="The tenant in the store; defaults to the worker's.")
@click.option(
    "--grace", type=duration, default="30s", show_default=True, help="How long a stop waits for handlers to finish."
)
@click.option(
    "--lease", type=duration, default="30s", show_default=True, help="How long a lease lasts without renewal."
)
@click.option(
    "--memory-limit", type=size, metavar="SIZE", help="The most memory that a process may use, such as 500MB."
)
@click.option(
    "--max-stuck-threads",
    type=click.IntRange(1),
    metavar="N",
    help=f"Exit if N threads are stuck in handlers; defaults to {DEFAULT_MAX_STUCK_THREADS}, with --processes to 1.",
)
@click.option(
    "--log-level",
    type=click.Choice(_LEVELS),
    help="The lowest level to log; defaults to info, unless the application sets up logging.",
)
@debug_option
@click.pass_context
def run(context: click.Context, /, app: str, *, processes: int | None, log_level: str | None, **options: Any) -> None:
    """Run a worker, such as shop:worker, until SIGTERM or Ctrl-C.

    On the first signal, running handlers may finish within the grace, all other executions are released, and the exit
    code is 0. A second signal releases the running executions too, at once. SIGUSR1 prints the stack of every thread.

    With --processes, a process is replaced if it dies, if a thread is stuck in a handler, or if it comes close to its
    memory limit. Without --processes, such a process exits with code 7, and something else must start it again.
    """
    if options["lease"] <= timedelta():
        raise click.BadParameter("A lease must be longer than 0 s.", param_hint="--lease")
    if processes is None:
        _run_here(app, socket_from_environment(), log_level, **options)
    else:
        set_up_logging(log_level, with_pid=True)
        _supervise(context, processes, options["grace"])


def _supervise(context: click.Context, processes: int, grace: timedelta) -> None:
    command = [sys.executable, "-m", "flowfabric_worker", "run", *_for_one_process(context.meta[_GIVEN])]
    # A restart cannot help if the application does not load, the store refuses, or an option is wrong.
    hopeless = (ExitCode.APP, ExitCode.REFUSED, ExitCode.USAGE)
    try:
        code = Supervisor(command, processes, grace.total_seconds(), hopeless).run()
    finally:
        _on_stop_signals(signal.SIG_IGN)
    if code:
        raise click.exceptions.Exit(code)


def _for_one_process(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of `run` for one process of the supervisor."""
    # If the user also gave this option, the user's value comes last, and the last value counts.
    kept = ["--max-stuck-threads", "1"]
    rest = iter(arguments)
    for argument in rest:
        if argument == "--processes":
            next(rest)
        elif not argument.startswith("--processes="):
            kept.append(argument)
    return kept


def _run_here(
    app: str,
    channel_socket: socket.socket | None,
    log_level: str | None,
    *,
    url: str | None,
    namespace: str | None,
    lanes: dict[str, int] | None,
    capabilities: frozenset[str] | None,
    max_stuck_threads: int | None,
    **settings: Any,
) -> None:
    """Run a worker in this process."""
    worker = load_worker(app)
    # Set up logging after the import, so that the application's own setup is kept.
    set_up_logging(log_level, with_pid=channel_socket is not None)
    _check_tasks(worker, app)
    worker.url = worker.url if url is None else url
    worker.namespace = namespace or worker.namespace
    run_settings = WorkerSettings(
        lanes=lanes or {},
        capabilities=capabilities or frozenset(),
        max_stuck_threads=max_stuck_threads or DEFAULT_MAX_STUCK_THREADS,
        **settings,
    )
    _check_memory(run_settings)
    _run_until_stopped(worker, run_settings, channel_socket)


def _check_tasks(worker: Worker, app: str) -> None:
    """Refuse a worker whose tasks cannot run."""
    if not worker.tasks:
        raise CommandError(f"{app} has no tasks: decorate a function with @worker.task.", ExitCode.APP)
    try:
        worker.check()
    except TypeError as error:
        raise CommandError(f"{app}: {error}", ExitCode.APP) from error


def _run_until_stopped(worker: Worker, settings: WorkerSettings, channel_socket: socket.socket | None) -> None:
    """Run a worker until a signal stops it, and end the process soon afterwards.

    Raises:
        CommandError: the process needs a restart.
        RuntimeError: a thread ended because of a defect in this package.
    """
    try:
        runtime = Runtime(worker, settings, channel_socket=channel_socket)
        # Handle the signals here already, so that none is lost before the runtime handles them.
        _on_stop_signals(lambda *_: runtime.request_stop())
        runtime.run()
        _end_anyway(ExitCode.OK)
    except RestartRequired as worn:
        _end_anyway(ExitCode.RESTART_REQUIRED)
        raise CommandError(str(worn), ExitCode.RESTART_REQUIRED) from None
    except RuntimeError:
        _end_anyway(ExitCode.FAILED)
        raise
    finally:
        _on_stop_signals(signal.SIG_IGN)
        BackgroundCall(worker.close).join(_CLOSE_WITHIN)


def _end_anyway(code: ExitCode) -> None:
    """End the process after a bounded time, even if handlers have left threads or processes running."""

    def end() -> None:
        time.sleep(_LINGER)
        # Log through the queue, because a log handler may block.
        log_queue.start()
        log.warning("Handlers have left threads or processes running; the process ends without waiting for them.")
        log_queue.stop(0.3)
        os._exit(code)

    threading.Thread(target=end, name="flowfabric-end", daemon=True).start()


def _check_memory(settings: WorkerSettings) -> None:
    used = resident_bytes()
    if settings.memory_limit is not None and used > CLOSE * settings.memory_limit:
        raise click.BadParameter(
            f"The application uses {used >> 20} MiB before it does any work; raise the limit.",
            param_hint="--memory-limit",
        )


def _on_stop_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Set the handler of SIGTERM and SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal_handlers.handle(number, handler)


def load_worker(app: str) -> Worker:
    """Import the worker named by MODULE:NAME, also from the current directory.

    Raises:
        click.UsageError: the text is not of that form.
        CommandError: the module cannot be imported, has no such name, or the object is not a worker.
    """
    module_name, colon, name = app.partition(":")
    if not (colon and name and all(part.isidentifier() for part in module_name.split("."))):
        raise click.UsageError(f"{app!r} does not name a worker: write MODULE:NAME, such as shop:worker.")
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
        raise CommandError(f"{app} is not a Worker; its type is {type(worker).__name__}.", ExitCode.APP)
    # Close a store that the import opened: the options may name another one.
    worker.close()
    return worker


def _not_importable(module: str, error: BaseException) -> CommandError:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return CommandError(f"There is no module {error.name!r} in {os.getcwd()}, and none is installed.", ExitCode.APP)
    return CommandError(
        f"The module {module!r} cannot be imported: {type(error).__name__}: {error} (--debug shows where).",
        ExitCode.APP,
    )


def _workers_in(module: object) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Worker)]
    return ", ".join(names) or "none"


def set_up_logging(level: str | None, *, with_pid: bool = False) -> None:
    """Log to stderr, unless the application has set up logging.

    Args:
        level: the log level of this package; None for the application's level, or info if it has none.
        with_pid: True to add the process id to each line.
    """
    package = logging.getLogger("flowfabric_worker")
    set_up = bool(logging.getLogger().handlers or package.handlers)
    if not set_up:
        logging.basicConfig(level=logging.WARNING, handlers=[_handler(with_pid)])
    if level is not None or (not set_up and package.level == logging.NOTSET):
        package.setLevel((level or "info").upper())
    # Enable the loggers of this package: by default, `logging.config` disables every logger that it does not name.
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.split(".")[0] == "flowfabric_worker":
            logger.disabled = False


def _handler(with_pid: bool) -> logging.Handler:
    handler = logging.StreamHandler()
    on_terminal = handler.stream.isatty()
    process = "%(process)d " if with_pid else ""
    handler.setFormatter(
        ExecutionLogFormatter(
            f"%(asctime)s {process}%(levelname)-7s %(message)s", "%H:%M:%S" if on_terminal else None, brief=on_terminal
        )
    )
    handler.addFilter(ExecutionLogFilter())
    return handler
