"""The waits of handlers: the suspension that `wait_for` needs, and the record of the end of a wait in the journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, Self

import attrs

from flowfabric_worker._steps.durable_calls import RESERVED, check_durable_name
from flowfabric_worker.codec import DecodingError, check_annotation, decode_value
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.types.conditions import (
    APPROVAL,
    DECISION,
    OWN_NAME,
    AllOf,
    Count,
    CountKind,
    ResumeCondition,
    Single,
)
from flowfabric_worker.engine.types.suspension import (
    ResumeReason,
    ResumeSignal,
    SuspensionReason,
    TimeoutBehavior,
    WaitpointBinding,
)
from flowfabric_worker.engine.wire import DAMAGE, optional, pack, read_optional, unpack
from flowfabric_worker.outcomes import DurableCallError, Suspend, WaitTimedOut
from flowfabric_worker.signals import Approval, approval_of, encode_payload

# The prefix of the names under which the journal has the ends of waits; the first awaited name follows.
WAIT: Final = f"{RESERVED}wait "
# Stands for a default that was not given.
NO_DEFAULT: Final = object()


def encode_shown(name: str, shown: Any) -> bytes | None:
    """Encode the document that is shown with a waitpoint."""
    return encode_payload(shown, f"The document that the waitpoint {name!r} shows")


@attrs.frozen(kw_only=True)
class Answer:
    """The first signal that counted at a waitpoint."""

    category: str
    name: str
    by: str
    payload: bytes | None

    def decoded(self, waitpoint: str, annotation: Any) -> Any:
        """Return the payload by its annotation, or the decision.

        Raises:
            DecodingError: the payload is of another kind.
        """
        if self.category == APPROVAL:
            return approval_of(self.name, self.by, self.payload)
        if annotation is Approval:
            raise DecodingError(f"The signal {waitpoint!r} is not a decision: {self.by} sent it with Client.signal.")
        return decode_value(self.payload, annotation, f"The payload of the signal {waitpoint!r}")


@attrs.frozen(kw_only=True)
class WaitEnd:
    """The end of a wait.

    Attributes:
        reason: what ended it.
        answers: the answers that came, by the name of their waitpoints.
    """

    reason: ResumeReason
    answers: Mapping[str, Answer]

    @classmethod
    def of(cls, reason: ResumeReason, signals: Iterable[ResumeSignal]) -> Self:
        """Return the end of a wait with these signals, in their order; the first signal of each waitpoint counts."""
        answers: dict[str, Answer] = {}
        for each in signals:
            if each.matched and each.waitpoint_key not in answers:
                answers[each.waitpoint_key] = Answer(
                    category=each.category, name=each.name, by=each.source.identity, payload=each.payload
                )
        return cls(reason=reason, answers=answers)

    def encode(self) -> bytes:
        parts: list[str | bytes] = [self.reason.value]
        for waitpoint, each in self.answers.items():
            parts += [waitpoint, each.category, each.name, each.by, optional(each.payload)]
        return pack(parts)

    @classmethod
    def decode(cls, data: bytes, name: str) -> Self:
        """Decode a record of the journal.

        Raises:
            DecodingError: the record is damaged.
        """
        try:
            reason, *parts = unpack(data)
            answers = {
                waitpoint.decode(): Answer(
                    category=category.decode(), name=kind.decode(), by=by.decode(), payload=read_optional(payload)
                )
                for waitpoint, category, kind, by, payload in zip(*(iter(parts),) * 5, strict=True)
            }
            return cls(reason=ResumeReason(reason.decode()), answers=answers)
        except DAMAGE as damage:
            raise DecodingError(f"The record of the wait for {name!r} is damaged: {damage}.") from damage


@attrs.frozen(kw_only=True)
class Wait:
    """What a handler waits for.

    Attributes:
        names: the names of the waitpoints.
        is_single: True if the handler gave one name and gets its payload; otherwise it gets a dict.
        need: the number of names that must be answered.
        timeout: how long the handler waits; None to wait without a limit.
        annotation: how payloads are decoded; or a mapping of names to that.
        shown: the document that each waitpoint shows; None for none.
    """

    names: tuple[str, ...]
    is_single: bool
    need: int
    timeout: timedelta | None
    annotation: Any
    shown: bytes | None

    @classmethod
    def of(
        cls, name: str | Sequence[str], need: int | None, timeout: timedelta | None, annotation: Any, shown: Any
    ) -> Self:
        """Check the arguments of `wait_for`.

        Raises:
            DurableCallError: an argument is not allowed.
            EncodingError: the document cannot be encoded.
        """
        names = (name,) if isinstance(name, str) else tuple(name)
        try:
            for each in names:
                check_durable_name(each, "waitpoint")
                check_annotation(_of_name(annotation, each), f"The payload of the signal {each!r}")
            if timeout is not None:
                milliseconds(timeout, "timeout")
            document = encode_shown(", ".join(names), shown)
        except (TypeError, ValidationError) as error:
            raise DurableCallError(f"wait_for({name!r:.100}): {error}") from error
        if len(set(names)) < len(names):
            raise DurableCallError(f"wait_for() got a name twice: {', '.join(map(repr, names))}.")
        if isinstance(annotation, Mapping) and (unknown := annotation.keys() - set(names)):
            raise DurableCallError(f"type= has names that are not waited for: {', '.join(map(repr, sorted(unknown)))}.")
        needed = len(names) if need is None else need
        if isinstance(needed, bool) or not isinstance(needed, int) or not min(1, len(names)) <= needed <= len(names):
            raise DurableCallError(f"need= must be 1 to {len(names)}, the number of names, not {need!r}.")
        return cls(
            names=names,
            is_single=isinstance(name, str),
            need=needed,
            timeout=timeout,
            annotation=annotation,
            shown=document,
        )

    def suspend(self) -> Suspend:
        """Return the exit by which the handler waits.

        Raises:
            DurableCallError: the wait is too large.
        """
        about_approval = self.shown is not None or self.annotation is Approval
        try:
            exit_ = Suspend(
                self._condition(),
                timeout=self.timeout,
                on_timeout=TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL,
                reason=SuspensionReason.WAITING_FOR_APPROVAL if about_approval else SuspensionReason.WAITING_FOR_SIGNAL,
            )
            bindings = [WaitpointBinding(waitpoint_key=each, shown=self.shown) for each in self.names]
            exit_.request = attrs.evolve(exit_.request, waitpoints=bindings, continuation=WAIT + self.names[0])
        except ValidationError as error:
            raise DurableCallError(f"The wait for {', '.join(map(repr, self.names))} is not valid: {error}") from error
        return exit_

    def _condition(self) -> ResumeCondition:
        matchers = [DECISION if _of_name(self.annotation, each) is Approval else OWN_NAME for each in self.names]
        if self.need == len(self.names):
            members = [Single(*each) for each in zip(self.names, matchers, strict=True)]
            return members[0] if self.is_single else AllOf(members)
        # One matcher serves all names of a count.
        matcher = OWN_NAME if OWN_NAME in matchers else DECISION
        return Count(n=self.need, kind=CountKind.WAITPOINTS, waitpoint_keys=self.names, matcher=matcher)

    def result(self, end: WaitEnd, default: Any) -> Any:
        """Return what `wait_for` returns.

        Args:
            end: the end of the wait.
            default: what is returned if too few answers came in time; `NO_DEFAULT` to raise.

        Raises:
            WaitTimedOut: too few answers came in time, and there is no default.
            DecodingError: a payload is of another kind.
            DurableCallError: the code has changed, and now waits for more answers.
        """
        values = {
            each: end.answers[each].decoded(each, _of_name(self.annotation, each))
            for each in self.names
            if each in end.answers
        }
        if len(values) < self.need:
            if end.reason is ResumeReason.SIGNAL:
                raise DurableCallError(
                    f"The wait for {', '.join(map(repr, self.names))} ended in an earlier run, when it was for fewer "
                    "answers: wait for the others in another call."
                )
            if default is not NO_DEFAULT:
                return default
            raise WaitTimedOut(self.names, values, end.reason.value)
        return values[self.names[0]] if self.is_single else values


def _of_name(annotation: Any, name: str) -> Any:
    """Return the annotation of one name; those of several names may be a mapping."""
    return annotation.get(name, Any) if isinstance(annotation, Mapping) else annotation
