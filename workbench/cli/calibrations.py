"""``calibrations run|merge|show|remove``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from core.calibration import prose
from core.calibration.record import (
    CalibrationRecord,
    check_source,
    coverage,
    find_calibration,
    load_record,
    too_few,
)
from core.calibration.samples import DEFAULT_SAMPLES, MIXED, MOST_DRAWN, sample_set
from core.checkpoints.describe import CheckpointInfo, describe
from core.checkpoints.resolve import resolve
from core.errors import UsageError
from core.evaluation import suites
from core.evaluation.samples import DEFAULT_TASKS, TASKS, TEXT
from core.files import expanded, is_folder
from core.store import Store
from workbench.cli.launch import detach_option, run_job
from workbench.cli.removal import removal_options, remove_all
from workbench.cli.session import (
    SEED,
    Session,
    device_option,
    dtype_option,
    json_option,
    print_fields,
    print_json,
    print_table,
)

_TASKS = (*TASKS, MIXED)
_DEFAULT = ",".join(DEFAULT_TASKS)
_ROLES = ("text", "vit", "answer", "clean", "noisy")


@click.group()
def command() -> None:
    """Run, merge, show and remove calibrations."""


@command.command("run")
@click.argument("checkpoint")
@click.option("--name", help="What to call it; made from checkpoint, tasks, samples and seed if not given.")
@click.option(
    "--tasks",
    metavar="TASK,…",
    help=f"On which of {', '.join(_TASKS)}; all for all of them. mixed packs a sample of each into one sequence. "
    f"By default {_DEFAULT}, or with --suite the suites' own.",
)
@click.option(
    "--samples",
    type=click.IntRange(1, MOST_DRAWN),
    help="Samples of each task, by default 16; of a causal LM sequences of text, by default 128.",
)
@click.option(
    "--suite",
    "files",
    multiple=True,
    metavar="NAME|FILE",
    help="A suite's name, or a JSON or JSON lines file in Lance's format, or a .txt file with a question a line, to "
    "take the samples from; may be given several times.",
)
@click.option("--force", is_flag=True, help="Take samples that are evaluated on too; the record names them.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=SEED,
    help="Chooses drawn samples and kept rows.",
)
@click.option("--resolution", help="Size preset of pictures and clips looked at, for example image_256res.")
@click.option("--height", type=click.IntRange(1), help="t2i, t2v: pixels; the checkpoint's by default.")
@click.option("--width", type=click.IntRange(1), help="t2i, t2v: pixels; the checkpoint's by default.")
@click.option("--frames", "num_frames", type=click.IntRange(1), help="t2v, i2v: frames, at most 121.")
@click.option(
    "--steps", "num_steps", type=click.IntRange(1), help="Sampler steps; the whole schedule is seen."
)
@click.option("--max-new-tokens", type=click.IntRange(1, 256), help="Answers end here at the latest.")
@click.option(
    "--rows", type=click.IntRange(1), help="Rows kept of each input, task and role; fewer take less memory."
)
@device_option
@dtype_option
@click.option("--dry-run", is_flag=True, help="Tell tokens and memory, and do nothing.")
@detach_option
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    /,
    checkpoint: str,
    name: str | None,
    tasks: str | None,
    files: tuple[str, ...],
    dry_run: bool,
    detach: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run samples through a checkpoint and keep statistics of what every target linear sees."""
    _check_name(name)
    folder = expanded(checkpoint)
    store = ctx.obj.look()
    info = describe(resolve(checkpoint, store))
    check_source(info)
    spec: dict[str, Any] = {
        "checkpoint": str(folder.resolve()) if folder.is_dir() else checkpoint,
        "name": name,
        "tasks": [task.strip() for task in (tasks or "").split(",") if task.strip()] or None,
        "suites": [each if each in suites.names() else str(expanded(each).resolve()) for each in files],
        **options,
    }
    if info.family == "huggingface":
        if dry_run:
            raise UsageError(f"{info.name} is no Lance: leave --dry-run out")
        prose.check_tasks(info, spec["tasks"] or [prose.TASK])
        file = prose.one_file(info, spec.pop("suites"))
        prose.documents(file)
        run_job(ctx, "calibrate", spec | {"suite": file}, detach, as_json)
        return
    if tasks == "all":
        spec["tasks"] = list(_TASKS)
    elif tasks is None and files:
        spec["tasks"] = list(dict.fromkeys(suites.load(each).task for each in spec["suites"]))
    _check_samples(spec, info, store)
    if dry_run:
        _foretell(spec, info, store, as_json)
        return
    run_job(ctx, "calibrate", spec, detach, as_json)


def _check_samples(spec: dict[str, Any], info: CheckpointInfo, store: Store) -> None:
    """Find the samples here too, so that a mistake is an answer and not a failed job."""
    from core.evaluation.overlap import Evaluated

    tasks = spec["tasks"] or list(DEFAULT_TASKS)
    count = spec["samples"] or DEFAULT_SAMPLES
    only_drawn = not spec["suites"] and TEXT not in tasks and tasks != [MIXED]
    sample_set(
        info.name,
        tasks,
        # Drawn ones need not all be drawn to know that they can be.
        1 if only_drawn else count,
        spec["suites"],
        spec["seed"],
        evaluated=Evaluated(store),
        force=spec["force"],
    )


def _foretell(spec: dict[str, Any], info: CheckpointInfo, store: Store, as_json: bool) -> None:
    from core.calibration.plan import make_plan  # imports torch
    from core.evaluation.footprint import gigabytes

    told = make_plan(spec, info, store).summary()
    if as_json:
        print_json(told)
        return
    _print_roles(told["tokens"])
    click.echo()
    sizes = {f"{part} memory": gigabytes(size) for part, size in told["memory"].items()}
    sizes |= {"peak on " + told["device"]: gigabytes(told["device_bytes"])}
    if told["device"] != "cpu":
        sizes["peak on the host"] = gigabytes(told["host_bytes"])
    if told["free_bytes"] is not None:
        sizes["free on " + told["device"]] = gigabytes(told["free_bytes"])
    print_fields(sizes)


def _print_roles(tokens: Mapping[str, Mapping[str, int]]) -> None:
    """Tokens by task and role."""
    roles = [role for role in _ROLES if any(role in counts for counts in tokens.values())]
    print_table(
        ["tokens", *roles],
        [[task, *(str(counts.get(role, "")) for role in roles)] for task, counts in tokens.items()],
        roles,
    )


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
    folder = expanded(calibration)
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
                "evaluated": record.evaluated,
                "roles": record.by_role(),
                "coverage": {row.linear: row.buckets for row in table},
                "too_few": [row.linear for row in thin],
            }
        )
        return
    print_fields(_summary(folder, record))
    if record.evaluated:
        click.echo(f"evaluated on too, which was forced: {', '.join(record.evaluated)}")
    click.echo()
    _print_roles(record.by_role())
    click.echo()
    by_linear = [(row, _by_role(row.buckets)) for row in table]
    roles = [role for role in _ROLES if any(role in counts for _, counts in by_linear)]
    print_table(
        ["linear", *roles, "tokens"],
        [
            [
                row.linear.removeprefix("language_model.model."),
                *(str(counts.get(role, 0)) for role in roles),
                str(row.tokens) + (" too few" if row in thin else ""),
            ]
            for row, counts in by_linear
        ],
        [*roles, "tokens"],
    )


@command.command("remove")
@removal_options
@click.pass_obj
def remove(session: Session, names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete calibrations with their files. Variants and runs that were made with them stay.

    Of those variants it can no longer be told whether a suite holds samples that they were calibrated on.
    """
    remove_all(session, "calibration", names, yes, as_json)


def _by_role(buckets: Mapping[str, int]) -> dict[str, int]:
    """Tokens of all tasks together, by role."""
    found: dict[str, int] = {}
    for bucket, count in buckets.items():
        role = bucket.rpartition("/")[2]
        found[role] = found.get(role, 0) + count
    return found


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
                row["path"] if is_folder(row["path"]) else f"{row['path']} (gone)",
            ]
            for row in rows
        ],
        ["samples", "tokens"],
    )


def _check_name(name: str | None) -> None:
    if name is not None and (not name or any(not (c.isalnum() or c in "._+-") for c in name)):
        raise UsageError(f"name {name!r}: wanted letters, digits, and . _ + - for it becomes a folder")
    if name is not None and name.startswith("."):
        raise UsageError(f"name {name!r}: begins with a dot, and what does is hidden; choose another")
