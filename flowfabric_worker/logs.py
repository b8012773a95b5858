"""Log records that say of which execution they speak."""

from __future__ import annotations

import logging

from flowfabric_worker.context import LOG_FIELDS, log_fields, run_of_this_thread


class RunFilter(logging.Filter):
    """Gives each record that is logged inside a handler the ids of its run; by whatever logger, of whatever library.

    Put it on a handler of the `logging` module: `handler.addFilter(RunFilter())`. The fields are `ff_execution_id`,
    `ff_task`, `ff_lane` and `ff_attempt`; the prefix keeps clear of fields of the application. Records that have them
    already keep theirs; others get none outside of a run.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "ff_execution_id"):
            run = run_of_this_thread()
            if run is not None and run.kind != "local":
                record.__dict__.update(log_fields(run.task, run.lane, run.attempt, run.id))
        return True


class RunFormatter(logging.Formatter):
    """Puts the ids of a run behind the message, where a record has them."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name that logging calls
        message = super().formatMessage(record)
        if not hasattr(record, "ff_execution_id"):
            return message
        fields = " ".join(f"{name.removeprefix('ff_')}={getattr(record, name, None)}" for name in LOG_FIELDS)
        return f"{message} [{fields}]"
