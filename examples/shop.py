"""A small shop: the work in the background after an order.

In one terminal, a worker that runs the tasks:

    python -m flowfabric_worker run examples.shop:worker

In another one, in the same directory, a customer who orders:

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
    """An order. Values of this class are encoded by their annotations, and decoded to objects of the class."""

    number: int
    mail: str
    items: dict[str, int]


@attrs.frozen(kw_only=True)
class Receipt:
    """What the customer paid, and where the receipt was sent."""

    order: int
    amount: float
    to: str


@worker.task(retry=RetryPolicy(max_retries=5, initial=timedelta(milliseconds=200)), timeout=timedelta(seconds=30))
def charge(order: Order) -> Receipt:
    """Charge the card. The bank is busy at first; each failure is retried after a longer delay."""
    if current().retry_count < 2:
        raise ConnectionError("the bank is busy")
    amount = sum(PRICES[item] * count for item, count in order.items.items())
    return Receipt(order=order.number, amount=amount, to=order.mail)


@worker.task(lane="warehouse", timeout=timedelta(minutes=5))
def pack(order: Order) -> list[str]:
    """Pack item after item. The result of a step is recorded, so a crash packs no item twice."""
    packed = []
    for number, item in enumerate(order.items):
        current().progress(100 * number // len(order.items), f"packing {item}")
        packed.append(current().step(f"pack {item}", take_from_shelf, item, order.items[item]))
    return packed


def take_from_shelf(item: str, count: int) -> str:
    """Take an item from its shelf: a step of `pack`."""
    if count > STOCK[item]:
        # A retry cannot help against this failure.
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
