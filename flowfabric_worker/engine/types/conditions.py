"""The conditions under which signals resume a suspended execution."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, TypeAlias

import attrs
from attrs.validators import optional

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.types import checks

# The category of the signals that are decisions, and the names of decisions.
APPROVAL: Final = "approval"
APPROVED: Final = "approved"
REJECTED: Final = "rejected"


class MatchRule(StrEnum):
    """How a `SignalMatcher` chooses: by its name, by the waitpoint's own name or a decision, or by a decision alone."""

    NAME = "name"
    OWN_NAME = "own_name"
    DECISION = "decision"


@attrs.frozen
class SignalMatcher:
    """Choose the signals that count.

    Attributes:
        name: the name of the signals that count; None for every name.
        rule: `own_name` if a signal counts that is named as its waitpoint, and a decision by whatever name; `decision`
            if only a decision counts. Then there is no name.
    """

    name: str | None = attrs.field(default=None, validator=optional(checks.name))
    rule: MatchRule = attrs.field(default=MatchRule.NAME, converter=MatchRule, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.name is not None and self.rule is not MatchRule.NAME:
            raise ValidationError("invalid_input", f"A SignalMatcher has a name or rule={self.rule}, not both.")

    def accepts(self, name: str, waitpoint_key: str, category: str) -> bool:
        """Return True if a signal of that name and category counts at a waitpoint."""
        match self.rule:
            case MatchRule.NAME:
                return self.name is None or self.name == name
            case MatchRule.OWN_NAME:
                return name == waitpoint_key or category == APPROVAL
            case MatchRule.DECISION:
                return category == APPROVAL


ANY_SIGNAL = SignalMatcher()
OWN_NAME = SignalMatcher(rule=MatchRule.OWN_NAME)
DECISION = SignalMatcher(rule=MatchRule.DECISION)


class CountKind(StrEnum):
    """What a `Count` counts."""

    WAITPOINTS = "waitpoints"
    SIGNALS = "signals"
    SOURCES = "sources"


@attrs.frozen
class Single:
    """Met by one matching signal at one waitpoint."""

    waitpoint_key: str = attrs.field(validator=checks.name)
    matcher: SignalMatcher = ANY_SIGNAL


@attrs.frozen
class OperatorOnly:
    """Met by no signal: only an operator or the timeout resumes the execution."""


@attrs.frozen
class TimeoutOnly:
    """Met by no signal: only the timeout resumes the execution, so the suspension must have one."""


@attrs.frozen
class AllOf:
    """Met when every member is met; a signal may count for several members."""

    members: tuple[ResumeCondition, ...] = attrs.field(converter=checks.as_tuple)


@attrs.frozen(kw_only=True)
class Count:
    """Met by `n` different waitpoints, signals or sources among the matching signals at these waitpoints.

    Several Counts in one condition count independently.
    """

    n: int
    kind: CountKind
    waitpoint_keys: tuple[str, ...] = attrs.field(converter=checks.as_tuple, validator=checks.names)
    matcher: SignalMatcher = ANY_SIGNAL


ResumeCondition: TypeAlias = Single | OperatorOnly | TimeoutOnly | AllOf | Count
