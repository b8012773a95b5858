"""secrets: rotating the secret that signs tokens."""

from __future__ import annotations

import pytest

from flowfabric_worker.client import Client
from tests.support.cli import cli, ok
from tests.support.cli_suspensions import waiting
from tests.support.suspensions import signal

SECRET = "5e" * 32
OTHER = "07" * 32
WRONG_SECRETS = {
    "none": (["secrets", "rotate", "k2"], "", "FLOWFABRIC_WAITPOINT_SECRET"),
    "not of digits": (["secrets", "rotate", "k2", "-"], SECRET + "xyz", "hexadecimal"),
    "nothing on stdin": (["secrets", "rotate", "k2", "-"], "", "hexadecimal"),
    "too long": (["secrets", "rotate", "k2", "-"], "ab" * 2000, "hexadecimal"),
    "under a kid with a colon": (["secrets", "rotate", "k:2", "-"], SECRET, "colon"),
    "for too long a grace": (["secrets", "rotate", "k2", "-", "--grace", "366d"], SECRET, "365 days"),
    "on the command line": (["secrets", "rotate", "k2", SECRET], "", "..."),
    "as another argument": (["secrets", "rotate", "k2", "-", SECRET], SECRET, "..."),
    "as the kid": (["secrets", "rotate", SECRET, "k2"], "", "k2"),
    "as a grace": (["secrets", "rotate", "k2", "-", "--grace", SECRET], SECRET, "..."),
    "as an action": (["secrets", SECRET], "", "..."),
}

pytestmark = pytest.mark.usefixtures("url")


def test_secrets_rotate_signs_with_another_secret_and_keeps_old_tokens(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = waiting(client)
    monkeypatch.setenv("FLOWFABRIC_WAITPOINT_SECRET", SECRET)

    ran, again = ok("secrets", "rotate", "k2"), ok("secrets", "rotate", "k2", "--json")

    assert ran.out.splitlines()[1].split(maxsplit=1) == ["0", "signs with k2 now; tokens of k1 stay valid for 1d"]
    assert again.document == {"partition": 0, "ok": True, "rotated": False}
    assert ok("waitpoints", waiting(client).id, "--json").document["token_kid"] == "k2"
    signal(client.engine, before.execution_id, before.waitpoints[0])
    assert SECRET not in ran.out + ran.err + again.out


def test_secrets_rotate_reads_stdin_and_ends_old_tokens_with_their_grace(client: Client) -> None:
    before = waiting(client)

    ok("secrets", "rotate", "k2", "-", "--grace", "0", stdin=f" {SECRET}\n")

    with Client(client.url) as other, pytest.raises(Exception, match="token"):
        signal(other.engine, before.execution_id, before.waitpoints[0])


def test_secrets_rotate_says_of_each_partition_what_became_of_it(client: Client) -> None:
    url = f"{client.url}-three&partitions=3"
    ok("secrets", "rotate", "k2", "-", "--url", url, stdin=SECRET)

    ran = cli("secrets", "rotate", "k2", "-", "--url", url, "--json", stdin=OTHER)

    assert ran.code == 4
    assert [(each["partition"], each["code"]) for each in ran.documents] == [(n, "rotation_conflict") for n in range(3)]
    assert OTHER not in ran.out + ran.err


@pytest.mark.parametrize(("arguments", "stdin", "said"), WRONG_SECRETS.values(), ids=WRONG_SECRETS.keys())
def test_a_wrong_secret_is_refused_and_not_repeated(arguments: list[str], stdin: str, said: str) -> None:
    ran = cli(*arguments, stdin=stdin)

    assert ran.code == 2
    assert said in ran.err
    assert "5e5e5e" not in ran.err
    assert "abab" not in ran.err
