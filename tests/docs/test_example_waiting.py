"""examples/approval.py and examples/callback.py do what they say."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import Any
from wsgiref.util import setup_testing_defaults

import attrs
import pytest

from examples import callback
from examples.approval import PATIENCE, deploy, inbox, worker
from examples.callback import MOST_BYTES, Callbacks, Payment, bank, pay, signature_of
from flowfabric_worker import Client
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.testing import Clock
from tests.support.pages import ROOT

PLAYED = {
    "approval": [
        "the team is asked: Deploy 1.1: feature 1, fixes?",
        "1.1 runs on cluster-1, approved by the team",
        "the team is asked: Deploy 1.2: feature 2, fixes?",
        "1.2 is not deployed: the team says 'not on a Friday'",
        "the team is asked: Deploy 1.3: feature 3, fixes?",
        "the manager is asked: Deploy 1.3: feature 3, fixes?",
        "1.3 runs on cluster-1, approved by the manager",
        "the team is asked: Deploy 1.4: feature 4, fixes?",
        "the manager is asked: Deploy 1.4: feature 4, fixes?",
        "1.4 is not deployed, because the time for an answer is over",
    ],
    "callback": [
        "forged: 401",
        "cut short: 404",
        "signed: 204",
        "order 7: 90 paid",
        "repeated: 204",
        "too late: 410",
    ],
}


@pytest.mark.parametrize("name", PLAYED)
def test_an_example_that_waits_runs_as_it_is(name: str, server_url: str | None) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}"],
        cwd=ROOT,
        env={**os.environ, "FLOWFABRIC_URL": server_url or "memory://example"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.splitlines() == PLAYED[name]
    assert "ffw1_" not in done.stdout + done.stderr


def test_each_person_is_asked_once_and_what_is_shown_is_listed() -> None:
    with worker.in_memory():
        clock = Clock(worker)
        run = deploy.submit("2.7")
        worker.run_until_idle()
        (listed,) = worker.engine.list_pending_waitpoints(run.id).waitpoints
        clock.move(PATIENCE)
        worker.run_until_idle()
        asked = [inbox.get_nowait() for _ in range(inbox.qsize())]
        with Client(worker.url) as client:
            client.approve(asked[1].token, True, by="jane")
        worker.run_until_idle()

        assert not isinstance(listed, DamagedRow)
        assert json.loads(listed.shown or b"") == {"version": "2.7", "changes": ["feature 7", "fixes"]}
        assert [each.to for each in asked] == ["the team", "the manager"]
        assert run.result(0) == "2.7 runs on cluster-1, approved by jane"


def answer(path: str, body: bytes, **changes: Any) -> str:
    """Return the status that the application of the example answers to a request."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": path,
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_X_SIGNATURE": signature_of(body),
        "wsgi.input": io.BytesIO(body),
    }
    setup_testing_defaults(environ)
    environ.update(changes)
    told: list[str] = []
    with Client(callback.worker.url) as client:
        assert list(Callbacks(client)(environ, lambda status, _: told.append(status))) == []  # type: ignore[arg-type, return-value]
    return told[0]


@pytest.mark.parametrize(
    ("status", "body", "changes"),
    [
        ("404 Not Found", None, {"PATH_INFO": "/"}),
        ("404 Not Found", None, {"PATH_INFO": "/payments/none"}),
        ("405 Method Not Allowed", None, {"REQUEST_METHOD": "GET"}),
        ("413 Content Too Large", None, {"CONTENT_LENGTH": ""}),
        ("413 Content Too Large", None, {"CONTENT_LENGTH": "-1"}),
        ("413 Content Too Large", None, {"CONTENT_LENGTH": "9" * 5000}),
        ("413 Content Too Large", b"x" * (MOST_BYTES + 1), {}),
        ("401 Unauthorized", None, {"HTTP_X_SIGNATURE": ""}),
        ("401 Unauthorized", None, {"HTTP_X_SIGNATURE": "\xe9"}),
        ("400 Bad Request", b"{", {}),
        ("400 Bad Request", b"[1]", {}),
        ("400 Bad Request", b'{"event": "e"}', {}),
    ],
)
def test_a_callback_that_is_not_right_is_refused_and_resumes_nothing(
    status: str, body: bytes | None, changes: dict[str, Any]
) -> None:
    with callback.worker.in_memory():
        run = pay.submit(7, 90, "http://bank.test")
        callback.worker.run_until_idle()
        path = bank.get_nowait().callback.removeprefix("http://bank.test")
        right = json.dumps(attrs.asdict(Payment(event="e", amount=90))).encode()

        assert answer(f"/payments{path}", right if body is None else body, **changes) == status
        assert callback.worker.run_until_idle() == 0
        assert answer(f"/payments{path}", right) == "204 No Content"
        callback.worker.run_until_idle()
        assert run.result(0) == "order 7: 90 paid"
