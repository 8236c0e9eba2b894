"""``bench``: speed and memory as a job; ``bench show`` and ``bench export``: its figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from core.errors import UsageError
from core.files import expanded
from core.store import Store
from workbench.cli.launch import detach_option, run_job
from workbench.cli.session import DTYPE, Session, device_option, json_option, print_json, print_table

PARTS = ("kernels", "end-to-end")


@click.group(invoke_without_command=True)
@click.option(
    "--what",
    multiple=True,
    type=click.Choice(PARTS),
    help="kernels: the linears of a full-size expert, beside cuBLAS, tinygemm and gemlite. end-to-end: load "
    "time, tokens a second, seconds a picture, memory. Both if not given.",
)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    metavar="NAME|FOLDER",
    help="A checkpoint or variant to run end to end; may be given several times. Without it, the released size "
    "with random weights in several formats on a GPU, the embedded checkpoint on a processor.",
)
@click.option("--rows", metavar="M,M,…", help="Numbers of rows of activations for the kernels.")
@device_option
@click.option(
    "--dtype", type=DTYPE, default="auto", show_default=True, help="As what to compute; for --checkpoint."
)
@detach_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    what: tuple[str, ...],
    checkpoints: tuple[str, ...],
    rows: str | None,
    device: str,
    dtype: str,
    detach: bool,
    as_json: bool,
) -> None:
    """Measure speed and memory, as a job whose figures are kept with the device and the command.

    A processor gets a smaller set of measurements, and the log says so.
    """
    if ctx.invoked_subcommand is not None:
        return
    session: Session = ctx.obj
    if checkpoints:
        from core.evaluation.subject import open_subjects

        # Looked at here too, so that a mistyped name is an answer and not a failed job.
        store = session.look()
        for name in checkpoints:
            open_subjects(name, store, alone=True)
    spec: dict[str, Any] = {
        "what": list(what or PARTS),
        "checkpoints": [_absolute(name) for name in checkpoints],
        "rows": _rows(rows),
        "device": device,
        "dtype": dtype,
    }

    def show(row: dict[str, Any]) -> None:
        _print(session.open(), row["result"]["runs"])

    run_job(ctx, "bench", spec, detach, as_json, show=show)


def _absolute(name: str) -> str:
    path = expanded(name)
    return str(path.resolve()) if path.is_dir() else name


_ROWS = re.compile("[0-9]{1,5}")


def _rows(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or any(not _ROWS.fullmatch(part) or not 1 <= int(part) <= 65536 for part in parts):
        raise UsageError(f"rows {text!r}: wanted whole numbers from 1 to 65536, such as 1,16,256")
    return [int(part) for part in parts]


def _print(store: Store, ids: list[int]) -> None:
    from core.store import measurements

    rows = measurements.plain_rows(measurements.chosen(store, ids))
    devices = {row[2] for row in rows}
    # One device is a line above the table: its name would take half of a terminal's width in every row.
    kept = [i for i, title in enumerate(measurements.TITLES) if title != "device" or len(devices) > 1]
    if len(devices) == 1:
        click.echo(f"on {devices.pop()}")
    print_table(
        [measurements.TITLES[i] for i in kept], [[row[i] for i in kept] for row in rows], measurements.RIGHT
    )


@command.command("show")
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=int)
@json_option
@click.pass_obj
def show_figures(session: Session, runs: tuple[int, ...], as_json: bool) -> None:
    """Show the figures of benchmark runs, those of the latest benchmark if none is named."""
    from core.store import measurements

    store = session.open(readonly=True)
    if as_json:
        found = measurements.chosen(store, runs)
        print_json(
            [
                {**{key: run[key] for key in ("id", "name", "device", "created_at", "state")},
                 "command": (run["manifest"] or {}).get("command_line"), "figures": measurements.of_run(run)}
                for run in found
            ]
        )  # fmt: skip
        return
    _print(store, list(runs))


@command.command("export")
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=int)
@click.option(
    "--format", "format_", type=click.Choice(("markdown", "csv", "json")), help="markdown by default."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to this file; its suffix may say the format.",
)
@json_option
@click.pass_obj
def export_figures(
    session: Session, runs: tuple[int, ...], format_: str | None, output: Path | None, as_json: bool
) -> None:
    """Export the figures of benchmark runs as markdown, csv or json."""
    from core.store import measurements
    from core.store.clock import now

    suffixes = {".md": "markdown", ".csv": "csv", ".json": "json"}
    form = "json" if as_json else format_ or suffixes.get(output.suffix if output else "", "markdown")
    text = measurements.document(measurements.chosen(session.open(readonly=True), runs), form, now())
    if output is None:
        click.echo(text, nl=False)
        return
    from core.files import write_text

    write_text(output, text)
    click.echo(f"written to {output}", err=True)
