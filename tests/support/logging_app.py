"""Applications that set up logging of their own when they are imported, in the ways that the variable LOGGING names."""

from __future__ import annotations

import logging
import logging.config
import os

from flowfabric_worker import Worker

worker = Worker("application")


@worker.task(name="add", lane="sums")
def add(left: int, right: int = 0) -> int:
    return left + right


FORMAT = "mine: %(message)s"
match os.environ.get("LOGGING"):
    case "basic":
        logging.basicConfig(level=logging.INFO, format=FORMAT)
    case "quiet":
        logging.basicConfig(level=logging.INFO, format=FORMAT)
        logging.getLogger("flowfabric_worker").setLevel(logging.ERROR)
    case "dict":
        # Without disable_existing_loggers=False, as many write it.
        logging.config.dictConfig(
            {
                "version": 1,
                "formatters": {"mine": {"format": FORMAT}},
                "handlers": {"mine": {"class": "logging.StreamHandler", "formatter": "mine"}},
                "root": {"level": "INFO", "handlers": ["mine"]},
            }
        )
