"""Durable executions for Python: decorated functions that survive their workers."""

from flowfabric_worker._runtime.log_filter import ExecutionLogFilter
from flowfabric_worker._tasks.options import TaskOptions
from flowfabric_worker._version import __version__
from flowfabric_worker.client import Client
from flowfabric_worker.codec import Codec, DecodingError, EncodingError
from flowfabric_worker.config import WorkerSettings
from flowfabric_worker.context import TaskContext, current
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
from flowfabric_worker.engine.types.policies import FailureClass, RetryPolicy
from flowfabric_worker.middleware import AttemptEvent, Middleware
from flowfabric_worker.outcomes import (
    Cancel,
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
    WaitChildren,
)
from flowfabric_worker.runtime import RestartRequired, Runtime
from flowfabric_worker.task import Call, Run, Submission, Task
from flowfabric_worker.worker import Worker

__all__ = [
    "AttemptEvent",
    "Call",
    "Cancel",
    "Client",
    "Codec",
    "ConflictError",
    "ContentionError",
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
    "FlowFabricError",
    "HandlerExit",
    "Interrupted",
    "Limits",
    "Middleware",
    "NotFoundError",
    "ResourceExhaustedError",
    "RestartRequired",
    "ResultError",
    "Retry",
    "RetryPolicy",
    "Run",
    "Runtime",
    "StateError",
    "StepFailed",
    "Submission",
    "Task",
    "TaskContext",
    "TaskOptions",
    "TransportError",
    "UnavailableError",
    "ValidationError",
    "WaitChildren",
    "Worker",
    "WorkerSettings",
    "__version__",
    "current",
]
