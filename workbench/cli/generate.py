"""``generate``: one answer about pictures of yours, or one picture from a prompt, in the foreground."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from core.errors import StoreError
from workbench.cli.session import Session, json_option, print_json

if TYPE_CHECKING:
    from core.store import Store

_FILE = click.Path(path_type=Path, dir_okay=False)
# What belongs to one task only, so that an option of the other is refused and not ignored.
_ANSWERING = {"images": "--image", "instruction": "--instruction", "resolution": "--resolution",
              "max_new_tokens": "--max-new-tokens"}  # fmt: skip
_DRAWING = {"out": "--out", "height": "--height", "width": "--width", "steps": "--steps", "shift": "--shift",
            "cfg": "--cfg", "seed": "--seed"}  # fmt: skip


@click.command()
@click.option("--task", type=click.Choice(["x2t_image", "t2i"]), required=True, help="Answer, or draw.")
@click.option("--prompt", required=True, help="The question, or what to draw.")
@click.option(
    "--checkpoint",
    default="lance-demo",
    show_default=True,
    help="A checkpoint or variant, by name or folder.",
)
@click.option(
    "--image", "images", type=_FILE, multiple=True, help="x2t_image: a picture; several are allowed."
)
@click.option("--instruction", help="x2t_image: the system turn; Lance's own by default.")
@click.option("--resolution", help="x2t_image: the size preset; the checkpoint's by default.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1, 256),
    help="x2t_image: stop here at the latest; 256 by default.",
)
@click.option("--out", type=_FILE, help="t2i: the PNG file to write.")
@click.option(
    "--height", type=click.IntRange(1), help="t2i: pixels, a multiple of 16; the checkpoint's by default."
)
@click.option(
    "--width", type=click.IntRange(1), help="t2i: pixels, a multiple of 16; the checkpoint's by default."
)
@click.option("--steps", type=click.IntRange(1), help="t2i: sampler steps; the checkpoint's by default.")
@click.option("--shift", type=float, help="t2i: timestep shift; the checkpoint's by default.")
@click.option("--cfg", type=float, help="t2i: text guidance scale; the checkpoint's by default.")
@click.option("--seed", type=int, help="t2i: seed of the starting noise; 42 by default.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--dtype", default="auto", show_default=True, help="auto, bfloat16 or float32.")
@json_option
@click.pass_obj
def command(
    session: Session,
    /,
    task: str,
    prompt: str,
    checkpoint: str,
    device: str,
    dtype: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask a checkpoint or variant about a picture of yours, or let it draw one.

    The answer goes to stdout, progress to stderr; nothing is recorded.
    """
    other = _DRAWING if task == "x2t_image" else _ANSWERING
    if misplaced := [flag for key, flag in other.items() if options[key] not in (None, ())]:
        raise click.UsageError(f"{', '.join(misplaced)}: not an option of the task {task}")
    if task == "t2i" and options["out"] is None:
        raise click.UsageError("t2i needs --out FILE.png")
    if task == "x2t_image" and not options["images"]:
        raise click.UsageError("x2t_image needs --image FILE")
    own = _ANSWERING if task == "x2t_image" else _DRAWING
    given = {key: options[key] for key in own if options[key] is not None}
    from core.evaluation import single  # torch: after everything that can be wrong with the options

    narrator = _Narrator()
    try:
        opened = single.Session(checkpoint, _store(session), device, dtype, narrator)
        ask = opened.answer if task == "x2t_image" else opened.draw
        result = ask(prompt=prompt, **given)
    finally:
        narrator.close()
    if as_json:
        print_json({"task": task, **dataclasses.asdict(result)})
    else:
        click.echo(result.text if task == "x2t_image" else result.out)


def _store(session: Session) -> Store | None:
    """The database if there is one: the embedded checkpoint and folders need none."""
    try:
        return session.open(readonly=True)
    except StoreError as error:
        if session.db is not None or "no such database" not in str(error):
            raise
        return None


class _Narrator:
    """Tells progress on stderr: rewritten in place on a terminal; elsewhere only what happens once."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._open = False

    def __call__(self, text: str) -> None:
        if self._live:
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)
            self._open = True
        elif not text.startswith(("token ", "step ")):
            click.echo(text, err=True)

    def close(self) -> None:
        """Clear the live line."""
        if self._open:
            click.echo("\r\x1b[K", err=True, nl=False)
