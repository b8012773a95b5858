"""Durable executions for Python: decorated functions that survive their workers."""

from flowfabric_worker._version import __version__
from flowfabric_worker.client import Client
from flowfabric_worker.codec import Codec, DecodingError, EncodingError
from flowfabric_worker.config import RunSettings
from flowfabric_worker.context import TaskContext, current
from flowfabric_worker.engine.errors import (
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
)
from flowfabric_worker.engine.limits import Limits
from flowfabric_worker.engine.types.policies import FailureClass, RetryPolicy
from flowfabric_worker.logs import RunFilter
from flowfabric_worker.middleware import Middleware, RunEvent
from flowfabric_worker.options import TaskOptions
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
from flowfabric_worker.runtime import Runtime, WornOut
from flowfabric_worker.task import Call, Run, Submission, Task
from flowfabric_worker.worker import Worker

__all__ = [
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
    "ExecutionSkipped",
    "Fail",
    "FailureClass",
    "HandlerExit",
    "Interrupted",
    "Limits",
    "Middleware",
    "NotFoundError",
    "ResourceExhaustedError",
    "ResultError",
    "Retry",
    "RetryPolicy",
    "Run",
    "RunEvent",
    "RunFilter",
    "RunSettings",
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
    "WornOut",
    "__version__",
    "current",
]
