"""Runs the tests; if a few fail, runs these once more, alone: `python scripts/run_tests.py [PYTEST OPTIONS]`.

Many tests at once may delay a process for longer than a test of real time allows. A failure that is one of the code
comes again when the machine has nothing else to do. Both runs print their failures, and the exit code is that of the
second one. See docs/decisions/0053-failed-tests-run-once-more.md.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

# If more tests failed, the machine is not the reason.
MAX_FAILED: Final = 10


class FailedTests:
    """A plugin of pytest that notes the ids of the tests that fail."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.nodeid not in self.ids:
            self.ids.append(report.nodeid)


def main() -> int:
    """Return the exit code."""
    # What `python -m pytest` has first, instead of the folder of this script.
    sys.path[0] = str(Path(__file__).parents[1])
    failed = FailedTests()
    code = pytest.main(sys.argv[1:], plugins=[failed])
    if code != pytest.ExitCode.TESTS_FAILED or not 0 < len(failed.ids) <= MAX_FAILED:
        return code
    print("\nThese tests failed, and run once more, alone:", *failed.ids, "", sep="\n", flush=True)
    return subprocess.run([sys.executable, "-m", "pytest", *failed.ids], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
