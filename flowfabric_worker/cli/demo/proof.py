"""The proof of the demo, which compares the submitted executions with the feed of completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Set

import attrs

from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.reads import ExecutionInfo
from flowfabric_worker.engine.types.states import TerminalOutcome


@attrs.frozen(kw_only=True)
class Submitted:
    """The executions of one kind, and their expected outcome."""

    name: str
    expected: TerminalOutcome
    ids: Collection[ExecutionId]


@attrs.frozen(kw_only=True)
class Ended:
    """One entry of the feed."""

    execution_id: ExecutionId
    outcome: TerminalOutcome


@attrs.frozen(kw_only=True)
class KindProof:
    """The results of one kind: numbers of executions, except `retries`.

    Attributes:
        twice: executions that ended more than once.
        missing: executions that did not end.
        otherwise: executions whose outcome was not the expected one.
        retries: attempts that were made after a failure.
        rerun: executions that ran again because their worker was lost.
    """

    name: str
    submitted: int
    completed: int
    failed: int
    twice: int
    missing: int
    otherwise: int
    retries: int
    rerun: int


@attrs.frozen(kw_only=True)
class Proof:
    """The result of the demo.

    Attributes:
        interrupted: the number of executions that the killed worker held.
        left: the number of those that did not run again.
    """

    kinds: tuple[KindProof, ...]
    interrupted: int
    left: int

    @property
    def submitted(self) -> int:
        """The number of submitted executions."""
        return sum(kind.submitted for kind in self.kinds)

    @property
    def holds(self) -> bool:
        """Whether every execution ended exactly once as expected, and every interrupted one ran again."""
        return not any(self.objections())

    def objections(self) -> Iterator[str]:
        """Yield a sentence for each fact that contradicts the proof."""
        for kind in self.kinds:
            if kind.twice:
                yield f"{kind.twice} of {kind.name} ended more than once."
            if kind.missing:
                yield f"{kind.missing} of {kind.name} did not end."
            if kind.otherwise:
                yield f"{kind.otherwise} of {kind.name} had an unexpected outcome."
        if not self.interrupted:
            yield "The killed worker held no executions."
        if self.left:
            yield f"{self.left} executions of the killed worker did not run again."


def prove(
    submitted: Iterable[Submitted],
    ended: Iterable[Ended],
    infos: Mapping[ExecutionId, ExecutionInfo],
    interrupted: Set[ExecutionId],
) -> Proof:
    """Compare the submitted executions with the ends in the feed.

    Args:
        submitted: every execution of the demo, by kind.
        ended: the entries of the feed, from before the first submission until after the end of the last worker.
        infos: the present state of each execution in the store.
        interrupted: the executions that the killed worker held when it died.
    """
    ends = list(ended)
    times = Counter(end.execution_id for end in ends)
    outcomes = {end.execution_id: end.outcome for end in ends}
    rerun = {identity for identity, info in infos.items() if info.reclaim_count}

    kinds = tuple(_prove_kind(kind, times, outcomes, infos) for kind in submitted)
    return Proof(kinds=kinds, interrupted=len(interrupted), left=len(interrupted - rerun))


def _prove_kind(
    kind: Submitted,
    times: Counter[ExecutionId],
    outcomes: Mapping[ExecutionId, TerminalOutcome],
    infos: Mapping[ExecutionId, ExecutionInfo],
) -> KindProof:
    found = [outcomes[identity] for identity in kind.ids if identity in outcomes]
    known = [infos[identity] for identity in kind.ids if identity in infos]
    return KindProof(
        name=kind.name,
        submitted=len(kind.ids),
        completed=found.count(TerminalOutcome.SUCCESS),
        failed=found.count(TerminalOutcome.FAILED),
        twice=sum(times[identity] > 1 for identity in kind.ids),
        missing=sum(times[identity] == 0 for identity in kind.ids),
        otherwise=sum(outcome is not kind.expected for outcome in found),
        retries=sum(info.retry_count for info in known),
        rerun=sum(info.reclaim_count > 0 for info in known),
    )
