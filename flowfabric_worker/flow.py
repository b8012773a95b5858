"""`Flow`, a graph of tasks that is submitted as a whole, and `FlowRun`, the handle of a submitted one."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from pickle import PicklingError
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, TypeVar, overload
from uuid import UUID, uuid5

import attrs

from flowfabric_worker._flows.children import Child
from flowfabric_worker._flows.compositions import Composition, Part, chain, chord, group
from flowfabric_worker._flows.nodes import Graph, Node, building, leaves_of
from flowfabric_worker.context import inside_handler
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import EngineTimeoutError, error_from_code
from flowfabric_worker.engine.ids import ExecutionId, FlowId, check_name, uuid7
from flowfabric_worker.engine.submission import check_tags
from flowfabric_worker.engine.suggestions import did_you_mean
from flowfabric_worker.engine.types.checks import as_dict, word
from flowfabric_worker.engine.types.feed import ExecutionOutcome
from flowfabric_worker.engine.types.flows import (
    CancelFlowPolicy,
    CancelFlowResult,
    CancelFlowWait,
    FlowEdge,
    FlowGraph,
    FlowNode,
    FlowSnapshot,
    FlowState,
)
from flowfabric_worker.engine.types.states import TerminalOutcome
from flowfabric_worker.outcomes import ResultError
from flowfabric_worker.run import Owner, Run, SubmittedTask, result_error, time_limit

if TYPE_CHECKING:
    from flowfabric_worker._flows.stored import StoredFlow

__all__ = ["Child", "Composition", "Flow", "FlowRun", "Node", "Part", "chain", "chord", "group"]

R = TypeVar("R")

PictureForm: TypeAlias = Literal["text", "mermaid", "svg"]

Results: TypeAlias = "str | list[Results] | dict[str, str]"
"""The keys of the nodes whose results a flow returns."""

# The flow ids that follow from keys are in this namespace of UUIDs.
_KEYS: Final = UUID("8e4d6e0c-5d0f-4f0e-9a55-2f6a1d0b7c11")


class Flow:
    """A graph of tasks, whose nodes are made in a `with` block. It may be submitted any number of times.

    Args:
        owner: the worker or client in whose store the flow runs.
        name: the name of the flow, for operators.
        key: an idempotency key: the same graph under the same key is submitted once.
        tags: names and values to find the flow by.

    Raises:
        ValidationError: the name, the key or a tag is not valid.
    """

    def __init__(
        self, owner: Owner, name: str, *, key: str | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        self.key = key if key is None else check_name(key, "a flow's key")
        self.tags = as_dict({} if tags is None else tags)
        check_tags(self.tags)
        self._graph = Graph(name)
        self._owner = owner
        self._returned: Any = None
        self._tokens: list[contextvars.Token[Graph | None]] = []

    def __repr__(self) -> str:
        return f"<Flow {self.name!r} with {len(self.nodes)} nodes>"

    @property
    def name(self) -> str:
        """The name of the flow."""
        return self._graph.name

    @property
    def nodes(self) -> Mapping[str, Node[Any]]:
        """The nodes by their keys, in the order in which they were made."""
        return MappingProxyType(self._graph.nodes)

    def __enter__(self) -> Self:
        self._tokens.append(building.set(self._graph))
        return self

    def __exit__(self, *_: object) -> None:
        building.reset(self._tokens.pop())

    def returns(self, result: Node[Any] | Sequence[Any]) -> None:
        """Set what `FlowRun.result()` returns: the result of a node, or a list of those of nodes, nested or not.

        Without this call it is the result of the node that no other depends on; if there are several, a dict of their
        results by key.

        Raises:
            TypeError: something else than nodes is given.
            ValidationError: `invalid_graph`, a node belongs to another flow.
        """
        self._graph.check_own(leaves_of(result, "returns()"))
        self._returned = result

    def submit(self) -> FlowRun:
        """Submit the flow, and return its handle. No node starts before the whole flow is stored.

        Raises:
            ConflictError: `conflict`, the flow's key was used for another graph.
            EngineError: the store refused the flow, or cannot be reached.
        """
        result = self._owner.engine.submit_flow(self._submitted())
        runs = {
            key: Run[Any](result.execution_ids[key], node._task, created=result.created)
            for key, node in self.nodes.items()
        }
        plan = Plan(runs=runs, results=self._results())
        return FlowRun(self._owner, result.flow_id, plan, created=result.created)

    def picture(self, form: PictureForm = "text") -> str:
        """Return a picture of the graph: "text", "mermaid" for a Mermaid flowchart, or "svg".

        SVG is laid out by graphviz if its program `dot` is installed, otherwise in simple layers.
        """
        # Import it here, because few applications draw pictures.
        from flowfabric_worker._flows.pictures import draw, drawing_of

        return draw(drawing_of(self._graph), form)

    def _submitted(self) -> FlowGraph:
        nodes = self.nodes.values()
        return FlowGraph(
            flow_id=self._flow_id(),
            kind=self.name,
            nodes=[FlowNode(key=node.key, execution=node._creation, policy=node._policy) for node in nodes],
            edges=[
                FlowEdge(upstream=parent.key, downstream=node.key, data_passing_ref=",".join(paths) or None)
                for node in nodes
                for parent, paths in node._parents.items()
            ],
            tags=self.tags,
        )

    def _flow_id(self) -> FlowId:
        if self.key is None:
            return FlowId(str(uuid7()))
        return FlowId(str(uuid5(_KEYS, "\0".join((self._owner.namespace, self.name, self.key)))))

    def _results(self) -> Results:
        """Return the keys of the nodes whose results the flow returns: one, a list, or a dict."""
        if self._returned is not None:
            return _keys_of(self._returned)
        return _one_or_dict([node.key for node in self._graph.last_nodes()])


def _one_or_dict(keys: Sequence[str]) -> Results:
    return keys[0] if len(keys) == 1 else dict(zip(keys, keys, strict=True))


def _keys_of(nodes: Any) -> Results:
    return nodes.key if isinstance(nodes, Node) else [_keys_of(each) for each in nodes]


@attrs.frozen(kw_only=True)
class Plan:
    """The executions of a flow by the keys of their nodes, and the keys whose results the flow returns."""

    runs: Mapping[str, Run[Any]]
    results: Results


class FlowRun:
    """The handle of a submitted flow.

    Attributes:
        id: the id of the flow.
        created: False if an earlier submission under the same key had created the flow.
    """

    def __init__(self, owner: Owner, flow_id: FlowId, plan: Plan | Callable[[], Plan], *, created: bool) -> None:
        self.id = flow_id
        self.created = created
        self._owner = owner
        self._engine = owner.engine
        self._given = plan

    @cached_property
    def _plan(self) -> Plan:
        return self._given if isinstance(self._given, Plan) else self._given()

    def __reduce__(self) -> tuple[Callable[..., FlowRun], tuple[object, FlowId, bool, Plan | None]]:
        # Restore the handle through the client, or through a task if it belongs to a worker, which cannot be pickled.
        plan = self._given if isinstance(self._given, Plan) else None
        source: object = self._owner
        if plan is not None and not hasattr(self._owner, "flow_run"):
            source = next((run._task for run in plan.runs.values()), None)
            if source is None:
                raise PicklingError(f"The flow {self.id} has no nodes, so its handle cannot be pickled: pickle its id.")
        return _restore_flow_run, (source, self.id, self.created, plan)

    def __repr__(self) -> str:
        return f"FlowRun({str(self.id)!r})"

    @overload
    def node(self, node: Node[R]) -> Run[R]: ...

    @overload
    def node(self, node: str) -> Run[Any]: ...

    def node(self, node: Node[Any] | str) -> Run[Any]:
        """Return the handle of the execution of a node.

        Args:
            node: a node of the flow, or its key.

        Raises:
            KeyError: the flow has no such node.
        """
        key = node if isinstance(node, str) else node.key
        runs = self._plan.runs
        if key not in runs:
            raise KeyError(f"The flow {self.id} has no node with the key {key!r}.{did_you_mean(key, runs)}")
        return runs[key]

    def result(self, timeout: float | timedelta | None = None) -> Any:
        """Wait for the result of the flow, and return it; see `Flow.returns` for what it is.

        Args:
            timeout: seconds, or a timedelta; None to wait without a limit.

        Raises:
            ExecutionFailed, ExecutionCancelled, ExecutionExpired: a node did not succeed, and what the flow returns
                depends on it, or the flow has failed because of it. The error names the node, and is raised at once.
            EngineTimeoutError: the flow did not end in time; it continues.
            RuntimeError: the call was made inside a handler, where it would block a handler thread.
        """
        if inside_handler():
            raise RuntimeError(
                "result() inside a handler would block its thread, and a worker whose threads all wait cannot make "
                "progress: let a node take the results."
            )
        limit = time_limit(timeout)
        deadline = None if limit is None else monotonic() + limit.total_seconds()
        runs = {key: self._plan.runs[key] for key in _flat(self._plan.results)}
        self._wait(list(runs.values()), deadline)
        snapshot = self.describe()
        if snapshot is not None and snapshot.state is FlowState.FAILED and snapshot.failed_execution_ids:
            raise self._error(snapshot.failed_execution_ids[0])
        values = {key: run.result() for key, run in runs.items()}
        return _filled(self._plan.results, values)

    def _wait(self, runs: list[Run[Any]], deadline: float | None) -> None:
        """Wait until executions have succeeded.

        Raises:
            ResultError: one of them did not succeed; it is not waited for the others.
            EngineTimeoutError: the deadline has passed.
        """
        while runs:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            # Look at the others from time to time, because one of them may have failed.
            limit = left if len(runs) == 1 else min(_LOOK_AFTER, _LOOK_AFTER if left is None else left)
            try:
                outcome = self._engine.wait_for_result(runs[0].id, None if limit is None else timedelta(seconds=limit))
            except EngineTimeoutError:
                if left is not None and left <= (limit or 0.0):
                    raise
                runs = [run for run in runs[1:] if not self._has_succeeded(run)] + runs[:1]
                continue
            self._check(outcome)
            runs = runs[1:]

    def _has_succeeded(self, run: Run[Any]) -> bool:
        outcome = self._engine.read_outcome(run.id)
        if outcome is not None:
            self._check(outcome)
        return outcome is not None

    def _check(self, outcome: ExecutionOutcome) -> None:
        if outcome.outcome is not TerminalOutcome.SUCCESS:
            raise self._error(outcome.execution_id)

    def _error(self, execution_id: ExecutionId) -> ResultError:
        """Return the error of an execution, or of the one because of which it was skipped, with the node's name."""
        outcome = self._engine.wait_for_result(execution_id)
        for _ in range(_MOST_SKIPPED):
            cause = cause_of(outcome)
            if cause is None:
                break
            outcome = self._engine.wait_for_result(cause)
        error = result_error(outcome)
        key = next((key for key, run in self._plan.runs.items() if run.id == outcome.execution_id), "")
        return type(error)(error.execution_id, f"the node {key!r}: {error.reason}", error.detail)

    def describe(self) -> FlowSnapshot | None:
        """Return the present state of the flow, with how many nodes are in which state; None if it does not exist."""
        return self._engine.describe_flow(self.id)

    def state(self) -> FlowState | None:
        """Return the present state of the flow; None if its retention is over."""
        snapshot = self.describe()
        return None if snapshot is None else snapshot.state

    def picture(self, form: PictureForm = "text") -> str:
        """Return a picture of the flow with the present states of its nodes; see `Flow.picture`.

        Raises:
            NotFoundError: `flow_not_found`, its retention is over.
        """
        from flowfabric_worker._flows.pictures import draw

        return draw(_stored(self._engine, self.id).drawing(), form)

    def cancel(
        self,
        reason: str | None = None,
        *,
        policy: CancelFlowPolicy | str = CancelFlowPolicy.CANCEL_ALL,
        wait: float | timedelta | None = 0,
    ) -> CancelFlowResult:
        """Cancel the flow; members that have ended do not change.

        Args:
            reason: why, for operators.
            policy: "cancel_all" to cancel every member, "cancel_pending" to let those run that a worker holds, or
                "flow_only" to let all run.
            wait: how long to wait until the cancelled members have ended, in seconds or as a timedelta; None to wait
                without a limit.

        Raises:
            NotFoundError: `flow_not_found`.
            StateError: `flow_already_terminal`, the flow has completed or failed.
            EngineTimeoutError: the members have not ended in time; the cancellation continues.
        """
        limit = timedelta(seconds=wait) if isinstance(wait, int | float) else wait
        chosen = word(CancelFlowPolicy, policy, "policy")
        return self._engine.cancel_flow(self.id, chosen, CancelFlowWait(limit), reason)


def _restore_flow_run(source: Any, flow_id: FlowId, created: bool, plan: Plan | None) -> FlowRun:
    """Restore a pickled handle from its client, or from the task of a node."""
    if plan is None:
        run: FlowRun = source.flow_run(flow_id)
        return run
    return FlowRun(source if hasattr(source, "flow_run") else source.owner, flow_id, plan, created=created)


def reopen(owner: Owner, flow_id: FlowId, task: SubmittedTask) -> FlowRun:
    """Return the handle of a stored flow.

    Args:
        owner: the client whose store has the flow.
        flow_id: the flow.
        task: decodes the results of all members.
    """

    def plan() -> Plan:
        stored = _stored(owner.engine, flow_id)
        runs = {key: Run[Any](each.summary.execution_id, task, created=False) for key, each in stored.members.items()}
        return Plan(runs=runs, results=_one_or_dict(stored.last()))

    return FlowRun(owner, flow_id, plan, created=False)


def _stored(engine: EngineBackend, flow_id: FlowId) -> StoredFlow:
    # Import it here, because few applications read flows.
    from flowfabric_worker._flows.stored import read_flow

    stored = read_flow(engine, flow_id)
    if stored is None:
        raise error_from_code("flow_not_found", (flow_id,))
    return stored


# Seconds after which a wait for one of several nodes looks at the others.
_LOOK_AFTER: Final = 0.5
# The most skipped nodes that are passed on the way to the one that failed.
_MOST_SKIPPED: Final = 1000


def cause_of(outcome: ExecutionOutcome) -> ExecutionId | None:
    """Return the execution because of which another was skipped; None if it was not skipped."""
    if outcome.outcome is not TerminalOutcome.SKIPPED or outcome.error is None:
        return None
    word_, _, cause = outcome.error.partition(" ")
    return ExecutionId.parse(cause) if word_ == "dependency_impossible" and cause else None


def _flat(results: Results) -> list[str]:
    """Return the keys of nodes, each once."""
    if isinstance(results, str):
        return [results]
    each = results.values() if isinstance(results, dict) else results
    return list(dict.fromkeys(key for one in each for key in _flat(one)))


def _filled(results: Results, values: Mapping[str, Any]) -> Any:
    if isinstance(results, str):
        return values[results]
    if isinstance(results, dict):
        return {name: values[key] for name, key in results.items()}
    return [_filled(each, values) for each in results]
