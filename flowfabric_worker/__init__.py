"""Durable executions for Python: decorated functions that survive their workers.

A public name is imported when it is first used, so that importing the package or its pytest plugin is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flowfabric_worker._version import __version__

if TYPE_CHECKING:
    from flowfabric_worker._runtime.log_filter import ExecutionLogFilter
    from flowfabric_worker._tasks.options import TaskOptions
    from flowfabric_worker.client import Client
    from flowfabric_worker.codec import Codec, DecodingError, EncodingError
    from flowfabric_worker.config import WorkerSettings
    from flowfabric_worker.context import SummaryWriter, TaskContext, current, step
    from flowfabric_worker.engine.errors import (
        ConflictError,
        ContentionError,
        EngineError,
        EngineTimeoutError,
        FlowFabricError,
        NotFoundError,
        ResourceExhaustedError,
        StateError,
        TransportError,
        UnavailableError,
        ValidationError,
    )
    from flowfabric_worker.engine.limits import Limits
    from flowfabric_worker.engine.types.conditions import (
        AllOf,
        Count,
        CountKind,
        OperatorOnly,
        SignalMatcher,
        Single,
        TimeoutOnly,
    )
    from flowfabric_worker.engine.types.policies import FailureClass, RetryPolicy
    from flowfabric_worker.engine.types.suspension import SignalAccepted, SignalDuplicate, SignalEffect, TimeoutBehavior
    from flowfabric_worker.flow import Child, Flow, FlowRun, Node, chain, chord, group
    from flowfabric_worker.middleware import AttemptEvent, Middleware
    from flowfabric_worker.outcomes import (
        Cancel,
        ChildFailed,
        Delay,
        DurableCallError,
        ExecutionCancelled,
        ExecutionExpired,
        ExecutionFailed,
        ExecutionSkipped,
        Fail,
        HandlerExit,
        Interrupted,
        ResultError,
        Retry,
        StepFailed,
        Suspend,
        WaitChildren,
        WaitTimedOut,
    )
    from flowfabric_worker.run import Run
    from flowfabric_worker.runtime import RestartRequired, Runtime
    from flowfabric_worker.signals import Approval, Signal
    from flowfabric_worker.stream import (
        AttemptBegan,
        BudgetLimitPassed,
        RunStream,
        RunSummary,
        StreamItem,
        StreamValue,
        ValuesDropped,
    )
    from flowfabric_worker.task import Call, Submission, Task
    from flowfabric_worker.worker import Worker

__all__ = [
    "AllOf",
    "Approval",
    "AttemptBegan",
    "AttemptEvent",
    "BudgetLimitPassed",
    "Call",
    "Cancel",
    "Child",
    "ChildFailed",
    "Client",
    "Codec",
    "ConflictError",
    "ContentionError",
    "Count",
    "CountKind",
    "DecodingError",
    "Delay",
    "DurableCallError",
    "EncodingError",
    "EngineError",
    "EngineTimeoutError",
    "ExecutionCancelled",
    "ExecutionExpired",
    "ExecutionFailed",
    "ExecutionLogFilter",
    "ExecutionSkipped",
    "Fail",
    "FailureClass",
    "Flow",
    "FlowFabricError",
    "FlowRun",
    "HandlerExit",
    "Interrupted",
    "Limits",
    "Middleware",
    "Node",
    "NotFoundError",
    "OperatorOnly",
    "ResourceExhaustedError",
    "RestartRequired",
    "ResultError",
    "Retry",
    "RetryPolicy",
    "Run",
    "RunStream",
    "RunSummary",
    "Runtime",
    "Signal",
    "SignalAccepted",
    "SignalDuplicate",
    "SignalEffect",
    "SignalMatcher",
    "Single",
    "StateError",
    "StepFailed",
    "StreamItem",
    "StreamValue",
    "Submission",
    "SummaryWriter",
    "Suspend",
    "Task",
    "TaskContext",
    "TaskOptions",
    "TimeoutBehavior",
    "TimeoutOnly",
    "TransportError",
    "UnavailableError",
    "ValidationError",
    "ValuesDropped",
    "WaitChildren",
    "WaitTimedOut",
    "Worker",
    "WorkerSettings",
    "__version__",
    "chain",
    "chord",
    "current",
    "group",
    "step",
]

# The module of every public name.
_HOMES = {
    "AllOf": "engine.types.conditions",
    "Approval": "signals",
    "AttemptBegan": "stream",
    "AttemptEvent": "middleware",
    "BudgetLimitPassed": "stream",
    "Call": "task",
    "Cancel": "outcomes",
    "Child": "flow",
    "ChildFailed": "outcomes",
    "Client": "client",
    "Codec": "codec",
    "ConflictError": "engine.errors",
    "ContentionError": "engine.errors",
    "Count": "engine.types.conditions",
    "CountKind": "engine.types.conditions",
    "DecodingError": "codec",
    "Delay": "outcomes",
    "DurableCallError": "outcomes",
    "EncodingError": "codec",
    "EngineError": "engine.errors",
    "EngineTimeoutError": "engine.errors",
    "ExecutionCancelled": "outcomes",
    "ExecutionExpired": "outcomes",
    "ExecutionFailed": "outcomes",
    "ExecutionLogFilter": "_runtime.log_filter",
    "ExecutionSkipped": "outcomes",
    "Fail": "outcomes",
    "FailureClass": "engine.types.policies",
    "Flow": "flow",
    "FlowFabricError": "engine.errors",
    "FlowRun": "flow",
    "HandlerExit": "outcomes",
    "Interrupted": "outcomes",
    "Limits": "engine.limits",
    "Middleware": "middleware",
    "Node": "flow",
    "NotFoundError": "engine.errors",
    "OperatorOnly": "engine.types.conditions",
    "ResourceExhaustedError": "engine.errors",
    "RestartRequired": "runtime",
    "ResultError": "outcomes",
    "Retry": "outcomes",
    "RetryPolicy": "engine.types.policies",
    "Run": "run",
    "RunStream": "stream",
    "RunSummary": "stream",
    "Runtime": "runtime",
    "Signal": "signals",
    "SignalAccepted": "engine.types.suspension",
    "SignalDuplicate": "engine.types.suspension",
    "SignalEffect": "engine.types.suspension",
    "SignalMatcher": "engine.types.conditions",
    "Single": "engine.types.conditions",
    "StateError": "engine.errors",
    "StepFailed": "outcomes",
    "StreamItem": "stream",
    "StreamValue": "stream",
    "Submission": "task",
    "Suspend": "outcomes",
    "SummaryWriter": "context",
    "Task": "task",
    "TaskContext": "context",
    "TaskOptions": "_tasks.options",
    "TimeoutBehavior": "engine.types.suspension",
    "TimeoutOnly": "engine.types.conditions",
    "TransportError": "engine.errors",
    "UnavailableError": "engine.errors",
    "ValidationError": "engine.errors",
    "ValuesDropped": "stream",
    "WaitChildren": "outcomes",
    "WaitTimedOut": "outcomes",
    "Worker": "worker",
    "WorkerSettings": "config",
    "chain": "flow",
    "chord": "flow",
    "current": "context",
    "group": "flow",
    "step": "context",
}
# The public modules, which may be used as attributes of the package.
_MODULES = frozenset(
    {
        "client",
        "codec",
        "config",
        "context",
        "flow",
        "middleware",
        "outcomes",
        "run",
        "schedule",
        "signals",
        "task",
        "worker",
    }
)


# Type checkers must not see this function, or they accept every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name, or a public module, at its first use."""
        if name in _HOMES:
            value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        elif name in _MODULES:
            value = importlib.import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
