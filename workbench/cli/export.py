"""``export huggingface|mlx|coreml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from core.files import expanded
from core.formats.export_request import FORMATS, look_up
from core.plain_text import visible
from core.store.columns import size
from workbench.cli.launch import detach_option, run_job
from workbench.cli.session import json_option, print_fields
from workbench.places import absolute


@click.group()
def command() -> None:
    """Write a checkpoint or variant in the layout of another program."""


def _verb(name: str) -> click.Command:
    """The command that exports as ``name``."""

    @click.argument("source")
    @click.option(
        "--output",
        type=click.Path(path_type=Path),
        help="What to write, beside the database if not given; nothing that is there is replaced.",
    )
    @detach_option
    @json_option
    @click.pass_context
    def export(ctx: click.Context, source: str, output: Path | None, detach: bool, as_json: bool) -> None:
        spec = {
            "checkpoint": absolute(source),
            "format": name,
            "output": None if output is None else str(expanded(output).resolve()),
        }
        # What is plainly wrong is said now, before a job is queued.
        look_up(spec, ctx.obj.look())
        run_job(ctx, "export", spec, detach, as_json, show=_show)

    about = f"{FORMATS[name].about}\n\nSOURCE is a checkpoint or variant, by name or folder."
    return click.command(name, help=about, short_help=FORMATS[name].about)(export)


for _name in FORMATS:
    command.add_command(_verb(_name))


def _show(row: dict[str, Any]) -> None:
    """Print what was written, what it lacks and how to load it."""
    done = row["result"]
    print_fields(
        {
            "path": done["path"],
            "size": size(done["size_bytes"]),
            "files": len(done["files"]),
            "loads with": done["loads_with"],
        }
    )
    for number, each in enumerate(done["left_out"]):
        click.echo(f"{'' if number else 'left out':<10}  {visible(each)}")
