"""The quota of a task, which its options `rate`, `concurrency` and `limit_by` describe."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from time import monotonic
from typing import Any, Final
from weakref import WeakKeyDictionary

import attrs

from flowfabric_worker._tasks.options import TaskOptions
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import ConflictError, ValidationError
from flowfabric_worker.engine.ids import QuotaPolicyId, check_name
from flowfabric_worker.engine.types.quotas import CreateQuotaPolicyArgs, QuotaPolicy

_RATE: Final = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,5})?(ms|s|m|h|d)")
_UNITS: Final = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
# How many quota policies a task remembers to have created in a store, one for each key, and for how many seconds: an
# operator may have removed one.
_MOST_KNOWN: Final = 4096
_KNOWN_FOR: Final = 60.0


def read_rate(text: str) -> tuple[int, timedelta]:
    """Read a rate, such as `10/m` or `100/30s`: so many attempts in each window of that length.

    Raises:
        ValidationError: `invalid_input`.
    """
    match = _RATE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValidationError("invalid_input", f"rate must be such as 10/m or 100/30s, not {text!r:.80}.")
    return int(match[1]), int(match[2] or 1) * _UNITS[match[3]]


def quota_of(task: str, options: TaskOptions) -> TaskQuota | None:
    """Return the quota that the options of a task describe, or None.

    Raises:
        ValidationError: `invalid_input`, the options contradict each other.
    """
    if options.rate is None and options.concurrency is None:
        if options.limit_by is not None:
            raise ValidationError("invalid_input", "limit_by needs rate or concurrency: say what it limits.")
        return None
    if options.quota is not None:
        raise ValidationError("invalid_input", "quota names a policy that exists: leave out rate and concurrency.")
    most, window = (None, timedelta(minutes=1)) if options.rate is None else read_rate(options.rate)
    policy = QuotaPolicy(window=window, max_requests_per_window=most, max_concurrent=options.concurrency)
    return TaskQuota(f"task:{task}", policy, options.limit_by)


@attrs.define
class TaskQuota:
    """The quota policy of a task, or those of its keys, which are created when they are first needed.

    Attributes:
        name: the id of the policy, and the beginning of the ids of its keys.
        policy: what it allows.
        limit_by: returns the key of a call; each key has a policy of its own. None for one policy.
    """

    name: str
    policy: QuotaPolicy
    limit_by: Callable[..., str] | None
    _known: WeakKeyDictionary[EngineBackend, dict[str, float]] = attrs.field(factory=WeakKeyDictionary, init=False)

    def of_call(self, engine: EngineBackend, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Return the id of the policy of a call, which exists then.

        Raises:
            ValidationError: `invalid_input`, the key is not a name.
        """
        if self.limit_by is None:
            return self.ensure(engine, self.name)
        key = check_name(self.limit_by(*args, **kwargs), "The key that limit_by returns")
        return self.ensure(engine, check_name(f"{self.name}:{key}", "The quota policy of a key"))

    def ensure(self, engine: EngineBackend, name: str) -> str:
        """Create a policy, or change it to what the task says now; return its id."""
        known = self._known.setdefault(engine, {})
        if known.get(name, 0.0) <= monotonic():
            policy_id = QuotaPolicyId(name)
            try:
                engine.create_quota_policy(CreateQuotaPolicyArgs(quota_policy_id=policy_id, policy=self.policy))
            except ConflictError:
                engine.update_quota_policy(policy_id, self.policy)
            if len(known) >= _MOST_KNOWN:
                known.clear()
            known[name] = monotonic() + _KNOWN_FOR
        return name
