"""The shop of the demo, with tasks that are fast, slow, delayed or retried, or that fail for good.

Each task returns the id of the process that ran it, so that the demo can count the work of each worker.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import attrs

from flowfabric_worker.context import current
from flowfabric_worker.engine.types.policies import RetryPolicy
from flowfabric_worker.engine.types.states import TerminalOutcome
from flowfabric_worker.outcomes import Fail
from flowfabric_worker.task import Task
from flowfabric_worker.worker import Worker

worker = Worker("demo")


@attrs.frozen
class Done:
    """The result of a task, with the id of the process that ran it."""

    what: str
    by: int = attrs.field(factory=os.getpid)


@worker.task(lane="counter")
def greet(customer: int) -> Done:
    """Greet a customer, which takes no time."""
    return Done(f"customer {customer} greeted")


@worker.task(lane="workshop")
def pack_parcel(order: int) -> Done:
    """Pack a parcel, for a time that depends on the order."""
    time.sleep(0.3 + order % 7 * 0.05)
    return Done(f"order {order} packed")


@worker.task(lane="counter", retry=RetryPolicy(max_retries=3, initial=timedelta(milliseconds=200)))
def charge_card(order: int) -> Done:
    """Charge a card, and fail once or twice before it succeeds."""
    if current().retry_count <= order % 2:
        raise ConnectionError("the bank does not answer")
    return Done(f"order {order} paid")


@worker.task(lane="counter")
def send_reminder(order: int) -> Done:
    """Send a reminder; the demo submits this task with a delay."""
    return Done(f"customer of order {order} reminded")


@worker.task(lane="counter", retry=RetryPolicy(max_retries=3))
def ship_to_atlantis(order: int) -> Done:
    """Fail for good, so that it is not retried."""
    raise Fail(f"order {order} cannot be shipped: there is no such place any more")


@attrs.frozen(kw_only=True)
class Kind:
    """A kind of execution in the demo.

    Attributes:
        task: the task.
        about: what the kind shows.
        share: its share of all executions, from 0 to 1; the first kind takes the rest.
        options: the options of its submission.
        expected: the expected outcome.
    """

    task: Task[[int], Done]
    about: str
    share: float = 0.0
    options: Mapping[str, Any] = attrs.field(factory=dict)
    expected: TerminalOutcome = TerminalOutcome.SUCCESS

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name


KINDS: Final = (
    Kind(task=greet, about="fast"),
    Kind(task=pack_parcel, about="slow", share=0.2),
    Kind(task=charge_card, about="fails, retried", share=0.1),
    Kind(task=send_reminder, about="delayed 2 s", share=0.06, options={"delay": timedelta(seconds=2)}),
    Kind(task=ship_to_atlantis, about="fails for good", share=0.04, expected=TerminalOutcome.FAILED),
)


def counts(total: int) -> list[tuple[Kind, int]]:
    """Return the number of executions of each kind, at least one, for a total."""
    some = [(kind, max(1, int(total * kind.share))) for kind in KINDS[1:]]
    return [(KINDS[0], total - sum(count for _, count in some)), *some]
