"""Orders that wait for a callback from outside, received by a small WSGI application that verifies and delivers it.

    python -m examples.callback

This process is the worker, serves the callbacks with `wsgiref`, and plays the bank, which reports a payment to the
address that it was given. In practice the application runs in any WSGI server, and needs only the URL of the store.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import queue
import threading
import urllib.request
from collections.abc import Iterable
from datetime import timedelta
from urllib.error import HTTPError
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

import attrs

from flowfabric_worker import (
    Client,
    EngineError,
    NotFoundError,
    Runtime,
    StateError,
    ValidationError,
    Worker,
    WorkerSettings,
    current,
)

# The store is $FLOWFABRIC_URL, else embedded://.flowfabric.
worker = Worker("orders")

# What the bank signs its callbacks with; in practice from the environment.
BANK_SECRET = b"known to the bank and to us"
MOST_BYTES = 16 * 1024


@attrs.frozen(kw_only=True)
class Payment:
    """What the bank reports."""

    event: str
    amount: int


@attrs.frozen(kw_only=True)
class Request:
    """A payment that the bank was asked for."""

    amount: int
    callback: str = attrs.field(repr=False)
    key: str


bank: queue.Queue[Request] = queue.Queue()


@worker.task
def pay(order: int, amount: int, callbacks: str) -> str:
    """Ask the bank for a payment, and wait for its callback without holding a thread."""
    token = current().waitpoint("payment")
    # The token stands in the address, so the callback needs nothing else. The key makes the bank ask only once.
    current().step("ask the bank", request_payment, amount, f"{callbacks}/{token}", current().idempotency_key("bank"))
    payment = current().wait_for("payment", type=Payment, timeout=timedelta(hours=1), default=None)
    if payment is None:
        return f"order {order}: the bank did not answer"
    return f"order {order}: {payment.amount} paid"


def request_payment(amount: int, callback: str, key: str) -> None:
    """Ask the bank for a payment: a step, so the bank is asked once."""
    bank.put(Request(amount=amount, callback=callback, key=key))


class Callbacks:
    """Receive the callbacks of the bank: a WSGI application.

    Args:
        client: sends the signals.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status = self._answer(environ)
        start_response(status, [("Content-Length", "0")])
        return []

    def _answer(self, environ: WSGIEnvironment) -> str:
        """Verify a callback, and deliver it; return the status."""
        prefix, _, token = environ.get("PATH_INFO", "").rpartition("/")
        if prefix != "/payments":
            return "404 Not Found"
        if environ["REQUEST_METHOD"] != "POST":
            return "405 Method Not Allowed"
        length = environ.get("CONTENT_LENGTH") or ""
        if not (length.isascii() and length.isdecimal()) or len(length) > 9 or int(length) > MOST_BYTES:
            return "413 Content Too Large"
        body = environ["wsgi.input"].read(int(length))
        if not hmac.compare_digest(signature_of(body).encode(), environ.get("HTTP_X_SIGNATURE", "").encode()):
            return "401 Unauthorized"
        try:
            payment = Payment(**json.loads(body))
        except (ValueError, TypeError):
            return "400 Bad Request"
        return self._deliver(token, payment)

    def _deliver(self, token: str, payment: Payment) -> str:
        try:
            # The key of the event makes a callback that the bank repeats the same signal.
            self._client.signal(token, "payment", payment, by="bank", key=payment.event)
        except (ValidationError, NotFoundError):
            return "404 Not Found"  # the token opens nothing; why is told to no one
        except StateError:
            return "410 Gone"  # the order waits no more
        except EngineError:
            return "503 Service Unavailable"  # the bank tries again
        return "204 No Content"


def signature_of(body: bytes) -> str:
    """Return the signature that the bank puts on a callback."""
    return hmac.new(BANK_SECRET, body, hashlib.sha256).hexdigest()


def call_back(address: str, payment: Payment, signature: str | None = None) -> int:
    """Report a payment as the bank does; return the status of the answer."""
    body = json.dumps(attrs.asdict(payment)).encode()
    headers = {"X-Signature": signature_of(body) if signature is None else signature}
    request = urllib.request.Request(address, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except HTTPError as error:
        error.close()
        return error.code


class Quiet(WSGIRequestHandler):
    """Handle requests without a line for each on stderr, because their addresses hold tokens."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name that the base class gives it
        """Log nothing."""


def main() -> None:
    """Submit an order, and call back as the bank would: with a wrong signature, rightly, twice, and too late."""
    runtime = Runtime(worker, WorkerSettings(threads=2))
    runtime.start()
    with Client(worker.url) as client, make_server("127.0.0.1", 0, Callbacks(client), handler_class=Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run = pay.submit(7, 90, f"http://127.0.0.1:{server.server_port}/payments")
        asked = bank.get(timeout=30)
        payment = Payment(event="event-1", amount=asked.amount)
        print("forged:", call_back(asked.callback, payment, signature="0" * 64))
        print("cut short:", call_back(asked.callback[:-4], payment))
        print("signed:", call_back(asked.callback, payment))
        print(run.result(timeout=30))
        print("repeated:", call_back(asked.callback, payment))
        print("too late:", call_back(asked.callback, Payment(event="event-2", amount=1)))
        server.shutdown()
    runtime.stop()
    worker.close()


if __name__ == "__main__":
    main()
