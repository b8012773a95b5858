"""The command `waitpoints`: list the waitpoints at which an execution takes signals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from flowfabric_worker.cli.options import id_argument, json_option, with_client
from flowfabric_worker.cli.output import plain, print_json, span
from flowfabric_worker.cli.tables import print_table
from flowfabric_worker.client import Client
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_DURATION_MS, MAX_PAGE_SIZE
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.suspension import PendingWaitpointInfo
from flowfabric_worker.listing import rows_of

_HEADERS = ("WAITPOINT", "STATE", "UNTIL", "SIGNALS", "KID", "FINGERPRINT")

Row = PendingWaitpointInfo | DamagedRow


@click.command()
@id_argument
@json_option("Print one JSON document per line.")
@with_client
def waitpoints(client: Client, *, execution_id: str, as_json: bool) -> None:
    """List the waitpoints at which an execution takes signals.

    A pending one keeps signals for a wait that has not begun. Tokens are never shown: KID is the id of the secret
    that signed the token, FINGERPRINT the first digits of the token's digest.
    """
    found = _rows(client, ExecutionId.parse(execution_id))
    if as_json:
        for row in found:
            print_json(_document(row))
    elif rows := list(found):
        now = client.engine.server_time()
        print_table(_HEADERS, [_cells(row, now) for row in rows], cut={"WAITPOINT"}, folded={"SIGNALS"})
    else:
        click.echo("No waitpoints found: the execution takes no signals now.", err=True)


def _rows(client: Client, execution_id: ExecutionId) -> Iterator[Row]:
    def read(cursor: str | None) -> tuple[Sequence[Row], str | None]:
        page = client.engine.list_pending_waitpoints(execution_id, cursor, MAX_PAGE_SIZE)
        return page.waitpoints, page.next_cursor

    return rows_of(read)


def _document(row: Row) -> object:
    if isinstance(row, DamagedRow):
        return row
    return {**plain(row), "shown_digest": row.shown_digest}


def _cells(row: Row, now: int) -> tuple[object, ...]:
    if isinstance(row, DamagedRow):
        return row.row_id, "damaged", "", row.corruption, "", ""
    names = ", ".join(row.required_signal_names) or "any"
    return row.waitpoint_key, row.state, _until(row.expires_at_ms, now), names, row.token_kid, row.token_fingerprint


def _until(moment: int | None, now: int) -> str:
    # A handler's waitpoint without an end gets the longest duration, which says nothing to a reader.
    if moment is None or moment - now > MAX_DURATION_MS // 2:
        return "-"
    return f"in {span(moment - now)}"
