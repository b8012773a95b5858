"""Find tokens and secrets in what the tests make the package write.

From the start of a session, every secret that signs, every token that is signed, and what the package writes are noted:
log records, errors, command output, and the `repr` of what operations take and return. At the end of each phase of a
test, a secret or a part of a token in any of these texts fails the test.
"""

from __future__ import annotations

import functools
import hmac
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import pytest

from flowfabric_worker.engine import waitpoint_tokens
from flowfabric_worker.engine.backend.reads import ReadsBackend
from flowfabric_worker.engine.backend.suspension import SuspensionBackend
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import FlowFabricError
from flowfabric_worker.engine.waitpoint_tokens import FINGERPRINT_DIGITS

# A fingerprint may be shown; one digit more of a digest may not.
_WINDOW: Final = FINGERPRINT_DIGITS + 1
_VARIED: Final = 5
_DIGITS: Final = re.compile(rf"[0-9a-f]{{{_WINDOW},}}")
_BEARER: Final = re.compile(r"ffw1_[\w-]{60,}")


class Leaks:
    """The secrets of a session, and the texts that it wrote.

    Attributes:
        tokens: how many tokens were signed.
        texts: how many texts were searched.
    """

    def __init__(self) -> None:
        self.tokens = self.texts = 0
        self._windows: set[str] = set()
        self._secrets: set[str] = set()
        self._noted: deque[tuple[str, str]] = deque()

    def know(self, secret: bytes, digest: str) -> None:
        """Take note of a secret, and of the digest of a token that it signed."""
        self.tokens += 1
        # A secret of a test that repeats one byte, or counts up as payloads do, is no evidence where it is found.
        steps = {later - sooner for sooner, later in itertools.pairwise(secret)}
        telling = len(steps) >= _VARIED
        for digits in (digest, secret.hex()) if telling else (digest,):
            self._windows.update(window for window in _windows_of(digits) if len(set(window)) >= _VARIED)
        if telling:
            self._secrets.update((repr(secret)[2:-1], secret.decode("latin-1")))

    def note(self, where: str, text: str) -> None:
        """Take note of a text that the package wrote."""
        self._noted.append((where, text))

    def found(self, further: Iterable[tuple[str, str]] = ()) -> list[str]:
        """Search what was noted since the last search, and further texts; return where something leaks."""
        texts = [*further]
        while self._noted:
            texts.append(self._noted.popleft())
        self.texts += len(texts)
        return [f"{where}: {kind}" for where, text in texts for kind in self._in(text)]

    def _in(self, text: str) -> Iterator[str]:
        if any(window in self._windows for run in _DIGITS.findall(text) for window in _windows_of(run)):
            yield "digits of a token or a secret"
        if any(secret in text for secret in self._secrets):
            yield "a secret"
        if _BEARER.search(text):
            yield "the token of a bearer"


def _windows_of(digits: str) -> Iterator[str]:
    return (digits[at : at + _WINDOW] for at in range(len(digits) - _WINDOW + 1))


LEAKS: Final = Leaks()


class _NotingHmac:
    """The module `hmac`, which notes what is signed."""

    compare_digest = staticmethod(hmac.compare_digest)

    @staticmethod
    def new(key: bytes, message: bytes, digest: Any) -> hmac.HMAC:
        made = hmac.new(key, message, digest)
        LEAKS.know(key, made.hexdigest())
        return made


def install() -> None:
    """Begin to note secrets, errors, and what operations take and return."""
    waitpoint_tokens.hmac = _NotingHmac  # type: ignore[assignment]  # it has what that module uses

    make = FlowFabricError.__init__

    def noting(self: FlowFabricError, *args: object) -> None:
        make(self, *args)
        LEAKS.note("an error", f"{self} {self!r}")

    FlowFabricError.__init__ = noting  # type: ignore[method-assign]  # for the length of the session
    for area in (SuspensionBackend, ReadsBackend):
        for name in vars(area):
            if not name.startswith("_"):
                setattr(Engine, name, _noting_call(getattr(Engine, name)))


def _noting_call(operation: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(operation)
    def call(engine: Engine, *args: Any, **kwargs: Any) -> Any:
        result = operation(engine, *args, **kwargs)
        LEAKS.note(f"the repr of {operation.__name__}", f"{args!r} {kwargs!r} {result!r}")
        return result

    return call


def judge(report: pytest.TestReport) -> None:
    """Fail a phase of a test in which something leaked."""
    logged = [(heading, text) for heading, text in report.sections if "log" in heading or "stderr" in heading]
    found = LEAKS.found(logged)
    if found and report.passed:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} wrote what must stay secret.\n" + "\n".join(found)
