"""``calibrations run|merge|show``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from core.calibration.record import CalibrationRecord, coverage, find_calibration, load_record, too_few
from core.checkpoints.resolve import resolve
from core.errors import UsageError
from core.evaluation import suites
from workbench.cli.launch import detach_option, run_job
from workbench.cli.session import Session, json_option, print_fields, print_json, print_table

_TASKS = ",".join(suites.DEFAULT_TASKS)


@click.group()
def command() -> None:
    """Run, merge and show calibrations."""


@command.command("run")
@click.argument("checkpoint")
@click.option("--name", help="What to call it; made from checkpoint, tasks, samples and seed if not given.")
@click.option(
    "--tasks",
    default=_TASKS,
    show_default=True,
    metavar="TASK,…",
    help="On which tasks; with --suite, the suite's.",
)
@click.option(
    "--samples", default=16, show_default=True, type=click.IntRange(1), help="Samples of each task."
)
@click.option("--suite", help="A suite's name, or a JSON file in Lance's format, to take the samples from.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Chooses drawn samples and kept rows.",
)
@click.option("--resolution", help="Size preset of pictures looked at, for example image_256res.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--dtype", default="auto", show_default=True, help="auto, bfloat16 or float32.")
@detach_option
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    checkpoint: str,
    name: str | None,
    tasks: str,
    samples: int,
    suite: str | None,
    seed: int,
    resolution: str | None,
    device: str,
    dtype: str,
    detach: bool,
    as_json: bool,
) -> None:
    """Run samples through a checkpoint and keep statistics of what every target linear sees."""
    _check_name(name)
    folder = Path(checkpoint).expanduser()
    resolve(checkpoint, ctx.obj.open(create=True))
    chosen = [task.strip() for task in tasks.split(",") if task.strip()]
    if suite is not None:
        found = suites.load(suite)
        suite = suite if suite in suites.names() else str(Path(suite).expanduser().resolve())
        if tasks == _TASKS:
            chosen = [found.task]
    spec: dict[str, Any] = {
        "checkpoint": str(folder.resolve()) if folder.is_dir() else checkpoint,
        "name": name,
        "tasks": chosen,
        "samples": samples,
        "suite": suite,
        "seed": seed,
        "resolution": resolution,
        "device": device,
        "dtype": dtype,
    }
    run_job(ctx, "calibrate", spec, detach, as_json)


@command.command("merge")
@click.argument("calibrations", nargs=-1, required=True)
@click.option("--name", required=True, help="What to call the merged calibration.")
@json_option
@click.pass_obj
def merge(session: Session, calibrations: tuple[str, ...], name: str, as_json: bool) -> None:
    """Join calibrations of one checkpoint, of several tasks or suites, into one."""
    _check_name(name)
    store = session.open()
    folders = [find_calibration(store, each) for each in calibrations]
    from core.calibration.job import merge_registered  # imports torch

    result = merge_registered(store, folders, name)
    if as_json:
        print_json(result)
    else:
        print_fields(result)


@command.command("show")
@click.argument("calibration", required=False)
@click.option(
    "--min-tokens",
    default=256,
    show_default=True,
    type=click.IntRange(0),
    help="Name linears with fewer tokens.",
)
@json_option
@click.pass_obj
def show(session: Session, calibration: str | None, min_tokens: int, as_json: bool) -> None:
    """Show a calibration's coverage, linear by linear; without a name, list all calibrations."""
    if calibration is None:
        _show_all(session.open(readonly=True).calibrations(), as_json)
        return
    folder = Path(calibration).expanduser()
    if not folder.is_dir():
        folder = find_calibration(session.open(readonly=True), calibration)
    record = load_record(folder)
    table = coverage(record.tokens)
    thin = too_few(table, min_tokens)
    if as_json:
        print_json(
            _summary(folder, record)
            | {
                "settings": record.settings,
                "timesteps": record.timesteps,
                "merged_from": record.merged_from,
                "coverage": {row.linear: row.buckets for row in table},
                "too_few": [row.linear for row in thin],
            }
        )
        return
    print_fields(_summary(folder, record))
    click.echo()
    buckets = sorted({bucket for row in table for bucket in row.buckets})
    print_table(
        ["linear", *buckets, "tokens"],
        [
            [
                row.linear.removeprefix("language_model.model."),
                *(str(row.buckets.get(bucket, 0)) for bucket in buckets),
                str(row.tokens) + (" too few" if row in thin else ""),
            ]
            for row in table
        ],
        [*buckets, "tokens"],
    )


def _summary(folder: Path, record: CalibrationRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "path": str(folder),
        "checkpoint": record.checkpoint,
        "tasks": record.tasks,
        "samples": len(record.samples),
        "tokens": record.total_tokens,
        "dtype": record.dtype,
        "seed": record.seed,
        "fingerprint": record.fingerprint,
    }


def _show_all(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    print_table(
        ["calibration", "checkpoint", "tasks", "samples", "tokens", "path"],
        [
            [
                row["name"],
                row["checkpoint"],
                " ".join(row["tasks"]),
                str(row["samples"]),
                str(row["tokens"]),
                row["path"] if Path(row["path"]).is_dir() else f"{row['path']} (gone)",
            ]
            for row in rows
        ],
        ["samples", "tokens"],
    )


def _check_name(name: str | None) -> None:
    if name is not None and (not name or any(not (c.isalnum() or c in "._+-") for c in name)):
        raise UsageError(f"name {name!r}: wanted letters, digits, and . _ + - for it becomes a folder")
