"""A small shop: what happens in the background after somebody has ordered.

In one terminal, a worker that runs the tasks:

    python -m flowfabric_worker run examples.shop:worker

In another one, in the same directory, somebody who orders:

    python -m examples.shop
"""

from __future__ import annotations

from datetime import timedelta

import attrs

from flowfabric_worker import Fail, RetryPolicy, Worker, current

# The store is $FLOWFABRIC_URL, else embedded://.flowfabric: both terminals find it there.
worker = Worker("shop")

STOCK = {"tea": 12, "cups": 3}
PRICES = {"tea": 4.5, "cups": 9.0}


@attrs.frozen(kw_only=True)
class Order:
    """What somebody ordered. Values like this one travel as they are annotated, and come back as objects."""

    number: int
    mail: str
    items: dict[str, int]


@attrs.frozen(kw_only=True)
class Receipt:
    """What somebody paid, and where it was sent."""

    order: int
    amount: float
    to: str


@worker.task(retry=RetryPolicy(max_retries=5, initial=timedelta(milliseconds=200)), timeout=timedelta(seconds=30))
def charge(order: Order) -> Receipt:
    """Take the money. The bank is busy at first; each failure is tried again, a little later every time."""
    if current().retry_count < 2:
        raise ConnectionError("the bank is busy")
    amount = sum(PRICES[item] * count for item, count in order.items.items())
    return Receipt(order=order.number, amount=amount, to=order.mail)


@worker.task(lane="warehouse", timeout=timedelta(minutes=5))
def pack(order: Order) -> list[str]:
    """Pack item after item. What a step has returned is remembered, so a crash does not pack it twice."""
    packed = []
    for number, item in enumerate(order.items):
        current().progress(100 * number // len(order.items), f"packing {item}")
        packed.append(current().step(f"pack {item}", take_from_shelf, item, order.items[item]))
    return packed


def take_from_shelf(item: str, count: int) -> str:
    """Return a step of `pack`."""
    if count > STOCK[item]:
        # No retry helps against this one.
        raise Fail(f"there are only {STOCK[item]} {item} left")
    return f"{count} x {item}"


@worker.task(lane="mail", retry=RetryPolicy(max_retries=5))
def send_reminder(order: Order) -> None:
    """Ask for a review. It is submitted with a delay, and no process has to live until then."""
    current().log.info("asked %s for a review of order %s", order.mail, order.number)


def main() -> None:
    """Order something and wait for what comes of it."""
    order = Order(number=7, mail="a@b.c", items={"tea": 2, "cups": 1})
    # Submitted twice by mistake, charged once: the key makes the second one find the first one.
    payment = charge.options(key=f"charge-{order.number}").submit(order)
    again = charge.options(key=f"charge-{order.number}").submit(order)
    parcel = pack.options(tags={"order": str(order.number)}).submit(order)
    send_reminder.options(delay=timedelta(seconds=5)).submit(order)

    print("the same payment:", payment.id == again.id)
    print("packed:", parcel.result(timeout=30))
    print("paid:", payment.result(timeout=30))
    worker.close()


if __name__ == "__main__":
    main()
