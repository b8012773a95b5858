"""The peers' scripts, and an environment for each of them, made once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import attrs
import click

ROOT = Path(__file__).parents[1]
_SCRIPTS = Path(__file__).parent / "peers"
_FILLED_WITH = "filled-with.json"


@attrs.frozen(kw_only=True)
class Script:
    """A peer's script; see `benchmarks.peers` for what it says of itself.

    Attributes:
        share: which share of the tasks it gets.
        server: what it needs: "valkey" or "postgres"; one with "any" is measured on both.
    """

    name: str
    dependencies: tuple[str, ...]
    share: float
    server: str = "valkey"

    def tasks(self, count: int) -> int:
        """Return how many of `count` tasks it gets."""
        return max(1, round(count * self.share))


def scripts(server: str = "valkey") -> list[Script]:
    """Return all peers that are measured on a server, by name."""
    found = []
    for path in sorted(_SCRIPTS.glob("*.py")):
        metadata = inline_metadata(path.read_text("utf-8"))
        if metadata is not None:
            own = metadata.get("tool", {}).get("benchmarks", {})
            dependencies = tuple(metadata["dependencies"])
            needs = own.get("server", "valkey")
            if needs in (server, "any"):
                found.append(
                    Script(name=path.stem, dependencies=dependencies, share=own.get("share", 1.0), server=needs)
                )
    return found


def inline_metadata(source: str) -> dict[str, Any] | None:
    """Return what a script says of itself in its `# /// script` block; None if it has none."""
    _, begin, behind = source.partition("# /// script\n")
    block, end, _ = behind.partition("# ///\n")
    if not (begin and end):
        return None
    return tomllib.loads("\n".join(line.removeprefix("#") for line in block.splitlines()))


def python_for(script: Script, cache: Path) -> Path:
    """Return the Python that runs a script; its environment is made if it is not there, or was made for other
    dependencies.
    """
    if not script.dependencies:
        return Path(sys.executable)
    home = cache / script.name
    python = home / "bin" / "python"
    mark = home / _FILLED_WITH
    if not mark.exists() or json.loads(mark.read_text("utf-8")) != list(script.dependencies):
        shutil.rmtree(home, ignore_errors=True)
        # Some systems have no ensurepip; the pip outside can fill an environment that has none.
        venv.create(home, with_pip=False)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", *script.dependencies], check=True, stdout=sys.stderr)
        mark.write_text(json.dumps(script.dependencies), "utf-8")
    return python


def surroundings(url: str, variant: str = "") -> dict[str, str]:
    """Return the environment variables of a peer: its server, and which of its settings it uses."""
    return {**os.environ, "BENCHMARK_URL": url, "BENCHMARK_VARIANT": variant}


def ask(script: Script, python: Path, step: str, tasks: int, url: str, *, variant: str = "") -> dict[str, Any]:
    """Ask a peer to take one step, and return its answer.

    Raises:
        ClickException: the peer failed; its stderr says why.
    """
    command = [str(python), "-m", f"benchmarks.peers.{script.name}", step, str(tasks)]
    environment = surroundings(url, variant)
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as peer:
        try:
            printed, _ = peer.communicate()
        except KeyboardInterrupt:
            # It was interrupted as well, and ends its workers before it goes.
            peer.wait()
            raise
    if peer.returncode:
        raise click.ClickException(f"{script.name} failed in the step {step!r}; what it said stands above.")
    answer: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return answer
