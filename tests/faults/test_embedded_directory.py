"""The directory of `embedded://DIR`: another user can lead no data into it or out of it, and it does not move."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flowfabric_worker import Client
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.stores import embedded_guard
from tests.support.embedded import refusal
from tests.support.engines import opened
from tests.support.executions import created, refused

OTHER_USER = 65534


def become_other_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the user of this process, so that what the test made belongs to another one."""
    monkeypatch.setattr(os, "geteuid", lambda: OTHER_USER)


def test_a_directory_in_which_other_users_may_write_is_refused(home: Path) -> None:
    home.mkdir()
    for mode in (0o720, 0o702, 0o777, 0o1777):
        home.chmod(mode)
        assert "chmod 700" in refusal(home)
    assert not list(home.iterdir())


def test_a_directory_of_another_user_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir(mode=0o700)
    become_other_user(monkeypatch)

    assert "another user" in refusal(home)
    assert not list(home.iterdir())


def test_a_link_of_another_user_to_a_directory_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir(mode=0o700)
    link = home.parent / "link"
    link.symlink_to(home)
    if os.getuid() == 0:
        os.chown(link, OTHER_USER, OTHER_USER, follow_symlinks=False)
    else:
        become_other_user(monkeypatch)

    assert "link of another user" in refusal(link)
    assert "link of another user" in refusal(link / "below")


@pytest.mark.parametrize("name", embedded_guard.NAMES)
def test_links_inside_the_directory_are_not_followed(home: Path, tmp_path: Path, name: str) -> None:
    home.mkdir(mode=0o700)
    foreign = tmp_path / "foreign"
    foreign.write_text("as it was")
    (home / name).symlink_to(foreign)

    assert "is a link" in refusal(home)
    assert foreign.read_text() == "as it was"
    assert [entry.name for entry in home.iterdir()] == [name]


def test_the_files_of_a_directory_are_not_opened_through_links(home: Path) -> None:
    home.mkdir()
    (home / "foreign").write_text("as it was")
    (home / "log").symlink_to(home / "foreign")

    with pytest.raises(OSError, match="log"):
        embedded_guard.open_private(home / "log")


def test_nothing_is_sent_to_a_server_of_another_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(f"embedded://{home}", retry_for=0) as engine:
        created(engine)
        engine.listener.close()
        with monkeypatch.context() as other:
            become_other_user(other)
            for pool in engine.store.primaries():  # type: ignore[attr-defined]
                pool.disconnect()
            with pytest.raises(EngineError, match="another user"):
                engine.ping()
            with pytest.raises(EngineError, match="another user"):
                engine.store.subscribe("topic")


@pytest.mark.parametrize("forked", [False, True])
def test_a_relative_directory_stays_where_it_was_when_the_engine_was_made(
    home: Path, monkeypatch: pytest.MonkeyPatch, forked: bool
) -> None:
    home.mkdir(mode=0o700)
    elsewhere = home.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(home.parent)
    with opened("embedded://store?prefix=here") as engine:
        if forked:
            made = created(engine)
            child = os.fork()
            if not child:
                os.chdir(elsewhere)
                os._exit(0 if engine.describe_execution(made) is not None else 1)
            assert os.waitpid(child, 0)[1] == 0
        monkeypatch.chdir(elsewhere)
        created(engine)

    assert not list(elsewhere.iterdir())
    assert (home / "appendonlydir").is_dir()


@pytest.mark.parametrize("from_environment", [False, True])
def test_an_empty_url_is_refused_and_opens_no_other_store(
    home: Path, monkeypatch: pytest.MonkeyPatch, from_environment: bool
) -> None:
    home.mkdir(mode=0o700)
    monkeypatch.chdir(home)
    if from_environment:
        monkeypatch.setenv("FLOWFABRIC_URL", "")
    with Client(None if from_environment else "") as client, refused("invalid_url") as caught:
        client.submit("task")

    assert "empty" in str(caught.value)
    assert not list(home.iterdir())
