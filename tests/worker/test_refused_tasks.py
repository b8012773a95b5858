"""What cannot work is refused where it is decorated, at the latest where a worker starts."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Optional, TypeVar

import attrs
import pytest

import flowfabric_worker as ff
from flowfabric_worker import Runtime, TaskContext, ValidationError, Worker, WorkerSettings
from tests.support.cli import cli

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]  # it is not there

T = TypeVar("T")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("shop", "memory://")
    yield worker
    worker.close()


async def later(number: int) -> int:
    return number


async def later_each(number: int) -> AsyncIterator[int]:
    yield number


class Shop:
    def send(self, order: int) -> None: ...

    @classmethod
    def open(cls, order: int) -> None: ...

    async def __call__(self, order: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (later, "is async"),
        (later_each, "is async"),
        (functools.partial(later, 1), "is async"),
        (Shop(), "is async"),
        (Shop.send, "is a method"),
        (Shop.__dict__["open"], "method|function"),
        (5, "decorates a function"),
    ],
)
def test_a_function_that_no_worker_can_run_is_refused_by_the_decorator(
    worker: Worker, function: Any, reason: str
) -> None:
    with pytest.raises(TypeError, match=reason):
        worker.task(function)
    with pytest.raises(TypeError, match=reason):
        worker.task(name="other")(function)

    assert worker.tasks == {}


def test_a_static_method_and_a_partial_with_a_name_are_tasks(worker: Worker) -> None:
    class Inside:
        @staticmethod
        @worker.task
        def send(order: int) -> int:
            return order

    assert Inside.send(5) == 5
    doubled = worker.task(functools.partial(multiply, 2))
    run = doubled.submit(3)
    worker.run_until_idle()
    assert (doubled.name, run.result(0)) == ("shop.multiply", 6)
    with pytest.raises(TypeError, match="give the task a name="):
        worker.task(Called())
    assert worker.task(name="called")(Called()).submit(3).created


def multiply(left: int, right: int) -> int:
    return left * right


class Called:
    def __call__(self, order: int) -> int:
        return order


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


@attrs.define
class Holds:
    box: Box  # type: ignore[type-arg]  # that is what is wrong


@attrs.define
class Tree:
    children: list[Tree]
    label: deque[int]


class Opaque:
    pass


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (Opaque, "annotated Opaque cannot be encoded"),
        (list[dict[str, Opaque]], "Opaque"),
        (Opaque | None, "Opaque"),
        (tuple[int, Opaque], "Opaque"),
        (Box, r"Box is generic: say of what, such as Box\[int\]"),
        (Holds, "Box is generic"),
        (Tree, "deque"),
        (Callable[[], int], "Callable"),
        (Iterator[int], "Iterator"),
        (complex, "complex"),
    ],
)
@pytest.mark.parametrize("place", ["argument", "result"])
def test_an_annotation_that_cannot_travel_is_refused_where_it_is_decorated(
    worker: Worker, annotation: Any, reason: str, place: str
) -> None:
    def task(value):  # type: ignore[no-untyped-def]  # annotated below
        return value

    task.__annotations__ = {"value" if place == "argument" else "return": annotation}

    with pytest.raises(TypeError, match=rf"(?s){place}.*task\(\) cannot be encoded.*{reason}"):
        worker.task(task)
    assert worker.tasks == {}


def test_a_generic_dataclass_with_its_arguments_travels(worker: Worker) -> None:
    @worker.task
    def unpack(box: Box[int]) -> Box[str]:
        return Box(str(box.content))

    run = unpack.submit(Box(5))
    worker.run_until_idle()
    assert run.result(0) == Box("5")


def test_an_annotation_may_name_what_is_defined_further_down(worker: Worker) -> None:
    @worker.task
    def early(value: Later) -> Later:
        return value

    run = early.submit(Later(5))
    worker.run_until_idle()
    assert run.result(0) == Later(5)


@attrs.define
class Later:
    value: int


def unresolved(value: int) -> Unknown:
    return value


@pytest.mark.parametrize("start", [lambda worker: Runtime(worker, WorkerSettings()).start(), Worker.run_until_idle])
def test_a_name_for_type_checkers_alone_is_told_before_the_worker_starts(worker: Worker, start: Any) -> None:
    worker.task(unresolved)

    with pytest.raises(TypeError, match=r"unresolved\(\).*'Unknown' is not defined"):
        start(worker)


def test_run_tells_in_one_sentence_what_does_not_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unresolving.py").write_text(
        "from __future__ import annotations\nfrom flowfabric_worker import Worker\nworker = Worker('w')\n"
        "@worker.task\ndef f() -> Unknown: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    ran = cli("run", "unresolving:worker", "--url", "memory://")

    assert ran.code != 0
    assert "'Unknown' is not defined" in ran.err
    assert "Traceback" not in ran.err


# The context

FOR_CHECKERS = """
from __future__ import annotations
def for_checkers(context: TaskContext | None, order: int) -> str:
    return f"{context.kind} {order}"
"""


def test_the_context_comes_wherever_its_parameter_stands(worker: Worker) -> None:
    @worker.task
    def first(context: TaskContext, order: int) -> str:
        return f"{context.kind} {order}"

    @worker.task
    def optional(order: int, context: Optional[TaskContext] = None) -> str:  # noqa: UP045  the older form is meant
        return f"{context and context.kind} {order}"

    @worker.task
    def annotated(context: Annotated[TaskContext, "what"], order: int) -> str:
        return f"{context.kind} {order}"

    @worker.task
    def bar(order: int, context: TaskContext | None = None) -> str:
        return f"{context and context.kind} {order}"

    names: dict[str, Any] = {}
    exec(FOR_CHECKERS, names)  # its module does not have the name TaskContext
    for_checkers = worker.task(names["for_checkers"])

    @worker.task
    def by_module(context: ff.TaskContext, order: int) -> str:
        return f"{context.kind} {order}"

    for task in (first, optional, annotated, bar, by_module, for_checkers):
        assert task(7) == "local 7", task
        assert task(order=7) == "local 7", task
        runs = [task.submit(7), task.submit(order=7)]
        worker.run_until_idle()
        assert [run.result(0) for run in runs] == ["fresh 7", "fresh 7"], task


def test_two_contexts_are_refused(worker: Worker) -> None:
    with pytest.raises(TypeError, match="left and right are both annotated TaskContext"):

        @worker.task
        def both(left: TaskContext, right: TaskContext) -> None: ...


SAMPLE = """
from typing import Annotated, Optional
from flowfabric_worker import TaskContext, Worker

worker = Worker("shop")

@worker.task
def first(context: TaskContext, order: int) -> str: return ""

@worker.task(lane="mail")
def optional(order: int, context: Optional[TaskContext] = None) -> str: return ""

@worker.task(lane="mail")
def annotated(context: Annotated[TaskContext, "x"], order: int) -> str: return ""

@worker.task
def plain(order: int, to: str = "") -> str: return ""

reveal_type(first.submit(7))
reveal_type(first(7))
reveal_type(optional.submit(7).result())
reveal_type(annotated.submit(order=7).result())
reveal_type(plain.submit(7, to="x"))
first.submit("wrong")
annotated.submit()
plain.submit(7, too="x")
"""


def test_mypy_knows_the_types_of_tasks_with_a_context(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text(SAMPLE)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context"]
    done = subprocess.run(
        [*command, "--cache-dir", str(ROOT / ".mypy_cache" / "sample"), str(tmp_path / "sample.py")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip

    lines = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert [line for line in lines if line.startswith("note: Revealed")] == [
        'note: Revealed type is "flowfabric_worker.run.Run[str]"',
        *['note: Revealed type is "str"'] * 3,
        'note: Revealed type is "flowfabric_worker.run.Run[str]"',
    ]
    assert [line.rpartition("[")[2] for line in lines if line.startswith("error")] == [
        "arg-type]",
        "call-arg]",
        "call-arg]",
    ]


# Options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("at", datetime(2030, 1, 1)),
        ("at", "tomorrow"),
        ("priority", 9001),
        ("priority", -1),
        ("priority", "high"),
        ("priority", True),
        ("priority", 1.5),
        ("timeout", 5),
        ("timeout", timedelta()),
        ("deadline", 5),
        ("delay", 5),
        ("delay", timedelta(seconds=-1)),
        ("retention", 5),
        ("max_reclaims", -1),
        ("max_reclaims", "many"),
        ("key", 5),
        ("key", ""),
        ("tags", 5),
        ("tags", {"a": 1}),
        ("headers", {"a": 1}),
        ("quota", 5),
    ],
)
def test_a_wrong_option_is_refused_by_the_name_that_it_was_given_under(worker: Worker, option: str, value: Any) -> None:
    def add(left: int) -> int:
        return left

    task = worker.task(name="fine")(add)
    for give in (lambda: worker.task(**{option: value})(add), lambda: task.options(**{option: value})):
        with pytest.raises(ValidationError, match=f"(?i){option.rstrip('s')}"):
            give()
    with pytest.raises(ValidationError):
        Worker("other", defaults={option: value})


def test_a_delay_and_a_moment_are_refused_together(worker: Worker) -> None:
    task = worker.task(name="fine")(later_plain)
    with pytest.raises(ValidationError, match="delay and at"):
        task.options(delay=timedelta(1), at=datetime(2030, 1, 1, tzinfo=UTC))


def later_plain() -> None: ...


def test_a_lane_that_no_task_has_is_told_with_a_likely_one(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    worker.task(lane="mail")(later_plain)
    runtime = Runtime(worker, WorkerSettings(threads=1, lanes={"mial": 1, "mail": 1}))
    runtime.start()
    runtime.stop()

    assert "--lanes names 'mial', which no task of 'shop' uses; they use mail. Did you mean 'mail'?" in caplog.text
