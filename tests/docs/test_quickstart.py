"""The quickstart submits what its task accepts."""

from __future__ import annotations

import inspect
import json
import shlex
from typing import Any

from tests.support.pages import snippet

PAGE = "quickstart.md"


def test_the_submission_of_the_quickstart_fits_its_task() -> None:
    shop: dict[str, Any] = {"__name__": "shop"}
    exec(snippet(PAGE, "python", "send_receipt"), shop)
    words = shlex.split(snippet(PAGE, "sh", " submit "))
    name, option, text = words[words.index("submit") + 1 :]
    task = shop[name.removeprefix("shop.")]

    assert option == "--kwargs"
    assert inspect.signature(task.function).bind(**json.loads(text))
