"""The example `examples/shop.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from tests.support.cli import ROOT, Process


def test_example_shop_serves_an_order(start: Callable[..., Process], url: str) -> None:
    start("run", "examples.shop:worker").await_log("takes work")

    ordered = subprocess.run(
        [sys.executable, "-m", "examples.shop"],
        cwd=ROOT,
        env={**os.environ, "FLOWFABRIC_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert ordered.stdout.splitlines() == [
        "the same payment: True",
        "packed: ['2 x tea', '1 x cups']",
        "paid: Receipt(order=7, amount=18.0, to='a@b.c')",
    ]
