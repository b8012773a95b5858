"""Log records that say of which execution they speak."""

from __future__ import annotations

import logging
from typing import Final

from flowfabric_worker.context import LOG_FIELDS, context_of_this_thread, log_fields

EXECUTION_LOG: Final = "flowfabric_worker.executions"
"""The logger that tells how each execution ended."""


class ExecutionLogFilter(logging.Filter):
    """Gives each record that is logged inside a handler the ids of its run; by whatever logger, of whatever library.

    Put it on a handler of the `logging` module: `handler.addFilter(ExecutionLogFilter())`. The fields are
    `ff_execution_id`, `ff_task`, `ff_lane` and `ff_attempt`; the prefix keeps clear of fields of the application.
    Records that have them already keep theirs; others get none outside of a run.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "ff_execution_id"):
            run = context_of_this_thread()
            if run is not None and run.kind != "local":
                record.__dict__.update(log_fields(run.task, run.lane, run.attempt, run.id))
        return True


class ExecutionLogFormatter(logging.Formatter):
    """Puts the ids of a run behind the message, where a record has them and the message does not tell them.

    Args:
        format_: what a line shows, as for `logging.Formatter`.
        moment: how a line shows its time; None for date and time with milliseconds.
        brief: leave the ids out where the worker itself tells how a run ended, for the narrow lines of a terminal.
    """

    def __init__(self, format_: str, moment: str | None = None, *, brief: bool = False) -> None:
        super().__init__(format_, moment)
        self._brief = brief

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name that logging calls
        message = super().formatMessage(record)
        if not hasattr(record, "ff_execution_id") or (self._brief and record.name == EXECUTION_LOG):
            return message
        # The run log begins with task and, of failures, id.
        told = record.message.split(" ", 2)[:2] if record.name == EXECUTION_LOG else ()
        fields = {name.removeprefix("ff_"): getattr(record, name, None) for name in LOG_FIELDS}
        behind = " ".join(f"{name}={value}" for name, value in fields.items() if value not in told)
        first, *rest = message.split("\n", 1)
        return "\n".join([f"{first} [{behind}]", *rest])
