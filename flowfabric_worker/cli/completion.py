"""The command `completion`: print the script that completes commands and options in a shell."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from flowfabric_worker.cli.exit_codes import CommandError, ExitCode, debug_option

PROGRAM: Final = "flowfabric-worker"
# The variable by which a shell asks for completions; click derives it from the name of the program.
VARIABLE: Final = "_FLOWFABRIC_WORKER_COMPLETE"

_SHELLS: Final = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@debug_option
@click.pass_context
def completion(ctx: click.Context, *, shell: str) -> None:
    """Print a script that completes commands in a shell.

    \b
    Add the line for your shell to the file next to it, and start a new shell:
      eval "$(flowfabric-worker completion bash)"   ~/.bashrc
      eval "$(flowfabric-worker completion zsh)"    ~/.zshrc
      flowfabric-worker completion fish | source    ~/.config/fish/config.fish

    It completes the command flowfabric-worker, not python -m flowfabric_worker.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise CommandError(f"This version of click has no completion for {shell}.", ExitCode.FAILED)
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())
