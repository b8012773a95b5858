"""What the errors of a Postgres server and of its driver mean to the engine, in the classes that Valkey's have."""

from __future__ import annotations

import functools

import psycopg

from flowfabric_worker.engine.errors import EngineError, ResourceExhaustedError, TransportError, ValidationError
from flowfabric_worker.engine.stores.pool import NoFreeConnectionError
from flowfabric_worker.engine.stores.postgres_connection import QueryTimeoutError, ServerError

# Serialization failures and deadlocks; the same call is made again.
_AGAIN = frozenset({"40001", "40P01"})
# The schema of the functions, or a function in it, is missing.
_MISSING = frozenset({"3F000", "42883"})
# The server is a replica by now, or shuts down; the connection leads to the wrong server.
_MOVED = frozenset({"25006", "57P01", "57P02", "57P03", "57P05"})
_BUSY = frozenset({"53000", "53200", "53300", "53400", "55P03", "55006", "25P02"}) | _MOVED | _AGAIN
_FULL = frozenset({"53100"})
_NOT_LET_IN = frozenset({"28000", "28P01"})
_REFUSED = frozenset({"42501"})
_TOO_LONG = frozenset({"57014"})
# The classes of errors for data that an expression cannot take, and the code for a null where none may be.
_DATA = ("21", "22", "23502")


def is_missing_function(error: object) -> bool:
    """Return True if a server has answered that it does not know the function."""
    return isinstance(error, ServerError) and error.code in _MISSING and not error.in_function


def is_conflict(error: object) -> bool:
    """Return True if the call lost against another one, and changed nothing."""
    return isinstance(error, ServerError) and error.code in _AGAIN


def is_damage(error: object) -> bool:
    """Return True if the call met data that it cannot use, and changed nothing."""
    return isinstance(error, ServerError) and error.code.startswith(_DATA)


def is_made_again(answer: object) -> bool:
    """Return True if a call by itself may have another answer: it lost, missed its function, or met damaged data."""
    return is_conflict(answer) or is_missing_function(answer) or is_damage(answer)


def ends_connection(error: object) -> bool:
    """Return True if the connection must not be used again."""
    return not isinstance(error, ServerError) or error.code in _MOVED or error.code == "25P02"


def translate(error: Exception, address: str) -> EngineError:
    """Return the engine's error for an error of the driver or an answer of the server.

    Args:
        error: what the driver raised, or the server answered.
        address: the server in words, without secrets.
    """
    transport = functools.partial(TransportError, backend="postgresql")
    if is_missing_function(error):
        # The functions were installed a moment ago, so something removes them; the engine may try again.
        return transport("store_busy", f"{address} lost its functions again while they were installed.")
    if isinstance(error, ServerError):
        return _of_answer(error.code, str(error), address)
    if isinstance(error, QueryTimeoutError | psycopg.errors.ConnectionTimeout | TimeoutError):
        return transport("store_timeout", f"{address} did not answer in time.")
    if isinstance(error, NoFreeConnectionError):
        return transport("store_timeout", f"No connection to {address} was free: {error}; raise pool_size.")
    if isinstance(error, TypeError | struct_error()):
        return ValidationError("invalid_input", f"An argument has a type that cannot be sent: {error}")
    text = str(error).strip()
    if isinstance(error, psycopg.Error) and error.sqlstate:
        return _of_answer(error.sqlstate, text, address)
    # Before a session exists the driver gives only a text.
    if "password authentication failed" in text or "no password supplied" in text or "no pg_hba.conf entry" in text:
        return _of_answer("28P01", text, address)
    if "too many clients" in text or "remaining connection slots" in text:
        return _of_answer("53300", text, address)
    if "the database system is" in text:
        return _of_answer("57P03", text, address)
    return transport("transport", f"{address} cannot be reached: {text}")


def struct_error() -> type[Exception]:
    """Return what packing a number that is too large raises."""
    import struct

    return struct.error


def _of_answer(code: str, text: str, address: str) -> EngineError:
    transport = functools.partial(TransportError, backend="postgresql")
    if code in _NOT_LET_IN:
        return transport("authentication_failed", f"{address} refused the user or the password: check the URL.")
    if code in _REFUSED:
        return transport("permission_denied", f"The user of {address} lacks a right: {text}")
    if code in _FULL:
        return ResourceExhaustedError("store_full", f"The disk of {address} is full; free space on it: {text}")
    if code in _TOO_LONG:
        return transport("store_timeout", f"{address} stopped a call that took too long: {text}")
    if code in _BUSY:
        return transport("store_busy", f"{address} cannot serve calls now: {text}")
    if code.startswith(_DATA):
        # The server's text shows the damaged value.
        return ValidationError(
            "corruption", f"What the call reads at {address} is damaged; restore it or remove it ({code})."
        )
    return transport("function_failed", f"{address} could not run the call: {text} ({code})")
