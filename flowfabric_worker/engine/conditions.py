"""The meaning of resume conditions, their validation, and their encoding for stored functions.

`evaluate` defines the meaning; the stored functions agree with it for every condition and every set of signals.

A condition is encoded as a flat list of words in postfix order. Each node is its operator followed by its operands; an
`all_of` comes after its members and says how many of the results before it belong to it:

    single <waitpoint key> <name>
    operator_only
    timeout_only
    count <n> <kind> <name> <number of keys> <waitpoint key>...
    all_of <number of members>

A name is empty if every name counts. It is a tab if the waitpoint's own name counts, and decisions, and a line feed if
only decisions count; no name contains such characters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias, TypeVar

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.limits import MAX_CONDITION_BYTES, MAX_CONDITION_DEPTH, MAX_WAITPOINTS, Limits
from flowfabric_worker.engine.types.conditions import (
    ANY_SIGNAL,
    APPROVED,
    DECISION,
    OWN_NAME,
    REJECTED,
    AllOf,
    Count,
    CountKind,
    OperatorOnly,
    ResumeCondition,
    SignalMatcher,
    Single,
    TimeoutOnly,
)
from flowfabric_worker.engine.types.suspension import SignalSource

Leaf: TypeAlias = Single | Count

_ROOT = "the root"
_DEFAULT_LIMITS = Limits()
# How matchers without a name are written.
_SPECIAL = {"": ANY_SIGNAL, "\t": OWN_NAME, "\n": DECISION}
_WRITTEN = {matcher: word for word, matcher in _SPECIAL.items()}


class SignalLike(Protocol):
    """The part of a signal that conditions depend on."""

    @property
    def signal_id(self) -> str: ...
    @property
    def waitpoint_key(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def category(self) -> str: ...
    @property
    def source(self) -> SignalSource: ...


_Signal = TypeVar("_Signal", bound=SignalLike)

# ── Meaning ──


def evaluate(condition: ResumeCondition, signals: Sequence[SignalLike]) -> bool:
    """Return True if these signals meet the condition.

    Order and repetition do not matter, and a condition that is met stays met with more signals.
    """
    match condition:
        case Single():
            return any(_accepts(condition, signal) for signal in signals)
        case Count():
            identity = _IDENTITIES[condition.kind]
            return len({identity(signal) for signal in signals if _accepts(condition, signal)}) >= condition.n
        case AllOf():
            return all(evaluate(member, signals) for member in condition.members)
        case OperatorOnly() | TimeoutOnly():
            return False


def matching_signals(condition: ResumeCondition, signals: Sequence[_Signal]) -> list[_Signal]:
    """Return the signals that count somewhere in the condition, in the given order."""
    leaves = list(_leaves(condition))
    return [signal for signal in signals if any(_accepts(leaf, signal) for leaf in leaves)]


def referenced_waitpoint_keys(condition: ResumeCondition) -> tuple[str, ...]:
    """Return the keys of the waitpoints that the condition names, each once, in the order of first mention."""
    return tuple(dict.fromkeys(key for leaf in _leaves(condition) for key in _keys(leaf)))


def required_names(condition: ResumeCondition, waitpoint_key: str) -> tuple[str, ...]:
    """Return the names of the signals that count at a waitpoint, sorted; empty if any name counts, or none."""
    matchers = [leaf.matcher for leaf in _leaves(condition) if waitpoint_key in _keys(leaf)]
    names: set[str | None] = set()
    for matcher in matchers:
        if matcher == DECISION:
            names |= {APPROVED, REJECTED}
        else:
            names.add(waitpoint_key if matcher == OWN_NAME else matcher.name)
    return () if None in names else tuple(sorted(name for name in names if name is not None))


def _accepts(leaf: Leaf, signal: SignalLike) -> bool:
    key = signal.waitpoint_key
    return key in _keys(leaf) and leaf.matcher.accepts(signal.name, key, signal.category)


def _keys(leaf: Leaf) -> tuple[str, ...]:
    return (leaf.waitpoint_key,) if isinstance(leaf, Single) else leaf.waitpoint_keys


def _leaves(condition: ResumeCondition) -> Iterator[Leaf]:
    match condition:
        case Single() | Count():
            yield condition
        case AllOf():
            for member in condition.members:
                yield from _leaves(member)


_IDENTITIES: dict[CountKind, Callable[[SignalLike], object]] = {
    CountKind.WAITPOINTS: lambda signal: signal.waitpoint_key,
    CountKind.SIGNALS: lambda signal: signal.signal_id,
    CountKind.SOURCES: lambda signal: signal.source,
}

# ── Validation ──


def validate(
    condition: ResumeCondition,
    waitpoint_keys: Sequence[str],
    *,
    has_timeout: bool = True,
    limits: Limits = _DEFAULT_LIMITS,
) -> None:
    """Refuse a condition that can never be met, or that does not match the waitpoints of its suspension.

    Args:
        condition: the condition.
        waitpoint_keys: the keys of the suspension's waitpoints. A condition must name each of them; OperatorOnly and
            TimeoutOnly name none, and allow any.
        has_timeout: whether the suspension has a timeout.
        limits: give the number of signals that an execution accepts.

    Raises:
        ValidationError: `invalid_condition`; the message and the detail `path` name the node.
    """
    for path, node in _nodes(condition):
        _check_node(node, path, limits)
    if isinstance(condition, TimeoutOnly) and not has_timeout:
        raise _unfit(_ROOT, "TimeoutOnly needs a timeout, which the suspension does not have")
    _check_bindings(referenced_waitpoint_keys(condition), waitpoint_keys)
    size = sum(len(word.encode()) + 1 for word in to_postfix(condition))
    if size > MAX_CONDITION_BYTES:
        raise _unfit(_ROOT, f"it takes {size} bytes; at most {MAX_CONDITION_BYTES} are allowed")


def _nodes(condition: object, path: str = _ROOT, depth: int = 0) -> Iterator[tuple[str, object]]:
    """Yield every node with its path, members after their AllOf; raise where the nesting is too deep."""
    depth += isinstance(condition, AllOf | Count)
    if depth > MAX_CONDITION_DEPTH:
        raise _unfit(path, f"conditions may be nested at most {MAX_CONDITION_DEPTH} deep")
    yield path, condition
    if isinstance(condition, AllOf):
        inside = "" if path == _ROOT else f"{path}."
        for index, member in enumerate(condition.members):
            yield from _nodes(member, f"{inside}members[{index}]", depth)


def _check_node(node: object, path: str, limits: Limits) -> None:
    match node:
        case Single(matcher=SignalMatcher()):
            pass
        case Count(matcher=SignalMatcher(), kind=CountKind()):
            _check_count(node, path, limits)
        case AllOf():
            if not node.members:
                raise _unfit(path, "an AllOf needs a member")
        case OperatorOnly() | TimeoutOnly():
            if path != _ROOT:
                raise _unfit(path, f"no signal meets {type(node).__name__}, so the AllOf around it can never be met")
        case Single() | Count():
            raise _unfit(path, f"a {type(node).__name__} needs a SignalMatcher, and a Count a CountKind too")
        case _:
            raise _unfit(path, f"{type(node).__name__} is not a condition")


def _check_count(node: Count, path: str, limits: Limits) -> None:
    if not isinstance(node.n, int) or isinstance(node.n, bool) or node.n < 1:
        raise _unfit(path, "the n of a Count must be an int of at least 1")
    if not node.waitpoint_keys:
        raise _unfit(path, "a Count needs a waitpoint")
    waitpoints = len(set(node.waitpoint_keys))
    if node.kind is CountKind.WAITPOINTS and node.n > waitpoints:
        raise _unfit(path, f"a Count of {node.n} waitpoints has only {waitpoints}")
    if node.n > limits.signals_per_execution:
        raise _unfit(path, f"an execution accepts only {limits.signals_per_execution} signals")


def _check_bindings(referenced: Sequence[str], bound: Sequence[str]) -> None:
    if len(bound) > MAX_WAITPOINTS:
        raise _unfit(_ROOT, f"a suspension may have at most {MAX_WAITPOINTS} waitpoints")
    if twice := [key for key in bound if bound.count(key) > 1]:
        raise _unfit(_ROOT, f"two waitpoints have the key {twice[0]!r}")
    if missing := [key for key in referenced if key not in bound]:
        raise _unfit(_ROOT, f"no waitpoint has the key {missing[0]!r}")
    if referenced and (idle := [key for key in bound if key not in referenced]):
        raise _unfit(_ROOT, f"it does not name the waitpoint {idle[0]!r}")


def _unfit(path: str, why: str) -> ValidationError:
    return ValidationError("invalid_condition", f"The resume condition is not valid at {path}: {why}.", path=path)


# ── Encoding ──


def to_postfix(condition: ResumeCondition) -> list[str]:
    """Encode a condition as words, in one canonical form."""
    match condition:
        case Single():
            return ["single", condition.waitpoint_key, _name_of(condition.matcher)]
        case OperatorOnly():
            return ["operator_only"]
        case TimeoutOnly():
            return ["timeout_only"]
        case Count():
            keys = condition.waitpoint_keys
            return [
                "count",
                str(condition.n),
                condition.kind.value,
                _name_of(condition.matcher),
                str(len(keys)),
                *keys,
            ]
        case AllOf():
            words = [word for member in condition.members for word in to_postfix(member)]
            return [*words, "all_of", str(len(condition.members))]


def from_postfix(words: Sequence[str]) -> ResumeCondition:
    """Decode a condition from the words of `to_postfix`.

    Raises:
        ValidationError: `corruption`, the words do not encode a condition.
    """
    reader = iter(words)
    done: list[ResumeCondition] = []
    try:
        for operator in reader:
            done.append(_read_node(operator, reader, done))
        (condition,) = done
    except (StopIteration, ValueError, ValidationError) as error:
        raise ValidationError("corruption", "A stored resume condition is damaged.", field="condition") from error
    return condition


def _read_node(operator: str, reader: Iterator[str], done: list[ResumeCondition]) -> ResumeCondition:
    """Read the operands of one node; an `all_of` takes its members from the end of `done`."""
    match operator:
        case "single":
            return Single(next(reader), _matcher_of(next(reader)))
        case "operator_only":
            return OperatorOnly()
        case "timeout_only":
            return TimeoutOnly()
        case "count":
            n, kind, name = _number(next(reader)), CountKind(next(reader)), next(reader)
            keys = [next(reader) for _ in range(_number(next(reader)))]
            return Count(n=n, kind=kind, matcher=_matcher_of(name), waitpoint_keys=keys)
        case "all_of":
            first = len(done) - _number(next(reader))
            if first < 0:
                raise ValueError("an all_of takes more members than there are before it")
            members = done[first:]
            del done[first:]
            return AllOf(members)
    raise ValueError(f"{operator!r} is not an operator")


def _name_of(matcher: SignalMatcher) -> str:
    return matcher.name or _WRITTEN[matcher]


def _matcher_of(word: str) -> SignalMatcher:
    return _SPECIAL.get(word) or SignalMatcher(word)


def _number(word: str) -> int:
    number = int(word)
    if number < 0 or str(number) != word:
        raise ValueError(f"{word!r} is not a number in canonical form")
    return number
