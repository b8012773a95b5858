"""The options of nodes and children: `after`, `need`, `others` and `detached`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, Self

import attrs

from flowfabric_worker._flows.nodes import Node, leaves_of
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.types import checks
from flowfabric_worker.engine.types.edges import AllEnded, AllOf, AnyOf, EdgeDependencyPolicy, OnSatisfied, Quorum

Need = Literal["all", "ended"] | int
Others = Literal["run", "cancel"]

OPTIONS: Final = frozenset({"after", "need", "others", "detached"})
_OTHERS: Final = {"run": OnSatisfied.LET_RUN, "cancel": OnSatisfied.CANCEL_REMAINING}


def _nodes(value: Any) -> tuple[Node[Any], ...]:
    found = (value,) if isinstance(value, Node) else tuple(value) if isinstance(value, Iterable) else None
    if found is None:
        raise TypeError(f"after= takes nodes, not {value!r:.100}.")
    return tuple(leaves_of(list(found), "after="))


def _need(_: object, __: object, value: object) -> None:
    if value in ("all", "ended") or (type(value) is int and value >= 1):
        return
    raise ValidationError("invalid_input", f'need= is "all", "ended" or a number of nodes from 1, not {value!r}.')


@attrs.frozen(kw_only=True)
class Placement:
    """How a node depends on others, or a child on its parent.

    Attributes:
        after: nodes that it waits for without taking their results.
        need: how many of its parents must succeed: "all", or a number; "ended" if all must end, in whatever way.
        others: what becomes of the other parents once enough have succeeded, or can no longer: "run" or "cancel".
        detached: True for a child that is not cancelled with its parent.
    """

    after: tuple[Node[Any], ...] = attrs.field(default=(), converter=_nodes)
    need: Need = attrs.field(default="all", validator=_need)
    others: Others = attrs.field(default="run", validator=checks.one_of(*_OTHERS))
    detached: bool = attrs.field(default=False, validator=checks.true_or_false)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """Return the placement with those of the changes that belong to it."""
        return attrs.evolve(self, **{name: value for name, value in changes.items() if name in OPTIONS})

    def check_used(self, use: str, *allowed: str) -> None:
        """Refuse options that have no meaning for a use, such as `submit()`.

        Raises:
            TypeError: the message names them.
        """
        if self is ANYWHERE:
            return
        wrong = [
            name for name in sorted(OPTIONS) if name not in allowed and getattr(self, name) != getattr(ANYWHERE, name)
        ]
        if wrong:
            whose = "children, which spawn() makes" if "detached" in wrong else "nodes, which node() makes"
            raise TypeError(f"{use} takes no {'=, '.join(wrong)}=: that is an option of {whose}.")

    def check_parents(self, count: int, key: str) -> None:
        """Refuse a placement that the number of parents cannot meet.

        Raises:
            ValidationError: `invalid_graph`.
        """
        if isinstance(self.need, int) and self.need > count:
            raise ValidationError(
                "invalid_graph", f"The node {key!r} has need={self.need}, and only {count} parents: lower the number."
            )

    def may_miss(self, count: int) -> bool:
        """Return True if a node with that many parents may run without the results of some."""
        return isinstance(self.need, int) and self.need < count

    def policy(self) -> EdgeDependencyPolicy:
        """Return what the engine is told."""
        others = _OTHERS[self.others]
        if self.need == "all":
            return AllOf(others)
        if self.need == "ended":
            return AllEnded()
        return AnyOf(others) if self.need == 1 else Quorum(self.need, others)


ANYWHERE: Final = Placement()
