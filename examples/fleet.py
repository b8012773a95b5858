"""A fleet of workers that call one rate-limited API, and never more often than it allows.

    flowfabric-worker run examples.fleet:worker --threads 8

Run it several times, on several machines: the limits hold for all of them together. The API allows ten calls a second
and four at once; each customer has at most three exports a minute.

    flowfabric-worker submit geocode '"Bahnhofstrasse 1"' --wait
    flowfabric-worker quotas live

Work above the limits waits in the store: no worker fetches it, it uses no attempt, and `explain` tells what it waits
for. A worker that is killed gives its slots back when its leases are over.
"""

from __future__ import annotations

import hashlib

from flowfabric_worker import RetryPolicy, Worker, current

# The store is $FLOWFABRIC_URL, else embedded://.flowfabric.
worker = Worker("fleet")


class TooManyRequestsError(Exception):
    """The API answered 429."""


def ask_the_api(address: str) -> tuple[float, float]:
    """Return coordinates of an address: a stand-in for the call of a real API."""
    digest = hashlib.sha256(address.encode()).digest()
    return digest[0] / 255 * 180 - 90, digest[1] / 255 * 360 - 180


@worker.task(rate="10/s", concurrency=4, retry=RetryPolicy(max_retries=5))
def geocode(address: str) -> tuple[float, float]:
    """Find an address on the map."""
    return ask_the_api(address)


@worker.task(rate="3/m", limit_by=lambda customer, _: customer)
def export(customer: str, addresses: list[str]) -> int:
    """Ask for the addresses of a customer, as executions of their own; their rate is that of all customers together."""
    for number, address in enumerate(addresses):
        # A retry of this export finds the calls that it has submitted.
        geocode.options(key=f"{current().id}:{number}", tags={"customer": customer}).submit(address)
    return len(addresses)
