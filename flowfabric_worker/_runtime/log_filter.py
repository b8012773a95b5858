"""A filter and a formatter that add the execution's id to log records."""

from __future__ import annotations

import logging
from typing import Final

from flowfabric_worker.context import LOG_FIELDS, context_of_this_thread, log_fields
from flowfabric_worker.engine.plain_ids import with_plain_ids

EXECUTION_LOG: Final = "flowfabric_worker.executions"
"""The name of the logger for the lines about how executions ended."""


class ExecutionLogFilter(logging.Filter):
    """Add the ids of the attempt to each log record that a handler causes, with any logger of any library.

    Put it on a handler of the `logging` module: `handler.addFilter(ExecutionLogFilter())`. The fields are
    `ff_execution_id`, `ff_task`, `ff_lane` and `ff_attempt`; the prefix avoids clashes with fields of the application.
    A record that has these fields keeps them; a record outside of an attempt gets none.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "ff_execution_id"):
            run = context_of_this_thread()
            if run is not None and run.kind != "local":
                record.__dict__.update(log_fields(run.task, run.lane, run.attempt, run.id))
        return True


class ExecutionLogFormatter(logging.Formatter):
    """Append the ids of an attempt to the message of a record that has them, except those in the message.

    Args:
        format_: the format of a line, as for `logging.Formatter`.
        moment: the format of the time; None for date and time with milliseconds.
        brief: leave the ids out of the lines about how executions ended, for narrow terminals.
    """

    def __init__(self, format_: str, moment: str | None = None, *, brief: bool = False) -> None:
        super().__init__(format_, moment)
        self._brief = brief

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name that logging calls
        message = super().formatMessage(record)
        if not hasattr(record, "ff_execution_id") or (self._brief and record.name == EXECUTION_LOG):
            return message
        # A line of the execution log begins with the task; a failure's line continues with the id.
        told = record.message.split(" ", 2)[:2] if record.name == EXECUTION_LOG else ()
        fields = {name.removeprefix("ff_"): with_plain_ids(str(getattr(record, name, None))) for name in LOG_FIELDS}
        behind = " ".join(f"{name}={value}" for name, value in fields.items() if value not in told)
        first, *rest = message.split("\n", 1)
        return "\n".join([f"{first} [{behind}]", *rest])
