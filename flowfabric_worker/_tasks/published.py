"""The tasks that workers have published, for clients that do not have their code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import NotFoundError, ValidationError
from flowfabric_worker.engine.limits import MAX_PAGE_SIZE
from flowfabric_worker.engine.suggestions import did_you_mean
from flowfabric_worker.engine.types.workers import TaskInfo

# The most task names that an error lists.
_MOST_NAMED: Final = 10


def find_task(engine: EngineBackend, name: str) -> TaskInfo | None:
    """Return the published task with a full or bare name; None if there is none.

    Raises:
        ValidationError: `ambiguous_task`.
    """
    page = engine.list_tasks(limit=_MOST_NAMED + 1, name=name)
    found = [task for task in page.tasks if isinstance(task, TaskInfo)]
    if len(found) > 1:
        names = ", ".join(task.name for task in found[:_MOST_NAMED])
        raise ValidationError("ambiguous_task", f"{name!r} may be any of {names}: give the full name.", task=name)
    return found[0] if found else None


def full_name(engine: EngineBackend, name: str) -> str:
    """Return the full name of a published task; the given name if no worker has published such a task."""
    found = find_task(engine, name)
    return name if found is None else found.name


def unknown_task(engine: EngineBackend, name: str, namespace: str) -> NotFoundError:
    """Return the error for a name that no worker has published, with the name that was probably meant."""
    page = engine.list_tasks(limit=MAX_PAGE_SIZE)
    names = [task.name for task in page.tasks if isinstance(task, TaskInfo)]
    ends = {full.rpartition(".")[2]: full for full in names}
    hint = did_you_mean(name, [*names, *ends], ends)
    return NotFoundError(
        "task_not_found",
        f"No worker has published a task {name!r} in the namespace {namespace!r}.{hint} Start its worker once, or "
        "submit anyway with force=True (--force).",
        task=name,
    )


def placeholder_function(name: str) -> Callable[..., Any]:
    """Return a function that stands for the code of a task, which is not here."""

    def function(*arguments: Any, **named: Any) -> Any:
        raise NotImplementedError(f"The code of {name!r} is not installed here: submit the task.")

    function.__name__ = name
    return function
