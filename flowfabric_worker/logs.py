"""Log records that say of which execution they speak."""

from __future__ import annotations

import logging

from flowfabric_worker.context import current


class RunFilter(logging.Filter):
    """Gives each record that is logged inside a handler the ids of its run; by whatever logger, of whatever library.

    Put it on a handler of the `logging` module: `handler.addFilter(RunFilter())`. The fields are `execution_id`,
    `task`, `lane` and `attempt`. Records that have them already keep theirs; others get none outside of a run.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "execution_id"):
            run = current()
            if run.id:
                record.execution_id, record.task, record.lane, record.attempt = run.id, run.task, run.lane, run.attempt
        return True


class RunFormatter(logging.Formatter):
    """Puts the ids of a run behind the message, where a record has them."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name that logging calls
        message = super().formatMessage(record)
        if not hasattr(record, "execution_id"):
            return message
        named = ("task", "lane", "attempt", "execution_id")
        return f"{message} [{' '.join(f'{name}={getattr(record, name, None)}' for name in named)}]"
