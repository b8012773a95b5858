"""The table of codes: complete, consistent, and what an error carries."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import flowfabric_worker
from flowfabric_worker import DecodingError, DurableCallError, EncodingError, FlowFabricError
from flowfabric_worker.engine import errors
from flowfabric_worker.engine.errors import (
    CODES,
    ConflictError,
    ContentionError,
    EngineError,
    EngineTimeoutError,
    NotFoundError,
    ResourceExhaustedError,
    StateError,
    TransportError,
    UnavailableError,
    ValidationError,
    error_from_code,
)
from flowfabric_worker.engine.ids import ExecutionId, WaitpointId, uuid7
from flowfabric_worker.engine.waitpoint_tokens import to_bearer

PACKAGE = Path(errors.__file__).parents[1]
CLASSES = {
    kind.__name__: kind
    for kind in (
        NotFoundError,
        ValidationError,
        ContentionError,
        ConflictError,
        StateError,
        UnavailableError,
        ResourceExhaustedError,
        EngineTimeoutError,
        TransportError,
    )
}
# Where each class takes its code: UnavailableError names the operation and says a sentence first.
CODE_AT = {UnavailableError: 2}
RETRYABLE = {ContentionError, ResourceExhaustedError, EngineTimeoutError}
LOST_FENCES = ("execution_not_active", "lease_expired", "lease_revoked", "stale_lease")
LOST_RACES = (
    "execution_not_leaseable",
    "not_a_resumed_execution",
    "invalid_claim_grant",
    "claim_grant_expired",
    "execution_not_eligible",
)
TRANSPORT = {
    "transport": True,
    "store_timeout": True,
    "store_busy": True,
    "authentication_failed": False,
    "permission_denied": False,
    "tls_failed": False,
    "engine_closed": False,
    "function_failed": False,
    "key_damaged": False,
    "protocol": False,
}


def codes_of_lua() -> Iterator[tuple[str, str, int]]:
    """Yield each failure that a stored function can answer: where, its code, and how many details come with it."""
    for path in sorted((PACKAGE / "lua").glob("*.lua")):
        for match in re.finditer(r"ff\.failure\(", path.read_text()):
            code, *details = _lua_arguments(path.read_text()[match.end() :])
            if code != "code":
                assert re.fullmatch(r"'[a-z_]+'", code), f"{path.name}: the code {code} is not written out"
                yield path.name, code.strip("'"), len(details)


def codes_of_sql() -> Iterator[tuple[str, str, int]]:
    """Yield the same of the functions on Postgres."""
    for path in sorted((PACKAGE / "sql").glob("*.sql")):
        text = path.read_text()
        for match in re.finditer(r"(?<!FUNCTION )fn\.failure\(", text):
            code, *details = _lua_arguments(text[match.end() :])
            codes = re.findall(r"'([a-z_]{6,})'", code)
            assert codes, f"{path.name}: the code {code} is not written out"
            yield from ((path.name, each, len(details)) for each in codes)


def _lua_arguments(text: str) -> list[str]:
    """Return the arguments of a call, from behind its bracket to the one that closes it."""
    arguments, depth, start = [], 0, 0
    for at, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}" and depth:
            depth -= 1
        elif depth == 0 and character in ",)":
            arguments.append(text[start:at].strip())
            start = at + 1
            if character == ")":
                break
    return arguments


def codes_of_python() -> Iterator[tuple[str, str, type[EngineError]]]:
    """Yield each code that Python sources give to an error of the engine: where, the code, and the class."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        makers = dict(CLASSES)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and (kind := _bound_class(node.value)) and len(node.targets) == 1:
                makers[ast.unparse(node.targets[0])] = kind
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (kind := makers.get(ast.unparse(node.func))):
                for code in _codes(node, kind):
                    yield f"{path.name}:{node.lineno}", code, kind


def _bound_class(value: ast.expr) -> type[EngineError] | None:
    """Return the class in `partial(SomeError, ...)`."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("partial") and value.args:
        return CLASSES.get(ast.unparse(value.args[0]))
    return None


def _codes(call: ast.Call, kind: type[EngineError]) -> list[str]:
    at = CODE_AT.get(kind, 0)
    given = call.args[at : at + 1] + [keyword.value for keyword in call.keywords if keyword.arg == "code"]
    return [value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)]


# The table


def test_every_code_of_a_stored_function_has_a_row_with_its_details() -> None:
    found = [*codes_of_lua(), *codes_of_sql()]

    assert len(found) > 20
    assert [(where, code) for where, code, _ in found if code not in CODES] == []
    assert [(where, code) for where, code, details in found if details > len(CODES[code].details)] == []


def test_every_code_of_the_package_has_a_row_with_the_raised_class() -> None:
    found = list(codes_of_python())

    assert len(found) > 50
    assert [(where, code) for where, code, _ in found if code not in CODES] == []
    assert [(where, code) for where, code, kind in found if CODES[code].error is not kind] == []


@pytest.mark.parametrize("code", CODES)
def test_a_code_is_a_word_with_a_class_and_a_sentence(code: str) -> None:
    row = CODES[code]

    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)
    assert row.error in CLASSES.values()
    assert row.sentence[0].isupper()
    assert row.sentence.endswith(".")
    assert len(set(row.details)) == len(row.details)


@pytest.mark.parametrize("code", [code for code in CODES if CODES[code].error is not TransportError])
def test_whether_a_code_is_worth_a_retry_follows_from_its_class(code: str) -> None:
    assert CODES[code].retryable == (CODES[code].error in RETRYABLE)


def test_failures_of_a_connection_are_retryable_only_where_time_can_help() -> None:
    assert {code: row.retryable for code, row in CODES.items() if row.error is TransportError} == TRANSPORT


@pytest.mark.parametrize("code", LOST_FENCES)
def test_a_lost_fence_is_a_matter_of_state_and_never_worth_a_retry(code: str) -> None:
    error = error_from_code(code)

    assert type(error) is StateError
    assert not error.retryable


@pytest.mark.parametrize("code", LOST_RACES)
def test_a_lost_race_is_contention_and_worth_a_retry(code: str) -> None:
    error = error_from_code(code)

    assert type(error) is ContentionError
    assert error.retryable


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_each_class_has_a_code_of_its_own_in_the_table(kind: type[EngineError]) -> None:
    assert CODES[kind.default_code].error is kind
    assert issubclass(kind, EngineError)


def test_codes_of_missing_things_end_alike_and_name_what_is_missing() -> None:
    missing = [code for code, row in CODES.items() if row.error is NotFoundError]

    assert [code for code in missing if not code.endswith("not_found")] == []
    assert NotFoundError("execution_not_found").entity == "execution"


# Making errors


def test_an_error_from_a_code_names_its_details() -> None:
    error = error_from_code("execution_not_active", ["e1", "success", "3", "terminal", "a1"])

    assert error.details == {
        "execution_id": "e1",
        "outcome": "success",
        "lease_epoch": "3",
        "phase": "terminal",
        "attempt_id": "a1",
    }
    assert "execution_id=e1, outcome=success" in str(error)


def test_details_that_are_missing_or_too_many_do_no_harm() -> None:
    assert error_from_code("execution_not_leaseable", ["e1"]).details == {"execution_id": "e1"}
    assert error_from_code("lease_expired", ["e1", "more"]).details == {"execution_id": "e1"}


def test_an_empty_detail_is_not_spoken_of() -> None:
    assert "attempt_id" not in str(error_from_code("execution_not_active", ["e1", "none", "0", "runnable", ""]))


def test_an_unknown_code_is_a_defect_that_says_so() -> None:
    error = error_from_code("no_such_code")

    assert type(error) is TransportError
    assert (error.code, error.retryable) == ("protocol", False)
    assert "no_such_code" in str(error)


def test_an_operation_that_is_not_offered_is_named() -> None:
    error = UnavailableError("suspend")

    assert (error.op, error.code, error.retryable) == ("suspend", "unavailable", False)
    assert "'suspend'" in str(error)


@pytest.mark.parametrize("code", CODES)
def test_an_error_from_a_code_has_the_row_of_that_code(code: str) -> None:
    error = error_from_code(code)

    assert type(error) is CODES[code].error
    assert (error.code, error.retryable, str(error)) == (code, CODES[code].retryable, CODES[code].sentence)


# Crossing processes


@pytest.mark.parametrize("code", CODES)
def test_a_pickled_error_is_the_same_error(code: str) -> None:
    error = error_from_code(code, ["a", "b", "c", "d", "e"])

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is type(error)
    assert (again.code, again.retryable, str(again)) == (error.code, error.retryable, str(error))
    assert again.details == error.details


@pytest.mark.parametrize(
    ("error", "attribute", "value"),
    [
        (NotFoundError("flow_not_found", "gone", flow_id="f"), "entity", "flow"),
        (UnavailableError("suspend"), "op", "suspend"),
        (TransportError("store_busy", "wait", backend="valkey"), "backend", "valkey"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_pickled_error_keeps_what_only_its_class_has(error: EngineError, attribute: str, value: str) -> None:
    again = pickle.loads(pickle.dumps(error))

    assert getattr(again, attribute) == value
    assert str(again) == str(error)


def test_every_public_error_derives_from_one_root() -> None:
    public = [getattr(flowfabric_worker, name) for name in flowfabric_worker.__all__]
    raised = [each for each in public if isinstance(each, type) and issubclass(each, Exception)]
    # StepFailed takes the place of an exception of the application.
    outside = [each.__name__ for each in raised if not issubclass(each, flowfabric_worker.FlowFabricError)]

    assert outside == ["StepFailed"]
    assert issubclass(flowfabric_worker.EncodingError, ValueError)
    assert issubclass(flowfabric_worker.DurableCallError, RuntimeError)


@pytest.mark.parametrize("length", [None, 200, 60, 10])
def test_an_error_that_repeats_a_token_leaves_only_its_prefix(length: int | None) -> None:
    token = to_bearer(ExecutionId.mint(1), WaitpointId(str(uuid7())), "k1:" + "0" * 64)[:length]

    with pytest.raises(ValidationError) as refused:
        ExecutionId.parse(token)

    assert "'ffw1_..." in str(refused.value)
    assert token[:10] not in str(refused.value)


@pytest.mark.parametrize("kind", [FlowFabricError, ValidationError, EncodingError, DecodingError, DurableCallError])
def test_no_kind_of_error_repeats_a_token(kind: type[Exception]) -> None:
    token = to_bearer(ExecutionId.mint(1), WaitpointId(str(uuid7())), "k1:" + "0" * 64)
    text = f"The name {token} is wrong."

    error = kind(message=text) if kind is ValidationError else kind(text)  # type: ignore[call-arg]  # of its own

    assert (str(error), token in repr(error)) == ("The name ffw1_... is wrong.", False)
