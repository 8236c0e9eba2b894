"""``checkpoints list|show|verify``; ``add``, ``fetch``, ``random`` and ``publish`` are in modules of their own."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from core.checkpoints.describe import describe
from core.checkpoints.layout import structure_of, words
from core.checkpoints.resolve import resolve
from core.demo import CHECKPOINT, NAME
from core.errors import CheckpointError, StoreError
from core.files import is_folder
from core.store import Store
from core.store.columns import size
from workbench.cli.checkpoint_publish import publish_checkpoint
from workbench.cli.checkpoint_sources import add_checkpoint, fetch_checkpoint, random_checkpoint
from workbench.cli.session import Session, json_option, print_fields, print_json, print_table


@click.group()
def command() -> None:
    """List, show, verify, add, fetch, make and publish checkpoints."""


command.add_command(add_checkpoint)
command.add_command(fetch_checkpoint)
command.add_command(random_checkpoint)
command.add_command(publish_checkpoint)


def _store(session: Session) -> Store | None:
    """The database if there is one: a checkpoint can be looked at without."""
    try:
        return session.open(readonly=True)
    except StoreError as error:
        if session.db is not None or "no such database" not in str(error):
            raise
        return None


def _known(store: Store | None) -> list[dict[str, Any]]:
    rows = store.checkpoints() if store is not None else []
    if not any(row["name"] == NAME for row in rows):
        rows.insert(0, {"name": NAME, "path": str(CHECKPOINT), "kind": "checkpoint", "parent": None, "recipe": None,
                        "bits": None, "size_bytes": None})  # fmt: skip
    for row in rows:
        row["present"] = is_folder(row["path"])
        if row["present"] and row["size_bytes"] is None:
            with contextlib.suppress(OSError):  # that may not be looked into
                row["size_bytes"] = sum(
                    file.stat().st_size for file in Path(row["path"]).iterdir() if file.is_file()
                )
    return rows


@command.command("list")
@json_option
@click.pass_obj
def list_checkpoints(session: Session, as_json: bool) -> None:
    """List the embedded checkpoint, registered ones, and the variants made from them."""
    rows = _known(_store(session))
    if as_json:
        print_json(rows)
        return
    print_table(
        ["name", "kind", "recipe", "bits", "size", "path"],
        [
            [
                ("  " if row["parent"] else "") + row["name"],
                row["kind"],
                row["recipe"] or "",
                "" if row["bits"] is None else f"{row['bits']:.1f}",
                size(row["size_bytes"]) if row["size_bytes"] is not None else "",
                row["path"] if row["present"] else f"{row['path']} (gone)",
            ]
            for row in rows
        ],
        ["bits", "size"],
    )


@command.command("show")
@click.argument("checkpoint")
@json_option
@click.pass_obj
def show_checkpoint(session: Session, checkpoint: str, as_json: bool) -> None:
    """Describe a checkpoint or variant, by name or folder: layout, size, dtypes, what is missing."""
    info = describe(resolve(checkpoint, _store(session)))
    fields = {
        "name": info.name,
        "path": str(info.path),
        "kind": info.kind,
        "family": info.family,
        "structure": _structure(info.path),
        "size_bytes": info.nbytes,
        "parameters": info.parameters,
        "tensors": info.tensors,
        "dtypes": info.dtypes,
        "missing": info.missing,
        "fingerprint": info.fingerprint,
        "quantization": info.quantization,
        "defaults": info.defaults,
        "config": info.config,
    }
    if as_json:
        print_json(fields)
    else:
        print_fields({**fields, "size_bytes": size(info.nbytes), "config": None})


def _structure(folder: Path) -> str:
    """The decoder in words, or why it cannot be quantized."""
    try:
        return words(structure_of(folder))
    except CheckpointError as error:
        return str(error)


@command.command("verify")
@click.argument("checkpoint")
@json_option
@click.pass_obj
def verify_checkpoint(session: Session, checkpoint: str, as_json: bool) -> None:
    """Read every tensor of a checkpoint or variant: names, shapes, finite values, hashes."""
    folder = resolve(checkpoint, _store(session))
    from core.checkpoints.verify import verify  # imports torch

    found = verify(folder)
    if as_json:
        print_json(
            {"name": found.info.name, "path": str(folder), "problems": found.problems, "hashes": found.hashes}
        )
    else:
        print_fields({f"sha256 {name}": digest for name, digest in found.hashes.items()})
    if found.problems:
        if not as_json:
            for problem in found.problems[1:]:
                click.echo(f"problem: {problem}")
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise CheckpointError(f"{found.problems[0]}{more}")
