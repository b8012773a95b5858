"""Runs the tests; if a few fail, runs these once more, alone: `python scripts/run_tests.py [PYTEST OPTIONS]`.

Many tests at once may delay a process for longer than a test of real time allows. A failure that is one of the code
comes again when the machine has nothing else to do. Both runs print their failures, and the exit code is that of the
second one. See docs/decisions/0053-failed-tests-run-once-more.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

# If more tests failed, the machine is not the reason.
MAX_FAILED: Final = 10
# pytest's exit code when tests failed; others tell that it could not run them.
TESTS_FAILED: Final = 1

CACHE: Final = Path(__file__).parents[1] / ".pytest_cache"


def run_pytest(*options: str) -> int:
    """Run pytest in a process of its own, and return its exit code."""
    return subprocess.run([sys.executable, "-m", "pytest", *options], check=False).returncode


def failed_tests() -> list[str]:
    """Return the ids of the tests that failed in the last run, which began with an empty cache."""
    try:
        return list(json.loads((CACHE / "v/cache/lastfailed").read_text("utf-8")))
    except FileNotFoundError:
        return []


def main() -> int:
    """Return the exit code."""
    code = run_pytest("--cache-clear", *sys.argv[1:])
    failed = failed_tests()
    if code != TESTS_FAILED or not 0 < len(failed) <= MAX_FAILED:
        return code
    print("\nThese tests failed, and run once more, alone:", *failed, "", sep="\n", flush=True)
    return run_pytest(*failed)


if __name__ == "__main__":
    sys.exit(main())
