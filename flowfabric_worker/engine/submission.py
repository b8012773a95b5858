"""The operations that create executions."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from uuid import UUID

import attrs

from flowfabric_worker.engine.backend.submission import batches_of
from flowfabric_worker.engine.batches import Item, Steps, cut_items, finish
from flowfabric_worker.engine.budget_debts import BudgetDebts
from flowfabric_worker.engine.core import as_error, execution_id, is_put_off
from flowfabric_worker.engine.errors import EngineError, NotFoundError, ValidationError
from flowfabric_worker.engine.ids import (
    ExecutionId,
    check_capabilities,
    check_lane,
    check_name,
    mint_in,
    mint_parts,
    refuse_reserved,
)
from flowfabric_worker.engine.limits import (
    DEFAULT_DEDUP_WINDOW_MS,
    DEFAULT_SIGNALS_PER_EXECUTION,
    MAX_BATCH_ITEMS,
    MAX_CALL_BYTES,
    MAX_CALL_ITEMS,
    MAX_HEADER_VALUE_BYTES,
    MAX_HEADERS,
    MAX_PRIORITY,
    MAX_TAG_VALUE_BYTES,
    MAX_TAGS,
)
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.partitions import partition_of_names, partition_of_uuid
from flowfabric_worker.engine.stores.base import Reply
from flowfabric_worker.engine.types.checks import check_iterable, check_record
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.states import PublicState, StateVector
from flowfabric_worker.engine.types.submission import Created, CreateExecutionArgs, CreateExecutionResult, Duplicate
from flowfabric_worker.engine.unusable_arguments import guarded
from flowfabric_worker.engine.wire import WorkClass, encode_policy, optional, pack, pack_moment, pack_texts

# How many quota policies and budgets an engine remembers to exist.
_MOST_GATES = 4096

# The codes of a class that names a gate which its partition does not know.
_UNKNOWN_GATES = frozenset({"budget_not_found", "quota_policy_not_found"})


class Submission(BudgetDebts):
    """The operations of the area submission."""

    def _begin(self) -> None:
        super()._begin()
        # The quota policies and budgets that exist, each with a partition whose executions name it, as far as this
        # engine has seen.
        self.known_gates: set[tuple[str, int, bytes]] = set()

    def create_execution(self, args: CreateExecutionArgs) -> CreateExecutionResult:
        (result,) = self._asked_again([args], [self._created(args)])
        if isinstance(result, EngineError):
            raise result
        return result

    def _created(self, args: CreateExecutionArgs) -> CreateExecutionResult | EngineError:
        partition, item = self._item(args)
        return self._result(args, partition, str(item[0]), self.call_item("create_executions", partition, item))

    def _asked_again(
        self, args: Sequence[CreateExecutionArgs], results: Sequence[CreateExecutionResult | EngineError]
    ) -> list[CreateExecutionResult | EngineError]:
        """Repeat the creations that a partition refused because it does not know a gate, and return all results.

        Another process may have deleted the gate and created it again since this engine asked for it.
        """
        again = list(results)
        for place, (each, result) in enumerate(zip(args, results, strict=True)):
            if isinstance(result, EngineError) and result.code in _UNKNOWN_GATES:
                try:
                    again[place] = self._created(each)
                except EngineError as error:
                    again[place] = error
        return again

    def create_executions(self, args: Sequence[CreateExecutionArgs]) -> list[CreateExecutionResult | EngineError]:
        batch = self._batch(args)
        return self._asked_again(args, self._results(batch, finish(batch.steps)))

    def create_in_batches(
        self, args: Iterable[CreateExecutionArgs]
    ) -> Iterator[list[CreateExecutionResult | EngineError]]:
        # Make a batch one call if there is one partition; with several, a batch needs more items to fill their calls.
        most = min(MAX_CALL_ITEMS * self.partitions, MAX_BATCH_ITEMS)
        check_iterable(args, "creations")
        batches = map(guarded("create_in_batches", self._batch), batches_of(args, most, MAX_CALL_BYTES))
        batch = next(batches, None)
        if batch is not None:
            batch.prepare()
            batch.send()
        while batch is not None:
            following: _Batch | None = None
            problem: Exception | None = None
            try:
                # Encode the next batch while the server works on this one.
                following = next(batches, None)
                if following is not None:
                    following.prepare()
            except Exception as error:  # noqa: BLE001  raised after the results of this batch were yielded
                following, problem = None, error
            replies = finish(batch.steps)
            # Send nothing else after a refusal, because the caller may end here.
            if following is not None and not any(isinstance(reply, EngineError) for reply in replies):
                following.send()
            yield self._asked_again(batch.args, self._results(batch, replies))
            if problem is not None:
                raise problem
            batch = following

    def create_in_transaction(
        self, connection: object, args: Sequence[CreateExecutionArgs]
    ) -> list[CreateExecutionResult | EngineError]:
        call = self.store.join(connection)
        batch = self._batch(args)
        replies: list[Reply | EngineError] = [[]] * len(args)
        waiting: Sequence[int] = range(len(args))
        while waiting:
            for indices in list(cut_items(batch.items, waiting, MAX_CALL_ITEMS)):
                partition = self.check_partition(batch.items[indices[0]][0])
                items = [batch.items[index][1] for index in indices]
                # Register their kinds outside the transaction, which would lock rows that other callers need.
                self.call("register_classes", partition, list(dict.fromkeys(item[1] for item in items)))
                answers = call("create_in_transaction", partition, [argument for item in items for argument in item])
                for index, answer in zip(indices, answers, strict=True):
                    replies[index] = as_error(answer, partition)
            waiting = [index for index in waiting if is_put_off(replies[index])]
        return self._results(batch, replies)

    def _batch(self, args: Sequence[CreateExecutionArgs]) -> _Batch:
        items = [self._item(each) for each in args]
        if len(args) > 1:
            self.refuse_repeats((item[0] for _, item in items), "The execution id")
            self.refuse_repeats((item[4] for _, item in items if item[4]), "An idempotency key")
        return _Batch(args, items, self.item_steps("create_executions", items))

    def _results(
        self, batch: _Batch, replies: Sequence[Reply | EngineError]
    ) -> list[CreateExecutionResult | EngineError]:
        return [
            self._result(each, partition, str(item[0]), reply)
            for each, (partition, item), reply in zip(batch.args, batch.items, replies, strict=True)
        ]

    def _item(self, args: CreateExecutionArgs) -> tuple[int, Item]:
        """Check one creation, and return its partition and arguments."""
        return self.creation(args, *self._identity(check_record(args, CreateExecutionArgs)))

    def creation(self, args: CreateExecutionArgs, partition: int, uuid: str, key: bytes) -> tuple[int, Item]:
        """Check a creation under a uuid and a packed key; return the partition and the arguments."""
        check_record(args, CreateExecutionArgs)
        terms = args.lane, args.task, args.codec, args.priority, args.policy, args.creator
        signals = self.limits.signals_per_execution
        try:
            kind = _kind(self.namespace, *terms, signals)
        except TypeError:
            # An unhashable value cannot be cached. It is not valid either, and this call raises the error for it.
            kind = _kind.__wrapped__(self.namespace, *terms, signals)
        self.check_payload(args.payload, "payload")
        if args.deadline is not None and args.policy.execution_deadline is not None:
            raise ValidationError(
                "invalid_input", "Give either a deadline or the policy's execution_deadline, not both."
            )
        if args.policy.quota_policy_id is not None:
            self.check_quota(args.policy.quota_policy_id, partition)
        for budget_id in args.policy.budget_ids:
            self._check_budget(budget_id, partition)
        return partition, (
            uuid,
            kind.packed,
            pack_moment(args.delay, args.delay_until, "delay"),
            kind.deadline if args.deadline is None else pack_moment(None, args.deadline, "deadline"),
            key,
            optional(args.payload),
            pack_texts(check_tags(args.tags)) if args.tags else "",
            pack_texts(check_headers(args.headers)) if args.headers else "",
        )

    def _identity(self, args: CreateExecutionArgs) -> tuple[int, str, bytes]:
        """Return the partition, the uuid, and the packed key.

        The partition follows from the key or else from the uuid. An execution with neither is placed beside its quota,
        or else beside its first budget.
        """
        given = None if args.execution_id is None else ExecutionId.parse(str(args.execution_id))
        policy = check_record(args.policy, ExecutionPolicy)
        home = None if policy.quota_policy_id is None else self.home_of_quota(policy.quota_policy_id)
        if home is None and policy.budget_ids:
            home, _ = self._budget(policy.budget_ids[0])
        if given is not None:
            minted, uuid = given.partition_number, given.uuid
        elif home is None or args.idempotency_key is not None:
            minted, uuid = mint_parts(self.partitions)
        else:
            minted, uuid = mint_in(home, self.partitions)
        key = b""
        if args.idempotency_key is not None:
            # Make the task part of the key, so that two tasks may use the same order number as their key.
            names = self.namespace, check_name(args.task, "task"), check_name(args.idempotency_key, "idempotency key")
            partition, key = partition_of_names(names, self.partitions), pack(names)
        elif given is None:
            partition = minted
        else:
            partition = partition_of_uuid(UUID(given.uuid), self.partitions)
        if given is not None and given.partition_number != partition:
            raise ValidationError(
                "partition_mismatch",
                f"{given} must lie in partition {partition}, that of its {'key' if args.idempotency_key else 'uuid'}.",
            )
        return partition, uuid, key

    def check_quota(self, quota: str, partition: int) -> None:
        """Refuse a quota policy that does not exist, before anything is written, and let it know of the partition.

        A policy that another process deletes afterwards is refused by the stored function.

        Raises:
            NotFoundError: `quota_policy_not_found`.
        """
        address, home = pack((self.namespace, quota)), self.home_of_quota(quota)
        if ("quota", partition, address) in self.known_gates:
            return
        if self.is_reached(home, partition):
            self.call("read_quota_policy", home, [address])
        else:
            _, news = self.call("use_quota", home, [address, str(partition)])
            self.call("pay", partition, ["news", address, news, str(partition)])
        self._remember_gate("quota", partition, address)

    def _check_budget(self, budget_id: str, partition: int) -> None:
        """Refuse a budget that does not exist, before anything is written, and let it know of the partition.

        Raises:
            NotFoundError: `budget_not_found`.
        """
        home, address = self._budget(budget_id)
        if ("budget", partition, address) in self.known_gates:
            return
        if home == partition:
            self.call("read_budget", home, [address])
        else:
            _, news = self.call("use_from", home, [address, str(partition)])
            self.call("pay", partition, ["tell", address, news])
        self._remember_gate("budget", partition, address)

    def _remember_gate(self, kind: str, partition: int, address: bytes) -> None:
        if len(self.known_gates) >= _MOST_GATES:
            self.known_gates.clear()
        self.known_gates.add((kind, partition, address))

    @contextlib.contextmanager
    def creating(self) -> Iterator[None]:
        """Provide a block that creates executions: it asks again, the next time, for a gate that is unknown."""
        try:
            yield
        except NotFoundError as error:
            self.forget_unknown(error)
            raise

    def forget_unknown(self, error: EngineError) -> None:
        """Ask for every gate again the next time if a gate is unknown, because another process deleted it."""
        if error.code in _UNKNOWN_GATES:
            self.known_gates.clear()

    def _result(
        self, args: CreateExecutionArgs, partition: int, uuid: str, reply: Reply | EngineError
    ) -> CreateExecutionResult | EngineError:
        if isinstance(reply, EngineError):
            self.forget_unknown(reply)
            return reply
        existing = execution_id(partition, reply[1])
        if reply[0] == b"created":
            return Created(execution_id=existing, state=_public_state(reply[2]))
        if args.execution_id is None and existing.uuid == uuid:
            # The first reply was lost, because the id was minted for this call. Return the state at the creation.
            state = PublicState.DELAYED if args.delay or args.delay_until else PublicState.WAITING
            return Created(execution_id=existing, state=state)
        return Duplicate(execution_id=existing, same_request=bool(reply[3]))


@attrs.frozen
class _Batch:
    """Creations, their arguments for the stored function, and the steps that create them."""

    args: Sequence[CreateExecutionArgs]
    items: Sequence[tuple[int, Item]]
    steps: Steps[list[Reply | EngineError]]

    def prepare(self) -> None:
        """Make its calls ready to be sent."""
        next(self.steps)

    def send(self) -> None:
        """Send its first call."""
        next(self.steps)


@attrs.frozen(kw_only=True)
class _Kind:
    """What many creations have in common.

    Attributes:
        packed: it, as the stored function reads it.
        deadline: the moment of the policy's deadline, which a creation's own replaces.
    """

    packed: bytes
    deadline: str


# Typed, because True equals 1 but is not a priority.
@functools.lru_cache(maxsize=4096, typed=True)
def _kind(
    namespace: str, lane: str, task: str, codec: str, priority: int, policy: ExecutionPolicy, creator: str, signals: int
) -> _Kind:
    """Check and encode what many creations have in common; cached, because there are few kinds of them.

    Raises:
        ValidationError: a value is not valid.
    """
    check_record(policy, ExecutionPolicy)
    codec = check_name(codec, "codec") if codec != "" else ""
    requires = policy.requires
    refuse_reserved(requires)
    work_class = WorkClass(
        namespace=namespace,
        lane=check_lane(lane),
        task=check_name(task, "task"),
        capabilities=check_capabilities(requires) if requires else (),
        budgets=tuple(check_name(each, "a budget's id") for each in policy.budget_ids),
        quota=check_name(policy.quota_policy_id, "quota_policy_id") if policy.quota_policy_id is not None else "",
    )
    window = policy.dedup_window
    packed = pack(
        (
            work_class.encode(),
            str(clamp_priority(priority)),
            str(DEFAULT_DEDUP_WINDOW_MS if window is None else milliseconds(window, "dedup_window")),
            codec,
            encode_policy(policy),
            check_name(creator, "creator") if creator else "",
            "" if signals == DEFAULT_SIGNALS_PER_EXECUTION else str(signals),
        )
    )
    return _Kind(packed=packed, deadline=pack_moment(policy.execution_deadline, None, "deadline"))


@functools.lru_cache(maxsize=256)
def _public_state(state: bytes) -> PublicState:
    """Return the public state of a stored state."""
    return StateVector.parse(state.decode()).public_state


def clamp_priority(priority: int) -> int:
    """Clamp a priority to 0 to 9000.

    Raises:
        ValidationError: `invalid_input`, not a whole number.
    """
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise ValidationError("invalid_input", f"A priority must be a whole number, not {priority!r}.")
    return min(max(priority, 0), MAX_PRIORITY)


def check_tags(tags: object) -> dict[str, str]:
    """Check the keys and values of tags, and return them.

    Raises:
        ValidationError: `invalid_tag_key`; `invalid_input`, a value is not a text of at most 1 KiB, or more than
            64 tags.
    """
    return _check_texts(tags, "tag", "invalid_tag_key", MAX_TAGS, MAX_TAG_VALUE_BYTES)


def check_headers(headers: object) -> dict[str, str]:
    """Check the names and values of headers, and return them.

    Raises:
        ValidationError: `invalid_input`, a name is not valid, a value is not a text of at most 8 KiB, or more than 64
            headers.
    """
    return _check_texts(headers, "header", "invalid_input", MAX_HEADERS, MAX_HEADER_VALUE_BYTES)


def _check_texts(texts: object, what: str, code: str, most: int, value_bytes: int) -> dict[str, str]:
    """Check a mapping of names to bounded texts, and return it; `code` is the code for an invalid name."""
    if not hasattr(texts, "items"):
        raise ValidationError("invalid_input", f"Give {what}s as a mapping of names to texts, not {texts!r:.100}.")
    checked = {}
    for key, value in texts.items():
        try:
            check_name(key, f"The name of a {what}")
        except ValidationError as error:
            raise ValidationError(code, str(error)) from None
        if not isinstance(value, str) or "\0" in value:
            raise ValidationError("invalid_input", f"The {what} {key!r} must be text without NUL, not {value!r:.100}.")
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise ValidationError("invalid_input", f"The {what} {key!r} contains a lone surrogate.") from None
        if size > value_bytes:
            raise ValidationError(
                "invalid_input", f"The {what} {key!r} has {size} bytes; at most {value_bytes} are allowed."
            )
        checked[key] = value
    if len(checked) > most:
        raise ValidationError("invalid_input", f"At most {most} {what}s are allowed, not {len(checked)}.")
    return checked
