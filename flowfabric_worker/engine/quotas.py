"""The operations on quota policies, which limit how many executions begin and run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from flowfabric_worker.engine.admissions import Admissions, asked_of
from flowfabric_worker.engine.connection import new_call_id
from flowfabric_worker.engine.errors import NotFoundError, ValidationError
from flowfabric_worker.engine.ids import ExecutionId, QuotaPolicyId, check_execution_id, check_name
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.pages import page_size, read_cursor, read_rows
from flowfabric_worker.engine.stores.base import Argument, Reply
from flowfabric_worker.engine.submission import Submission
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.quotas import (
    AdmissionOutcome,
    CheckAdmissionArgs,
    CheckAdmissionResult,
    CreateQuotaPolicyArgs,
    CreateQuotaPolicyResult,
    ListQuotasPage,
    QuotaPolicy,
    QuotaPolicyStatus,
    SlotHold,
)
from flowfabric_worker.engine.wire import pack, reading

_LIMITS = {b"rate": AdmissionOutcome.RATE_EXCEEDED, b"concurrency": AdmissionOutcome.CONCURRENCY_EXCEEDED}


class Quotas(Submission, Admissions):
    """The operations of the area quotas."""

    def create_quota_policy(self, args: CreateQuotaPolicyArgs) -> CreateQuotaPolicyResult:
        check_record(check_record(args, CreateQuotaPolicyArgs).policy, QuotaPolicy)
        partition, quota = self._home_of(args.quota_policy_id)
        arguments = [quota, new_call_id(), *_limits(args.policy)]
        (answer,) = self.call("create_quota_policy", partition, arguments)
        return CreateQuotaPolicyResult(quota_policy_id=args.quota_policy_id, created=answer == b"created")

    def read_quota_policy(self, quota_policy_id: QuotaPolicyId) -> QuotaPolicyStatus | None:
        partition, quota = self._home_of(quota_policy_id)
        try:
            return self._quota_status(quota_policy_id, self.call("read_quota_policy", partition, [quota]))
        except NotFoundError:
            return None

    def update_quota_policy(self, quota_policy_id: QuotaPolicyId, policy: QuotaPolicy) -> QuotaPolicyStatus:
        check_record(policy, QuotaPolicy)
        partition, quota = self._home_of(quota_policy_id)
        arguments = [quota, new_call_id(), *_limits(policy)]
        return self._changed(quota_policy_id, partition, self.call("update_quota_policy", partition, arguments))

    def reset_quota_policy(self, quota_policy_id: QuotaPolicyId) -> QuotaPolicyStatus:
        partition, quota = self._home_of(quota_policy_id)
        reply = self.call("reset_quota_policy", partition, [quota, new_call_id()])
        return self._changed(quota_policy_id, partition, reply)

    def _changed(self, name: QuotaPolicyId, partition: int, reply: Reply) -> QuotaPolicyStatus:
        """Tell the partitions that use a quota policy that it was changed; return its status."""
        self.pay_now(partition)
        return self._quota_status(name, reply)

    def delete_quota_policy(self, quota_policy_id: QuotaPolicyId) -> None:
        partition, quota = self._home_of(quota_policy_id)
        call_id = new_call_id()
        self.known_gates.clear()
        for other in range(self.partitions):
            while not self.is_reached(partition, other) and self.call("disuse_quota", other, [quota, ""])[0] == b"more":
                # Its classes were removed in part: each call removes a bounded number of them.
                continue
        while self.call("delete_quota_policy", partition, [quota, call_id])[0] == b"more":
            continue

    def list_quotas(self, cursor: str | None = None, limit: int = 100) -> ListQuotasPage:
        count = page_size(limit)
        first = b""
        if cursor is not None:
            first = read_cursor(lambda: check_name(cursor, "the cursor"), "the id of a quota policy").encode()
        if not count:
            return ListQuotasPage(policies=(), next_cursor=None)
        rows: dict[str, Reply] = {}
        for partition in range(self.partitions):
            for row in self._quotas_of(partition, first, count + 1):
                rows[row[0].decode()] = row[1:]
        names = sorted(rows)[: count + 1]
        page = tuple(self._quota_row(name, rows[name]) for name in names[:count])
        return ListQuotasPage(policies=page, next_cursor=names[count - 1] if len(names) > count else None)

    def check_admission(self, args: CheckAdmissionArgs) -> CheckAdmissionResult:
        check_record(args, CheckAdmissionArgs)
        partition, head = self._slot(args.quota_policy_id, args.execution_id)
        lease, call_id = milliseconds(args.lease, "lease"), str(head[-1])

        def send(admissions: bytes) -> Reply:
            return self.call("check_admission", partition, [*head, lease, pack((b"", b"", b"")) + admissions])

        reply = self.passing(partition, call_id, send, asked_of)
        answer, *wait = (b"concurrency", b"") if asked_of(reply) else reply
        self.pay_ends({partition})
        outcome = _LIMITS.get(answer) or AdmissionOutcome(answer.decode())
        return CheckAdmissionResult(outcome=outcome, retry_after_ms=int(wait[0]) if wait and wait[0] else None)

    def release_admission(self, quota_policy_id: QuotaPolicyId, execution_id: ExecutionId) -> bool:
        partition, head = self._slot(quota_policy_id, execution_id)
        answer = self.call("release_admission", partition, head)
        if not self.is_reached(self.home_of_quota(quota_policy_id), partition):
            self.pay_now(partition)
        return bool(answer[0] == b"released")

    def _home_of(self, quota_policy_id: QuotaPolicyId) -> tuple[int, bytes]:
        """Return the partition of a quota policy, and its address there."""
        name = check_name(quota_policy_id, "quota_policy_id")
        return self.home_of_quota(name), pack((self.namespace, name))

    def _slot(self, quota_policy_id: QuotaPolicyId, execution_id: ExecutionId) -> tuple[int, list[Argument]]:
        """Return the partition of an execution, and what a call about its slot of a quota policy begins with."""
        home, quota = self._home_of(quota_policy_id)
        target = check_execution_id(execution_id)
        partition = self.check_partition(target.partition_number)
        if not self.is_reached(home, partition):
            self.check_quota(quota_policy_id, partition)
        return partition, [target.uuid, self._packed_namespace, quota, new_call_id()]

    def _quotas_of(self, partition: int, first: bytes, count: int) -> Iterator[Reply]:
        return read_rows(
            lambda after, most: self.call("list_quotas", partition, [self._packed_namespace, after, most]),
            first,
            count,
        )

    def _quota_row(self, name: str, row: Reply) -> QuotaPolicyStatus | DamagedRow:
        if len(row) == 1:
            return DamagedRow(name, f"quota policy: {row[0].decode('utf-8', 'replace')}")
        try:
            return self._quota_status(QuotaPolicyId(name), row)
        except ValidationError as error:
            return DamagedRow(name, str(error))

    def _quota_status(self, name: QuotaPolicyId, row: Reply) -> QuotaPolicyStatus:
        window, rate, slots, hold, created, counted, running, why, till, _ = row
        with reading(f"The quota policy {name}", "policy"):
            return QuotaPolicyStatus(
                quota_policy_id=name,
                namespace=self.namespace,
                policy=QuotaPolicy(
                    window=timedelta(milliseconds=int(window)),
                    max_requests_per_window=_number(rate),
                    max_concurrent=_number(slots),
                    hold=SlotHold(hold.decode()),
                ),
                admitted_in_window=int(counted),
                running=int(running),
                created_at_ms=int(created),
                closed_by=_LIMITS.get(why),
                opens_at_ms=_number(till),
            )


def _limits(policy: QuotaPolicy) -> list[Argument]:
    """Encode what a quota policy allows for the stored functions."""
    rate, slots = policy.max_requests_per_window, policy.max_concurrent
    window = milliseconds(policy.window, "window", least=1)
    return [window, "" if rate is None else rate, "" if slots is None else slots, policy.hold]


def _number(text: bytes) -> int | None:
    return int(text) if text else None
