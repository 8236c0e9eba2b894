"""``generate``: any of Lance's seven tasks once, on files and words of yours, in the foreground."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from core.errors import StoreError
from workbench.cli.session import SEED, Finite, Session, device_option, dtype_option, json_option, print_json

if TYPE_CHECKING:
    from core.store import Store

_FILE = click.Path(path_type=Path, dir_okay=False)
_ANSWER = ("instruction", "resolution", "max_new_tokens")
_SAMPLER = ("steps", "shift", "cfg", "seed")
_SIZE = ("height", "width")
# What a task must be given, and what it may; an option of another task is refused and not ignored.
_TASKS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "x2t_image": ({"images": "--image FILE"}, _ANSWER),
    "x2t_video": ({"videos": "--video FILE"}, _ANSWER),
    "t2i": ({"out": "--out FILE.png"}, (*_SIZE, *_SAMPLER)),
    "t2v": ({"out": "--out FILE.mp4"}, (*_SIZE, "frames", *_SAMPLER)),
    "i2v": ({"images": "--image FILE", "out": "--out FILE.mp4"}, ("resolution", "frames", *_SAMPLER)),
    "image_edit": ({"images": "--image FILE", "out": "--out FILE.png"}, ("resolution", *_SAMPLER)),
    "video_edit": ({"videos": "--video FILE", "out": "--out FILE.mp4"}, ("resolution", *_SAMPLER)),
}


def _flag(option: str) -> str:
    return "--" + {"images": "image", "videos": "video"}.get(option, option).replace("_", "-")


def _check_options(task: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given.

    Raises:
        UsageError: one that the task does not have, or one that it needs is missing.
    """
    required, optional = _TASKS[task]
    given = {key: value for key, value in options.items() if value not in (None, ())}
    if misplaced := [_flag(key) for key in given if key not in required and key not in optional]:
        raise click.UsageError(f"{', '.join(misplaced)}: not an option of the task {task}")
    if missing := [wanted for key, wanted in required.items() if key not in given]:
        raise click.UsageError(f"{task} needs {' and '.join(missing)}")
    return given


@click.command()
@click.option("--task", type=click.Choice(list(_TASKS)), required=True, help="What to do.")
@click.option(
    "--prompt", required=True, help="The question, what to draw or film, or how to change the source."
)
@click.option(
    "--checkpoint",
    default="lance-demo",
    show_default=True,
    help="A checkpoint or variant, by name or folder.",
)
@click.option(
    "--image",
    "images",
    type=_FILE,
    multiple=True,
    help="x2t_image (several are allowed), i2v (the first frame), image_edit: a picture.",
)
@click.option("--video", "videos", type=_FILE, multiple=True, help="x2t_video, video_edit: a clip.")
@click.option("--out", type=_FILE, help="The file to write: .png of a picture, .mp4 of a clip.")
@click.option("--instruction", help="x2t: the system turn; Lance's own by default.")
@click.option(
    "--resolution",
    help="Size preset that pictures and clips are cropped to, e.g. image_768res or video_480p; the checkpoint's "
    "by default.",
)
@click.option(
    "--max-new-tokens", type=click.IntRange(1, 256), help="x2t: stop here at the latest; 256 by default."
)
@click.option(
    "--height",
    type=click.IntRange(1),
    help="t2i, t2v: pixels, a multiple of 16; the checkpoint's by default.",
)
@click.option(
    "--width", type=click.IntRange(1), help="t2i, t2v: pixels, a multiple of 16; the checkpoint's by default."
)
@click.option(
    "--frames",
    type=click.IntRange(1),
    help="t2v, i2v: at most 121, 12 a second; 50 by default. 4k+1 are made, never more than asked for.",
)
@click.option("--steps", type=click.IntRange(1), help="Sampler steps; the checkpoint's by default.")
@click.option("--shift", type=Finite(0), help="Timestep shift; the checkpoint's by default.")
@click.option("--cfg", type=Finite(), help="Text guidance scale; the checkpoint's by default.")
@click.option("--seed", type=SEED, help="Seed of the starting noise; 42 by default.")
@device_option
@dtype_option
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
    """Ask a checkpoint or variant about pictures and clips of yours, let it draw, film or edit.

    An answer, or the name of the file written, goes to stdout, progress to stderr; nothing is recorded.
    """
    given = _check_options(task, options)
    # Read when torch loads. Threads that spin while they wait make a small model ten times slower on busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from core.evaluation import single  # torch: after everything that can be wrong with the options

    narrator = _Narrator()
    try:
        opened = single.Session(checkpoint, _store(session), device, dtype, narrator)
        result = opened.run(single.Asked(task, prompt, **given))
    finally:
        narrator.close()
    if as_json:
        print_json({"task": task, **dataclasses.asdict(result)})
    else:
        click.echo(result.text if result.out is None else result.out)


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
