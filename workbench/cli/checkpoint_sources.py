"""``checkpoints add``, ``fetch`` and ``random``: where checkpoints come from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from core.checkpoints.describe import OWN_FILE, describe, is_name
from core.checkpoints.layout import structure_of, words
from core.demo import CHECKPOINT, NAME
from core.errors import CheckpointError, UsageError
from core.files import expanded
from core.store.columns import size
from workbench.cli.session import SEED, Finite, Session, json_option, print_fields, print_json

if TYPE_CHECKING:
    from core.store import Store

_FOLDER = click.Path(path_type=Path, file_okay=False)


def _check_name(store: Store, name: str, folder: Path, way_out: str = "choose another name") -> None:
    """Refuse to take a name from another checkpoint that is still there; the embedded one always is."""
    row = store.checkpoint(name)
    holder = CHECKPOINT if name == NAME else Path(row["path"]) if row is not None else None
    if holder is not None and holder.is_dir() and holder.resolve() != folder.resolve():
        raise UsageError(f"{name}: is registered already, at {holder}; {way_out}")


def _register(session: Session, folder: Path, details: dict[str, Any]) -> dict[str, Any]:
    """Make the checkpoint in ``folder`` known by its name; what is told about it."""
    info = describe(folder)
    _check_name(
        session.look(),
        info.name,
        folder,
        f"a checkpoint's name is the one in its {OWN_FILE}, else its folder's: change it there",
    )
    session.open(create=True).register_checkpoint(
        name=info.name,
        path=str(info.path),
        kind=info.kind,
        family=info.family,
        size_bytes=info.nbytes,
        fingerprint=info.fingerprint,
        details=details,
    )
    return {
        "name": info.name,
        "path": str(info.path),
        "family": info.family,
        "size_bytes": info.nbytes,
        "missing": info.missing,
        **details,
    }


def _print(fields: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(fields)
    else:
        print_fields({key: size(value) if key.endswith("_bytes") else value for key, value in fields.items()})


@click.command("add")
@click.argument("folder", type=_FOLDER)
@json_option
@click.pass_obj
def add_checkpoint(session: Session, folder: Path, as_json: bool) -> None:
    """Make the checkpoint or variant in FOLDER known by its name: a Lance, or a causal LM that transformers loads.

    A causal LM is a folder with config.json, a tokenizer and safetensors files, in one piece or in shards. Nothing is
    copied or changed.
    """
    place = expanded(folder)
    if not place.is_dir():
        raise UsageError(
            f"{folder}: no such folder; give one that holds a checkpoint, or fetch one: `checkpoints fetch`"
        )
    structure = structure_of(place)
    fields = _register(session, place, {"structure": words(structure)})
    _print(fields, as_json)


@click.command("fetch")
@click.argument("repo", default="bytedance-research/Lance")
@click.option("--model", help="The model's folder in the repository, e.g. Lance_3B or Lance_3B_Video.")
@click.option("--revision", help="Branch, tag or commit; the newest by default.")
@click.option(
    "--allow",
    "patterns",
    multiple=True,
    help="Fetch only files that match, e.g. 'Lance_3B/*.json'; several are allowed.",
)
@click.option("--out", type=_FOLDER, help="Fetch into this folder; the Hub's cache by default.")
@click.option("--dry-run", is_flag=True, help="Say what would be fetched and whether it fits.")
@json_option
@click.pass_obj
def fetch_checkpoint(
    session: Session,
    repo: str,
    model: str | None,
    revision: str | None,
    patterns: tuple[str, ...],
    out: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fetch a checkpoint from the Hugging Face Hub and register it: a Lance with its vision tower and VAE, or a causal
    LM with its tokenizer, in safetensors.

    A fetch that was interrupted goes on where it stopped. HF_HUB_OFFLINE takes it from the cache.
    """
    from core.checkpoints.fetch import fetch, look_up

    if dry_run:
        choice = look_up(repo, model, revision=revision, patterns=patterns, out=out)
        _print(
            {
                "repo": repo,
                "revision": choice.listing.revision,
                "model": choice.model,
                "files": choice.names,
                "size_bytes": choice.nbytes,
                "missing_bytes": choice.needed,
            },
            as_json,
        )
        return
    session.look()  # a database that cannot be used is told before, and not after, everything was loaded
    got = fetch(repo, model, revision=revision, patterns=patterns, out=out)
    details = {"repo": got.repo, "revision": got.revision, "fetched_bytes": got.loaded}
    try:
        structure = words(structure_of(got.folder))
        fields = _register(session, got.folder, details | {"structure": structure})
    except CheckpointError as error:
        if not patterns:
            raise
        # Some files of a checkpoint were asked for, and they came: no checkpoint yet, but no fault either.
        fields = {"path": str(got.folder), **details, "not registered": str(error)}
    _print(fields, as_json)


@click.command("random")
@click.argument("folder", type=_FOLDER)
@click.option("--size", "size_name", default="3b", show_default=True, help="3b, the released sizes, or tiny.")
@click.option("--layers", type=click.IntRange(1), help="Decoder layers; the size's by default.")
@click.option(
    "--layout",
    type=click.Choice(["image", "video"]),
    default="image",
    show_default=True,
    help="As Lance_3B (vision tower apart) or as Lance_3B_Video (31-frame position table, vision tower bundled).",
)
@click.option(
    "--vision", type=click.Choice(["separate", "bundled"]), help="Where the vision tower goes, if not so."
)
@click.option(
    "--dtype", type=click.Choice(["F32", "BF16"]), default="F32", show_default=True, help="As stored."
)
@click.option(
    "--shard-gb",
    type=Finite(0),
    help="Split the weights into files of at most this.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the weights.")
@click.option("--name", help="What to call it; lance-random-SIZE by default.")
@click.option(
    "--tokenizer", type=_FOLDER, help="Folder to take the tokenizer from; the embedded one by default."
)
@click.option("--dry-run", is_flag=True, help="Say what would be written and how much.")
@json_option
@click.pass_obj
def random_checkpoint(
    session: Session,
    folder: Path,
    size_name: str,
    layers: int | None,
    layout: str,
    vision: str | None,
    dtype: str,
    shard_gb: float | None,
    seed: int,
    name: str | None,
    tokenizer: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a checkpoint of Lance's full layout from random weights into FOLDER, and register it.

    For tests, and for measuring on machines without the released weights: its answers mean nothing.
    """
    from core.checkpoints.sizes import sizes

    chosen = sizes(size_name)
    if layers is not None:
        chosen = chosen.with_layers(layers)
    called = name or f"lance-random-{size_name}" + ("-video" if layout == "video" else "")
    if not is_name(called):
        raise UsageError(f"name {called!r}: wanted one that a folder can have, without / and not hidden")
    from core.checkpoints import random  # torch: after everything that can be wrong with the options

    planned = random.plan(
        chosen,
        layout="video" if layout == "video" else "image",
        dtype="BF16" if dtype == "BF16" else "F32",
        bundled_vision=None if vision is None else vision == "bundled",
        shard_bytes=None if shard_gb is None else int(shard_gb * 1e9),
    )
    if dry_run:
        files = {file: sum(slot.nbytes for slot in slots) for file, slots in planned.files.items()}
        _print({"name": called, "files": files, "size_bytes": planned.nbytes}, as_json)
        return
    _check_name(session.look(), called, folder / random.MODEL_FOLDER)
    meter = _Meter()
    try:
        model = random.write_random(
            folder, planned, seed=seed, name=called, tokenizer=tokenizer, progress=meter
        )
    finally:
        meter.close()
    _print(_register(session, model, {"random_size": size_name, "seed": seed}), as_json)


class _Meter:
    """Tells bytes written on a terminal, in place."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._told = ""

    def __call__(self, done: int, total: int) -> None:
        text = f"{done / 1e9:.1f} of {total / 1e9:.1f} GB written"
        if self._live and text != self._told:
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)
            self._told = text

    def close(self) -> None:
        """Clear the line."""
        if self._told:
            click.echo("\r\x1b[K", err=True, nl=False)
