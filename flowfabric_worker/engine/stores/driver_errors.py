"""The translation of errors of the driver and of servers into errors of the engine.

A server may be unable to serve a call for a time: it loads its data, fails over, cannot write to its disk, or is full.
The same call may succeed later, so the error is retryable. The server may answer so directly, in a pipeline, as the
reason for giving up a transaction, or inside the text of a failed stored function.
"""

from __future__ import annotations

import functools
import re

import redis

from flowfabric_worker.engine.errors import (
    EngineError,
    ResourceExhaustedError,
    TransportError,
    UnavailableError,
    ValidationError,
)
from flowfabric_worker.engine.stores.pool import NoFreeConnectionError
from flowfabric_worker.engine.stores.replicas import TooFewReplicasError
from flowfabric_worker.engine.stores.server_info import versions_wanted
from flowfabric_worker.engine.stores.tls import HandshakeTimeoutError, advice, failed_handshake
from flowfabric_worker.engine.wording import read_mistyped

# The text with which a server refuses a command inside a function, because the caller lacks the right.
_IN_SCRIPT = "ACL failure in script"
# The code may follow the text of a failed function; the driver removes it if it has a class for it.
_BUSY = re.compile(
    r"(?<![\w'\"])"
    r"(BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|READONLY|TRYAGAIN|UNBLOCKED|UNKILLABLE)\b"
)
_BUSY_CLASSES = (
    redis.BusyLoadingError,
    redis.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.ExecAbortError,
    redis.exceptions.MasterDownError,
    redis.exceptions.TryAgainError,
)
_OUT_OF_MEMORY = re.compile(r"(?<![\w'\"])OOM\b")
_DISK_FULL = re.compile("No space left on device|Disk quota exceeded")
_TOO_MANY_CLIENTS = "max number of clients reached"


def is_missing_function(answer: object) -> bool:
    """Return True if a server has answered that it does not know the function."""
    return isinstance(answer, redis.ResponseError) and "function not found" in str(answer).lower()


def translate(error: Exception, address: str, label: str) -> EngineError:
    """Return the engine's error for an error of the driver.

    Args:
        error: what the driver raised, or a server answered.
        address: the server in words, without secrets.
        label: the kind of store.
    """
    if isinstance(error, redis.ResponseError | redis.BusyLoadingError):
        return _of_answer(error, address, label)
    if isinstance(error, redis.AuthenticationError):
        return _not_let_in(address, label)
    if isinstance(error, redis.DataError):
        return ValidationError("invalid_input", f"An argument has a type that cannot be sent: {error}")
    return _of_connection(error, address, label)


def _of_connection(error: Exception, address: str, label: str) -> EngineError:
    """Return the engine's error for a call that got no answer."""
    text = str(error)
    transport = functools.partial(TransportError, backend=label)
    if isinstance(error, redis.ConnectionError) and (refusal := failed_handshake(error)) is not None:
        return transport("tls_failed", f"No TLS connection to {address}: {advice(refusal)}.")
    if isinstance(error, HandshakeTimeoutError):
        return transport(
            "store_timeout", f"{address} did not answer the TLS handshake in time: does it speak TLS there?"
        )
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return transport("store_timeout", f"{address} did not answer in time.")
    if isinstance(error, NoFreeConnectionError):
        return transport("store_timeout", f"No connection to {address} was free: {text}; raise pool_size.")
    if isinstance(error, TooFewReplicasError):
        return transport("store_busy", f"{address} has too few replicas that follow: {text}.")
    if _TOO_MANY_CLIENTS in text:
        return transport("store_busy", f"{address} has as many clients as it allows; raise its maxclients.")
    return transport("transport", f"{address} cannot be reached: {text}")


def _of_answer(error: Exception, address: str, label: str) -> EngineError:
    """Return the engine's error for an error with which a server answered a call."""
    text = str(error)
    transport = functools.partial(TransportError, backend=label)
    if text.startswith(("WRONGPASS", "NOAUTH")):
        return _not_let_in(address, label)
    if (
        isinstance(error, redis.exceptions.NoPermissionError)
        or text.startswith(("NOPERM", "DENIED"))
        or _IN_SCRIPT in text
    ):
        return transport("permission_denied", f"The user of {address} lacks a right: {text}")
    if isinstance(error, redis.exceptions.OutOfMemoryError) or _OUT_OF_MEMORY.search(text):
        return ResourceExhaustedError(
            "store_full", f"{address} has reached its maxmemory; free memory or raise the limit."
        )
    if _DISK_FULL.search(text):
        return ResourceExhaustedError("store_full", f"The disk of {address} is full; free space on it: {text}")
    if mistyped := read_mistyped(text):
        key, sentence = mistyped
        return transport("key_damaged", sentence, key=key)
    if text.startswith("CORRUPT "):
        return ValidationError("corruption", f"What the call reads at {address} is damaged; restore it or remove it.")
    if isinstance(error, _BUSY_CLASSES) or _BUSY.search(text):
        return transport("store_busy", f"{address} cannot serve calls now: {text}")
    if is_missing_function(error):
        # The functions were loaded a moment ago, so that something else removes them; the engine may try again.
        return transport("store_busy", f"{address} lost its functions again while they were loaded.")
    if "unknown command" in text.lower():
        return UnavailableError(
            "functions", f"{address} has no functions: {versions_wanted()} is needed.", "store_not_supported"
        )
    return transport("function_failed", f"{address} could not run the call: {text}")


def _not_let_in(address: str, label: str) -> TransportError:
    return TransportError(
        "authentication_failed", f"{address} refused the user or the password: check the URL.", backend=label
    )
