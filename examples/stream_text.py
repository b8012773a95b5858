"""A text that is read while it is written, in the terminal and on a web page.

    python -m examples.stream_text "a prompt"       write a text, and print it while it is written
    python -m examples.stream_text --serve          serve a page that shows texts while they are written

The process is the worker too. The page gets each text as server-sent events; the id of an event is its place in the
stream, so a browser that is reloaded, or loses its connection, goes on where it was. The page is a WSGI application for
any server with threads. In practice it runs in other processes than the worker, and needs only the URL of the store.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Generator, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from flowfabric_worker import (
    AttemptBegan,
    Client,
    EngineTimeoutError,
    NotFoundError,
    RetryPolicy,
    Run,
    RunStream,
    Runtime,
    StreamItem,
    StreamValue,
    ValidationError,
    ValuesDropped,
    Worker,
    WorkerSettings,
    current,
)

# The store is $FLOWFABRIC_URL, else embedded://.flowfabric.
worker = Worker("texts")

MOST_BYTES = 4096
# Seconds after which a page without news is told that its connection lives.
KEEP_ALIVE = 15.0


class Model:
    """A stand-in for a language model: it writes what the prompt makes it choose, a word at a time.

    Args:
        pause: seconds that each word takes.
    """

    WORDS = (
        "a", "the", "one", "lease", "worker", "store", "lane", "waits", "sends", "keeps", "and", "or", "while", "later",
    )  # fmt: skip

    def __init__(self, pause: float) -> None:
        self._pause = pause

    def generate(self, prompt: str, count: int = 40) -> Iterator[str]:
        """Yield the words of a text, the same ones for the same prompt."""
        choice = random.Random(prompt)
        for _ in range(count):
            time.sleep(self._pause)
            yield choice.choice(self.WORDS)


model = Model(pause=0.02)


@worker.task(retry=RetryPolicy(max_retries=3))
def write(prompt: str) -> Generator[str, None, int]:
    """Write a text: each word is read while the next one is made. Return how many words there are."""
    count = 0
    for word in model.generate(prompt):
        yield word if count == 0 else f" {word}"
        count += 1
        if count % 10 == 0:
            current().summary.merge({"words": count})
    return count


def watch(run: Run[Generator[str, None, int]]) -> None:
    """Print a text while it is written."""
    for item in run.stream():
        match item:
            case StreamValue(text):
                print(text, end="", flush=True)
            case AttemptBegan():
                print("\n[its worker was lost; the text begins again]")
            case ValuesDropped():
                print("[...]", end="")
    print(f"\n[{run.result()} words]")


class Page:
    """Show texts while they are written: a WSGI application.

    Args:
        client: submits texts, and reads their streams.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match environ["REQUEST_METHOD"], environ.get("PATH_INFO", "").split("/"):
            case "GET", ["", ""]:
                return _answer(start_response, "200 OK", FORM)
            case "POST", ["", "texts"]:
                return self._submit(environ, start_response)
            case "GET", ["", "texts", _]:
                return _answer(start_response, "200 OK", TEXT)
            case "GET", ["", "texts", name, "events"]:
                return self._events(name, environ, start_response)
        return _answer(start_response, "404 Not Found")

    def _submit(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Submit a text, and send the browser to its page."""
        length = environ.get("CONTENT_LENGTH") or ""
        if not (length.isascii() and length.isdecimal()) or len(length) > 9 or int(length) > MOST_BYTES:
            return _answer(start_response, "413 Content Too Large")
        fields = parse_qs(environ["wsgi.input"].read(int(length)).decode("utf-8", "replace"))
        prompt = fields.get("prompt", [""])[0]
        run = self._client.submit("texts.write", [prompt], force=True)
        return _answer(start_response, "303 See Other", headers=[("Location", f"/texts/{run.id.plain}")])

    def _events(self, name: str, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Send the stream of a text as events."""
        # A browser that lost its connection sends the id of the last event; a page that was reloaded remembers it.
        remembered = parse_qs(environ.get("QUERY_STRING", "")).get("after", [""])[0]
        after = environ.get("HTTP_LAST_EVENT_ID") or remembered or None
        try:
            stream = self._client.stream(name, after, timeout=KEEP_ALIVE)
            if self._client.get(name) is None:
                raise NotFoundError("execution_not_found")
        except (ValidationError, NotFoundError):
            return _answer(start_response, "404 Not Found")
        start_response("200 OK", [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store")])
        return events(stream)


def events(stream: RunStream[Any]) -> Iterator[bytes]:
    """Yield the items of a stream as server-sent events."""
    while True:
        try:
            item = next(stream)
        except EngineTimeoutError:
            # A comment has no id, so the browser keeps the id of the last event.
            yield b": still there\n\n"
        except (StopIteration, NotFoundError):
            yield b"event: end\ndata: {}\n\n"
            return
        else:
            yield _event(item)


def _event(item: StreamItem[Any]) -> bytes:
    match item:
        case StreamValue(text):
            kind, data = "text", text
        case AttemptBegan(attempt):
            kind, data = "attempt", attempt
        case ValuesDropped():
            kind, data = "dropped", None
    return f"id: {item.cursor}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def _answer(
    start_response: StartResponse, status: str, page: str = "", headers: Iterable[tuple[str, str]] = ()
) -> Iterable[bytes]:
    body = page.encode()
    start_response(status, [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body))), *headers])
    return [body]


FORM = """<!doctype html><title>Texts</title>
<form method="post" action="/texts"><input name="prompt" autofocus> <button>Write</button></form>
"""

# What was shown, and the id of the last event, outlive a reload in the browser's storage for this page.
TEXT = """<!doctype html><title>A text</title>
<p id="text"></p><p id="state">...</p><a href="/">Write another one</a>
<script>
const text = document.getElementById("text"), state = document.getElementById("state"), page = location.pathname;
text.textContent = sessionStorage.getItem(page + " text") || "";
const after = sessionStorage.getItem(page + " after") || "";
const source = new EventSource(page + "/events?after=" + encodeURIComponent(after));
function show(event, shown) {
  text.textContent = shown;
  sessionStorage.setItem(page + " text", shown);
  sessionStorage.setItem(page + " after", event.lastEventId);
}
source.addEventListener("text", event => show(event, text.textContent + JSON.parse(event.data)));
source.addEventListener("attempt", event => show(event, ""));
source.addEventListener("dropped", event => show(event, text.textContent + " [...] "));
source.addEventListener("end", () => { source.close(); state.textContent = "The text is complete."; });
</script>
"""


class Server(ThreadingMixIn, WSGIServer):
    """A server with a thread for each request, because a stream takes as long as its text."""

    daemon_threads = True


def serve(port: int) -> WSGIServer:
    """Return a server of the page, on this machine only; port 0 is any free one."""
    page = Page(Client(worker.url))
    return make_server("127.0.0.1", port, page, server_class=Server, handler_class=WSGIRequestHandler)


def main() -> None:
    """Write one text, or serve the page."""
    parser = argparse.ArgumentParser(prog="python -m examples.stream_text")
    parser.add_argument("prompt", nargs="?", default="a lease")
    parser.add_argument("--serve", action="store_true", help="serve the page")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    runtime = Runtime(worker, WorkerSettings(threads=4))
    runtime.start()
    try:
        if arguments.serve:
            with serve(arguments.port) as server:
                print(f"http://127.0.0.1:{server.server_port} (Ctrl-C stops)")
                server.serve_forever()
        else:
            watch(write.submit(arguments.prompt))
    except KeyboardInterrupt:
        pass
    finally:
        runtime.stop()
        worker.close()


if __name__ == "__main__":
    main()
