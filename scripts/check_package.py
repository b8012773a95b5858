"""Builds the package and uses the wheel as a stranger would: `python scripts/check_package.py`.

Builds the source distribution and, from it, the wheel; looks whether all that the library needs is in the
wheel, and nothing else; installs it without extras into an empty environment, and runs it there, far from the
work tree.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "flowfabric_worker"
SHIPPED = frozenset({".py", ".lua", ".sql", ".typed"})


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command and return what it printed; its failure ends this script."""
    print("$", *command, flush=True)
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


def build(into: Path) -> Path:
    """Build both distributions and return the wheel, which is made from the source distribution."""
    run(sys.executable, "-m", "build", "--outdir", into, ROOT, cwd=into)
    (wheel,) = into.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """End the script unless the wheel holds what the package needs at run time, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        licensed = any(name.endswith("/LICENSE") for name in archive.namelist())
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("*") if path.suffix in SHIPPED}
    if packed != wanted:
        sys.exit(f"missing from the wheel: {sorted(wanted - packed)}; not wanted in it: {sorted(packed - wanted)}")
    if not licensed:
        sys.exit("the wheel holds no LICENSE; setup.cfg names it in license_files")


def check_use(wheel: Path, home: Path) -> None:
    """End the script unless the installed wheel can be imported and asked for help."""
    environment = home / "environment"
    venv.create(environment)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", wheel, cwd=home)
    run(sys.executable, "-m", "pip", "--python", python, "check", cwd=home)
    for command in ((python, "-m", PACKAGE), (environment / "bin" / "flowfabric-worker",)):
        if "Usage:" not in run(*command, "--help", cwd=home):
            sys.exit(f"{command} --help does not explain itself")
    where = run(python, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)", cwd=home).strip()
    if not Path(where).is_relative_to(environment):
        sys.exit(f"{PACKAGE} was imported from {where}, not from the wheel")


def main() -> None:
    """Build, looks inside, installs, runs."""
    with tempfile.TemporaryDirectory() as directory:
        wheel = build(Path(directory))
        check_contents(wheel)
        check_use(wheel, Path(directory))
        print(f"{wheel.name} is complete and works")


if __name__ == "__main__":
    main()
