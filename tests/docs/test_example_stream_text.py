"""examples/stream_text.py does what it says, in the terminal and on its page."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from examples import stream_text
from examples.stream_text import Model, serve, worker, write
from flowfabric_worker import Runtime, WorkerSettings
from tests.support.pages import ROOT

PROMPT = "a page"
WORDS = list(Model(pause=0).generate(PROMPT))


def test_the_example_prints_the_text_while_it_is_written() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.stream_text", PROMPT],
        cwd=ROOT,
        env={**os.environ, "FLOWFABRIC_URL": "memory://example"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.splitlines() == [" ".join(WORDS), f"[{len(WORDS)} words]"]


@attrs.frozen
class Event:
    """A server-sent event."""

    kind: str
    data: Any
    id: str


@attrs.frozen
class Browser:
    """A browser of the page.

    Attributes:
        port: where the page is served.
    """

    port: int

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return connection.getresponse()

    def submit(self) -> str:
        """Submit a text; return the path of its page."""
        answer = self.ask("POST", "/texts", f"prompt={PROMPT.replace(' ', '+')}")
        assert answer.status == 303
        return answer.headers["Location"]


def events_of(answer: http.client.HTTPResponse) -> Iterator[Event]:
    """Yield the events of an answer as they come; a comment is an event of the kind "comment"."""
    assert answer.headers["Content-Type"] == "text/event-stream"
    fields: dict[str, str] = {}
    for line in answer:
        text = line.decode().rstrip("\n")
        if text.startswith(":"):
            yield Event("comment", text[1:].strip(), "")
        elif text:
            name, _, value = text.partition(": ")
            fields[name] = value
        elif fields:
            yield Event(fields["event"], json.loads(fields["data"]), fields.get("id", ""))
            fields = {}


def text_of(events: list[Event]) -> str:
    return "".join(event.data for event in events if event.kind == "text")


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    """Provide a browser of the page of a running example."""
    with worker.in_memory():
        runtime = Runtime(worker, WorkerSettings(threads=2))
        runtime.start()
        with serve(0) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield Browser(server.server_port)
            server.shutdown()
            thread.join()
        runtime.stop()


def test_the_page_shows_a_text_while_it_is_written(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()

    def generate(self: Model, prompt: str) -> Iterator[str]:
        yield "first"
        goes_on.wait(20)
        yield "second"

    monkeypatch.setattr(Model, "generate", generate)
    monkeypatch.setattr(stream_text, "KEEP_ALIVE", 0.1)
    path = browser.submit()
    assert b"EventSource" in browser.ask("GET", path).read()
    events = events_of(browser.ask("GET", f"{path}/events"))

    first, kept = next(events), next(events)
    assert (first.kind, first.data) == ("text", "first")
    # What keeps the connection alive has no id, so the browser remembers the last event.
    assert kept == Event("comment", "still there", "")
    goes_on.set()
    rest = [event for event in events if event.kind != "comment"]
    assert [(event.kind, event.data) for event in rest] == [("text", " second"), ("end", {})]


@pytest.mark.parametrize("place", [0, 17, 39])
def test_the_page_goes_on_where_it_was(browser: Browser, place: int) -> None:
    path = browser.submit()
    events = list(events_of(browser.ask("GET", f"{path}/events")))
    assert text_of(events) == " ".join(WORDS)
    last = events[place].id

    # After a reload the page sends what it remembers; after a lost connection the browser sends the header.
    reloaded = list(events_of(browser.ask("GET", f"{path}/events?after={last}")))
    connected = list(events_of(browser.ask("GET", f"{path}/events?after=", Last_Event_ID=last)))

    assert reloaded == connected == events[place + 1 :]
    assert text_of(events[: place + 1]) + text_of(reloaded) == " ".join(WORDS)


def test_a_retry_tells_the_page_to_begin_again(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = iter(range(2))

    def generate(self: Model, prompt: str) -> Iterator[str]:
        yield "half"
        if next(tries) == 0:
            raise ConnectionError
        yield "whole"

    monkeypatch.setattr(Model, "generate", generate)
    events = list(events_of(browser.ask("GET", f"{browser.submit()}/events")))

    kinds = [(event.kind, event.data) for event in events]
    assert kinds == [("text", "half"), ("attempt", 1), ("text", "half"), ("text", " whole"), ("end", {})]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/elsewhere", 404),
        ("POST", "/", 404),
        ("GET", "/texts/nothing/events", 404),
        ("GET", "/texts/0-01a220f4-0000-7000-8000-000000000000/events", 404),
        ("GET", "/texts/0-01a220f4-0000-7000-8000-000000000000/events?after=nonsense", 404),
    ],
)
def test_the_page_answers(browser: Browser, method: str, path: str, status: int) -> None:
    answer = browser.ask(method, path)
    answer.read()

    assert answer.status == status


def test_a_large_prompt_is_refused(browser: Browser) -> None:
    assert browser.ask("POST", "/texts", "prompt=" + "x" * 5000).status == 413


def test_the_summary_counts_the_words() -> None:
    with worker.eager():
        run = write.submit(PROMPT)
        summary = run.summary()

    assert summary is not None
    assert summary.document == {"words": 40}
