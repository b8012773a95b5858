"""A missing right of the store's user is found before any write, and the message says what to grant."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.stores.library import library, lua_files
from tests.support.engines import opened
from tests.support.executions import claim_one, created, refused
from tests.support.servers import ValkeyServer

PASSWORD = "hunter2"
RIGHTS = "+fcall +fcall_ro +function|load +function|list +publish +subscribe +info +ping +@hash +@sortedset +@stream"
RIGHTS_TO_KEYS = "+get +set +del +unlink +exists +type +time"
PREPARE: Callable[[Engine], Any] = Engine.prepare


def url_of_user(server: ValkeyServer, rules: str) -> str:
    """Return the URL of a user with the rights that the documentation names, and these changes."""
    words = f"reset on >{PASSWORD} ~ff:* &ff:* -@all {RIGHTS} {RIGHTS_TO_KEYS} {rules}"
    server.client().execute_command("ACL", "SETUSER", "shop", *words.split())
    return f"unix://shop:{PASSWORD}@{server.socket}"


def test_the_rights_that_the_documentation_names_are_enough(server: ValkeyServer) -> None:
    with opened(url_of_user(server, "")) as engine:
        engine.prepare()
        made = created(engine)
        handle = claim_one(engine).handle
        assert handle.execution_id == made
        engine.complete(handle, b"1")
        assert engine.wait_for_result(made) is not None


def test_every_command_that_the_functions_name_is_checked(server: ValkeyServer) -> None:
    known = {name.decode().upper() for name in server.client().command_list()}
    named = {word for _, text in lua_files() for word in re.findall(r"'([A-Z]+)'", text)}

    assert (named & known) - {"SUBSCRIBE"} == set(library().commands)


@pytest.mark.parametrize("call", [PREPARE, created])
@pytest.mark.parametrize("command", [*library().commands, "SUBSCRIBE"])
def test_a_right_that_is_missing_is_named_and_leaves_no_trace(
    server: ValkeyServer, command: str, call: Callable[[Engine], Any]
) -> None:
    with opened(server.url) as owner:
        owner.store.install()
    with opened(url_of_user(server, f"-{command.lower()}")) as engine, refused("permission_denied") as caught:
        call(engine)

    assert f"+{command.lower()}" in str(caught.value)
    assert server.client().dbsize() == 0


@pytest.mark.parametrize("rules", ["resetchannels", "resetchannels &other:*", "resetkeys", "resetkeys ~other:*"])
@pytest.mark.parametrize("call", [PREPARE, created])
def test_keys_and_channels_that_are_not_the_users_leave_no_trace(
    server: ValkeyServer, rules: str, call: Callable[[Engine], Any]
) -> None:
    with opened(url_of_user(server, rules)) as engine, refused("permission_denied") as caught:
        call(engine)

    assert "~ff:*" in str(caught.value)
    assert "&ff:*" in str(caught.value)
    assert server.client().dbsize() == 0


def test_what_the_refusal_says_to_grant_is_enough(server: ValkeyServer) -> None:
    with opened(url_of_user(server, "resetchannels resetkeys -publish -hset -zadd")) as engine:
        with refused("permission_denied") as caught:
            engine.prepare()
        advice = re.search(r"ACL SETUSER .*", str(caught.value))
        assert advice is not None
        server.client().execute_command(*advice[0].split())

        engine.prepare()
        created(engine)


def test_waiting_for_replicas_needs_rights_of_its_own(server: ValkeyServer) -> None:
    url = url_of_user(server, "-wait")
    with opened(url) as engine:
        engine.prepare()
    with opened(f"{url}?replicas=1") as engine, refused("permission_denied") as caught:
        engine.prepare()

    assert "+wait" in str(caught.value)
