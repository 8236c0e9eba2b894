"""``completion``: the script that teaches a shell this command line."""

from __future__ import annotations

import os
from pathlib import Path

import click

from core.errors import UsageError
from workbench.__main__ import COMPLETION_VARIABLE
from workbench.cli.session import json_option, print_json

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", required=False, type=click.Choice(SHELLS))
@json_option
@click.pass_context
def command(ctx: click.Context, shell: str | None, as_json: bool) -> None:
    """Print the completion script of SHELL, which is $SHELL if not given.

    For bash: lance-workbench completion bash >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    name = shell or Path(os.environ.get("SHELL", "")).name
    found = get_completion_class(name) if name in SHELLS else None
    if found is None:
        raise UsageError(f"shell {name!r}: no completion for it; known are {', '.join(SHELLS)}")
    root = ctx.find_root()
    script = found(root.command, {}, "lance-workbench", COMPLETION_VARIABLE).source()
    if as_json:
        print_json({"shell": name, "script": script})
    else:
        click.echo(script)
