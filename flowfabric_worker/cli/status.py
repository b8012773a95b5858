"""The command `status`: show everything about an execution except its arguments and result."""

from __future__ import annotations

from collections.abc import Iterator

import click

from flowfabric_worker.cli.exit_codes import existing
from flowfabric_worker.cli.options import id_argument, json_option, with_client
from flowfabric_worker.cli.output import moment, print_json, shown
from flowfabric_worker.cli.tables import print_facts
from flowfabric_worker.client import Client
from flowfabric_worker.engine.suspension_replies import AT_TIMEOUT
from flowfabric_worker.engine.types.reads import ExecutionInfo, PastAttempt, SuspensionInfo
from flowfabric_worker.engine.types.states import PublicState


@click.command()
@id_argument
@json_option()
@with_client
def status(client: Client, *, execution_id: str, as_json: bool) -> None:
    """Show all of an execution but its arguments and result."""
    info = existing(client.get(execution_id), execution_id)
    if as_json:
        print_json(info)
        return
    print_facts(list(_described(info)))
    if info.error_detail and not _succeeded(info):
        click.echo()
        click.echo(shown(info.error_detail.decode("utf-8", "replace").rstrip()))


def _described(info: ExecutionInfo) -> Iterator[tuple[str, str]]:
    """Yield what there is to say of an execution, a line each."""
    said = {
        "id": info.execution_id.plain,
        "task": info.task,
        "lane": info.lane,
        "state": info.public_state,
        "priority": info.priority,
        "key": info.idempotency_key,
        "tags": ", ".join(f"{name}={value}" for name, value in info.tags.items()),
        "headers": ", ".join(f"{name}={value}" for name, value in info.headers.items()),
        "submitted": moment(info.created_at_ms),
        "not before": moment(info.delay_until_ms),
        "started": moment(info.started_at_ms),
        "suspended": moment(info.suspended_at_ms),
        "waits for": info.suspension and f"{info.suspension.awaits} ({info.suspension.reason})",
        "waits until": info.suspension and _end_of_wait(info.suspension),
        "unmatched": info.suspension and (info.suspension.unmatched_signals or None),
        "ended": moment(info.ended_at_ms),
        "kept until": moment(info.remove_at_ms),
        "deadline": moment(info.deadline_at_ms),
        "worker": info.current_lease and info.current_lease.worker_instance_id,
        "lease until": info.current_lease and moment(info.current_lease.expires_at_ms),
        "attempts": info.total_attempt_count,
        "retries": info.retry_count,
        "lost workers": info.reclaim_count or None,
        "replays": info.replay_count or None,
        "progress": _progress(info),
        "cancelled": info.cancel_reason,
        # A success may come after failures; they stand with their attempts.
        "error": None if _succeeded(info) else info.error,
    }
    yield from ((name, str(value)) for name, value in said.items() if value not in (None, ""))
    if info.past_attempts and (first := info.past_attempts[0].attempt_index):
        yield f"attempts 0 to {first - 1}", "not kept: only the last ones are"
    yield from ((f"attempt {past.attempt_index}", _past(past)) for past in info.past_attempts)


def _end_of_wait(suspension: SuspensionInfo) -> str:
    if suspension.timeout_at_ms is None:
        return ""
    return f"{moment(suspension.timeout_at_ms)}; {AT_TIMEOUT[suspension.timeout_behavior]}"


def _succeeded(info: ExecutionInfo) -> bool:
    return info.public_state is PublicState.COMPLETED


def _progress(info: ExecutionInfo) -> str:
    percent = "" if info.progress_percent is None else f"{info.progress_percent} %"
    return " ".join(filter(None, (percent, info.progress_message)))


def _past(attempt: PastAttempt) -> str:
    ending = f"{attempt.ending} after {attempt.ended_at_ms - attempt.started_at_ms} ms at {attempt.worker_instance_id}"
    return f"{ending}: {attempt.error}" if attempt.error else ending
