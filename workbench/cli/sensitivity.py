"""``variants sensitivity`` and ``sensitivities``: how much a checkpoint suffers from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from core.calibration.record import find_calibration
from core.checkpoints.describe import describe
from core.checkpoints.resolve import resolve
from core.files import expanded, write_text
from core.quantization import recipe as recipes
from core.quantization.fit import check
from workbench.cli.launch import detach_option, run_job
from workbench.cli.session import GroupSize, Session, device_option, json_option, print_json, print_table
from workbench.places import absolute_suite

FORMATS = ("table", "markdown", "json")

format_option = click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="markdown and json have every linear.",
)
out_option = click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write markdown or JSON to this file."
)


@click.command("sensitivity")
@click.argument("checkpoint")
@click.option("--recipe", default="int4-best", show_default=True, help="A recipe's name, or a TOML file.")
@click.option(
    "--group", type=GroupSize(), help="Weights that share a scale, in place of what the recipe says."
)
@click.option(
    "--calibration", required=True, help="A calibration's name or folder, whose rows are measured on."
)
@click.option(
    "--suite",
    "suites",
    multiple=True,
    metavar="NAME|FILE",
    help="Samples whose answers and velocities are measured on (text or text:FILE for a causal LM); may be given "
    "several times. Without it, samples that are drawn for the embedded checkpoint, or the text that comes along.",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first so many samples of each suite.")
@format_option
@out_option
@device_option
@detach_option
@json_option
@click.pass_context
def sensitivity(
    ctx: click.Context,
    checkpoint: str,
    recipe: str,
    group: int | Literal["channel"] | None,
    calibration: str,
    suites: tuple[str, ...],
    limit: int | None,
    format_: str,
    out: Path | None,
    device: str,
    detach: bool,
    as_json: bool,
) -> None:
    """Measure where a recipe hurts a CHECKPOINT.

    Step by step of the recipe, run in the model: KL of its answers and error of its velocities. Layer by layer and
    linear by linear: signal to quantization noise of weights and of outputs on the calibration's rows. Group by group
    of linears, rounded alone: what the mixed recipe chooses its widths by.
    """
    from core.quantization import sensitivity_results, sensitivity_samples

    store = ctx.obj.look()
    # What is plainly wrong is said now, before a job is queued.
    info = describe(resolve(checkpoint, store))
    check(recipes.load(recipe).with_group(group), info, find_calibration(store, calibration))
    names = [absolute_suite(name) for name in suites]
    sensitivity_samples.chosen(info, names, limit)
    spec: dict[str, Any] = {
        "checkpoint": absolute_suite(checkpoint),
        "recipe": recipe if recipe in recipes.names() else str(expanded(recipe).resolve()),
        "group": group,
        "calibration": absolute_suite(calibration),
        "suites": names,
        "limit": limit,
        "device": device,
    }

    def show(row: dict[str, Any]) -> None:
        _print(sensitivity_results.read(Path(row["result"]["path"])), _format(format_, out), out)

    run_job(ctx, "sensitivity", spec, detach, as_json, show=show)


@click.command("sensitivities")
@click.argument("name", required=False)
@format_option
@out_option
@json_option
@click.pass_obj
def sensitivities(session: Session, name: str | None, format_: str, out: Path | None, as_json: bool) -> None:
    """Show a measured sensitivity again; without a NAME, list all of them, the newest first."""
    from core.quantization import sensitivity_results as results

    data_dir = session.open(readonly=True).data_dir
    if name is not None:
        _print(results.named(data_dir, name), "json" if as_json else _format(format_, out), out)
        return
    rows = [_row(results.read(file)) for file in results.files(data_dir)]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["sensitivity", "checkpoint", "recipe", "calibration", "samples", "KL"],
        [
            [
                row["name"],
                row["checkpoint"],
                row["recipe"],
                row["calibration"],
                str(row["samples"]),
                _kl(row["kl"]),
            ]
            for row in rows
        ],
        ["samples", "KL"],
    )


def _row(found: dict[str, Any]) -> dict[str, Any]:
    """A result in a line: what it is of, and the KL of the whole recipe where it was run."""
    steps = found.get("steps") or [{"scores": {}}]
    kept = {key: found[key] for key in ("name", "checkpoint", "recipe", "calibration", "device")}
    return kept | {"samples": found["measured_on"]["samples"], "kl": steps[-1]["scores"].get("kl")}


def _kl(value: float | None) -> str:
    from core.store.columns import number

    return "" if value is None else number(value, 4, value)


def _format(format_: str, out: Path | None) -> str:
    """The format, told by the file's name where a table would be written to it."""
    if out is None or format_ != "table":
        return format_
    return "json" if out.suffix == ".json" else "markdown"


def _print(found: dict[str, Any], format_: str, out: Path | None) -> None:
    import json

    from core.quantization.sensitivity_report import markdown, tables

    if out is not None:
        write_text(out, json.dumps(found, indent=1) + "\n" if format_ == "json" else markdown(found))
        click.echo(f"{out} written", err=True)
    elif format_ == "json":
        print_json(found)
    elif format_ == "markdown":
        click.echo(markdown(found), nl=False)
    else:
        for number, (title, titles, rows, right) in enumerate(tables(found)):
            click.echo(("\n" if number else "") + title)
            print_table(titles, rows, [head for head, end in zip(titles, right, strict=True) if end])
