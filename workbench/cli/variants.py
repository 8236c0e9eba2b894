"""``variants quantize|import|list|show|remove|sensitivity|sensitivities``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from core.calibration.record import find_calibration
from core.checkpoints.describe import describe, own_record
from core.checkpoints.resolve import resolve
from core.errors import UsageError
from core.files import expanded, is_folder
from core.plain_text import visible
from core.quantization import recipe as recipes
from core.quantization.fit import check, check_output
from core.store.columns import size
from workbench.cli.launch import detach_option, run_job
from workbench.cli.removal import removal_options, remove_all
from workbench.cli.sensitivity import sensitivities, sensitivity
from workbench.cli.session import (
    GroupSize,
    Session,
    device_option,
    json_option,
    print_fields,
    print_json,
    print_table,
)
from workbench.removal import begun, what


@click.group()
def command() -> None:
    """Quantize checkpoints; list, show and remove variants."""


command.add_command(sensitivity)
command.add_command(sensitivities)


@command.command("quantize")
@click.argument("checkpoint")
@click.option("--recipe", default="int4-awq", show_default=True, help="A recipe's name, or a TOML file.")
@click.option(
    "--group",
    type=GroupSize(),
    help="Weights that share a scale, or 'channel' for one scale a row, in place of what the recipe says.",
)
@click.option(
    "--calibration", help="A calibration's name or folder; recipes that look at activations need one."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The variant's folder, beside the database if not given.",
)
@device_option
@click.option("--dry-run", is_flag=True, help="Only predict size, peak memory and time; nothing is written.")
@detach_option
@json_option
@click.pass_context
def quantize(
    ctx: click.Context,
    checkpoint: str,
    recipe: str,
    group: int | Literal["channel"] | None,
    calibration: str | None,
    output: Path | None,
    device: str,
    dry_run: bool,
    detach: bool,
    as_json: bool,
) -> None:
    """Make a variant of a checkpoint by a recipe."""
    store = ctx.obj.look()
    # What is plainly wrong is said now, before a job is queued.
    chosen = recipes.load(recipe).with_group(group)
    info = describe(resolve(checkpoint, store))
    check(chosen, info, None if calibration is None else find_calibration(store, calibration))
    place = None if output is None else expanded(output).resolve()
    if place is not None:
        check_output(place)
    spec: dict[str, Any] = {
        "checkpoint": _absolute(checkpoint),
        "recipe": recipe if recipe in recipes.names() else str(expanded(recipe).resolve()),
        "group": group,
        "calibration": None if calibration is None else _absolute(calibration),
        "output": None if place is None else str(place),
        "device": device,
        "dry_run": dry_run,
    }
    run_job(ctx, "quantize", spec, detach, as_json)


def _absolute(name: str) -> str:
    """A name as it is, an existing folder by its absolute path: a job may run elsewhere."""
    path = expanded(name)
    return str(path.resolve()) if path.is_dir() else name


@command.command("import")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--checkpoint", required=True, help="The checkpoint it was made from, by name or folder.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The variant's folder, beside the database if not given.",
)
@json_option
@click.pass_obj
def import_folder(
    session: Session, folder: Path, checkpoint: str, output: Path | None, as_json: bool
) -> None:
    """Make a variant of a FOLDER of lance-quant's; no number of it changes.

    FOLDER holds awq_state_dict.safetensors and awq_meta.json, in four or five bits, or nvfp4_state_dict.safetensors
    and nvfp4_meta.json. Of the two copies of its scales that an NVFP4 file has, the E4M3 one is taken.
    """
    from core.quantization.importing import check_import, import_variant

    place = expanded(folder).resolve()
    source = resolve(checkpoint, session.look())
    check_import(place, source)
    target = None if output is None else expanded(output).resolve()
    done = import_variant(session.open(create=True), place, source, target)
    if as_json:
        print_json(done)
    else:
        print_fields(done | {"size_bytes": size(done["size_bytes"])})


@command.command("list")
@json_option
@click.pass_obj
def list_variants(session: Session, as_json: bool) -> None:
    """List the variants made so far, by checkpoint."""
    store = session.open(readonly=True)
    rows = store.checkpoints("variant")
    if as_json:
        print_json(rows)
        return
    print_table(
        ["variant", "checkpoint", "recipe", "bits", "size", "loss", "path"],
        [
            [
                row["name"],
                row["parent"] or "",
                row["recipe"] or "",
                "" if row["bits"] is None else f"{row['bits']:.2f}",
                "" if row["size_bytes"] is None else size(row["size_bytes"]),
                _loss(row["details"].get("loss_after")),
                row["path"] if is_folder(row["path"]) else f"{row['path']} (gone)",
            ]
            for row in rows
        ],
        ["bits", "size", "loss"],
    )
    finished = {row["name"] for row in rows}
    for each in begun(store):
        name = each.found.name
        if not each.running and name not in finished:
            click.echo(
                f"{visible(name)}: {what(each.found)}, {size(each.found.size_bytes)}; quantizing it again goes on with "
                f"it, `variants remove {visible(name)}` removes it",
                err=True,
            )


@command.command("show")
@click.argument("variant")
@json_option
@click.pass_obj
def show_variant(session: Session, variant: str, as_json: bool) -> None:
    """Show how a variant was made, linear by linear."""
    folder = resolve(variant, None if expanded(variant).is_dir() else session.open(readonly=True))
    info, record = describe(folder), own_record(folder)
    if info.kind != "variant":
        raise UsageError(f"{info.name}: a checkpoint, not a variant; see `checkpoints show {variant}`")
    if as_json:
        print_json(record)
        return
    shown = {key: value for key, value in record.items() if key not in ("linears", "files", "defaults")}
    print_fields(shown | {"path": str(folder), "size_bytes": size(record["size_bytes"])})
    click.echo()
    print_table(
        ["linear", "scheme", "scaling", "exponent", "rounding", "rounded", "stored", "SQNR", "tokens"],
        [
            [
                row["linear"].removeprefix("language_model.model."),
                row["scheme"],
                row["mode"],
                f"{row['exponent']:.2f}" if row["mode"] in ("plain", "duo") else "",
                row.get("rounding", "nearest"),
                _loss(row["loss_before"]),
                _loss(row["loss_after"]),
                _decibels(row.get("output_sqnr")),
                "" if row["tokens"] is None else str(row["tokens"]),
            ]
            for row in record["linears"]
        ],
        ["exponent", "rounded", "stored", "SQNR", "tokens"],
    )


@command.command("remove")
@removal_options
@click.pass_obj
def remove_variants(session: Session, names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete variants with their files. Runs of them stay, with every output."""
    remove_all(session, "variant", names, yes, as_json)


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}"


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} dB"
