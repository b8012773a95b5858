"""The plugin of pytest, in a run of its own: as it is announced by the installed package, on a small application."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]

SHOP = """
from datetime import timedelta
from flowfabric_worker import RetryPolicy, Worker

worker = Worker("shop", "valkey://unreachable.invalid:1")
sent = []

@worker.task(retry=RetryPolicy(max_retries=1, initial=timedelta(hours=1), jitter=False))
def send_receipt(order: int) -> str:
    sent.append(order)
    if len(sent) % 2:
        raise OSError("the mail server is away")
    return f"receipt {order}"
"""

OWN_WORKER = """
import pytest
import shop

@pytest.fixture
def flowfabric():
    shop.sent.clear()
    with shop.worker.in_memory() as worker:
        yield worker
"""


@pytest.fixture
def application(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Provide a directory with an application, in an environment where the package is installed."""
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    installed = pytester.mkdir("site") / "flowfabric_worker-0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: flowfabric_worker\nVersion: 0\n")
    (installed / "entry_points.txt").write_text("[pytest11]" + metadata["options.entry_points"]["pytest11"])
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{installed.parent}:{pytester.path}")
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    pytester.makepyfile(shop=SHOP)
    return pytester


def test_a_worker_comes_with_a_fresh_store(application: pytest.Pytester) -> None:
    application.makepyfile(
        test_shop="""
        import pytest
        from flowfabric_worker import Worker

        @pytest.mark.parametrize("time", [1, 2])
        def test_it_is_fresh(flowfabric, time):
            assert isinstance(flowfabric, Worker)
            run = flowfabric.task(len).options(key="once").submit("abc")
            assert run.created
            assert flowfabric.run_until_idle() == 1
            assert run.result(1) == 3
        """
    )
    application.runpytest_subprocess("--strict-config").assert_outcomes(passed=2)


def test_its_clock_stands_still_until_it_is_moved(application: pytest.Pytester) -> None:
    application.makepyfile(
        test_shop="""
        from datetime import timedelta

        def test_a_month(flowfabric, flowfabric_clock):
            begun = flowfabric_clock.now
            run = flowfabric.task(len).options(delay=timedelta(days=30)).submit("abc")
            assert flowfabric.run_until_idle() == 0
            assert flowfabric_clock.now == begun
            flowfabric_clock.move(timedelta(days=30))
            assert flowfabric.run_until_idle() == 1
            assert run.result(1) == 3
        """
    )
    application.runpytest_subprocess().assert_outcomes(passed=1)


def test_all_fixtures_work_on_the_applications_own_worker(application: pytest.Pytester) -> None:
    application.makeconftest(OWN_WORKER)
    application.makepyfile(
        test_shop="""
        from datetime import timedelta
        import shop

        def test_when_it_is_due(flowfabric, flowfabric_clock):
            run = shop.send_receipt.submit(7)
            flowfabric.run_until_idle()
            assert shop.sent == [7]
            flowfabric_clock.move(timedelta(hours=1))
            flowfabric.run_until_idle()
            assert run.result(1) == "receipt 7"

        def test_in_place(flowfabric_eager):
            assert flowfabric_eager is shop.worker
            run = shop.send_receipt.submit(7)
            assert shop.sent == [7, 7]
            assert run.result(0) == "receipt 7"

        def test_the_store_of_production_is_back():
            assert shop.worker.url == "valkey://unreachable.invalid:1"
        """
    )
    application.runpytest_subprocess().assert_outcomes(passed=3)


def test_tests_that_ask_for_no_fixture_cost_nothing(application: pytest.Pytester) -> None:
    application.makepyfile(
        test_shop="""
        import sys

        def test_nothing_was_opened():
            assert "fakeredis" not in sys.modules
        """
    )
    application.runpytest_subprocess().assert_outcomes(passed=1)


def test_the_fixtures_are_listed_with_what_they_are_for(application: pytest.Pytester) -> None:
    listed = application.runpytest_subprocess("--fixtures", "-v").stdout.str()

    for fixture in ("flowfabric ", "flowfabric_eager ", "flowfabric_clock "):
        assert f"\n{fixture}" in listed.replace(" -- ", "  -- ")


def test_the_package_itself_does_without_pytest(application: pytest.Pytester) -> None:
    done = application.runpython_c("import sys, flowfabric_worker; assert 'pytest' not in sys.modules")

    assert done.ret == 0, done.stderr.str()


def test_the_tests_that_the_documentation_shows_pass(application: pytest.Pytester) -> None:
    page = (ROOT / "docs" / "testing.md").read_text("utf-8")
    shown = [
        code for code in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) if "def test_" in code
    ]
    application.makepyfile(test_shown="".join(shown))

    application.runpytest_subprocess().assert_outcomes(passed=2)
