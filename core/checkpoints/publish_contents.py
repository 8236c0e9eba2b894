"""What of a folder is published: the files of its layout by name. Anything else is refused, never left out silently.

No torch.
"""

from __future__ import annotations

import filecmp
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.checkpoints.describe import (
    CONFIG_FILE,
    HF_CONFIG_FILE,
    OWN_FILE,
    TOKENIZER_FILES,
    describe,
    family_of,
    own_record,
)
from core.checkpoints.listing import CAUSAL_LM_FILES
from core.checkpoints.resolve import VAE_FILES, VISION_FOLDER, companion, resolve
from core.checkpoints.source import INDEX_FILE, TensorSource, weight_files
from core.errors import CheckpointError

if TYPE_CHECKING:
    from core.store import Store

CARD_FILE = "README.md"

KNOWN = frozenset((
    *CAUSAL_LM_FILES, *TOKENIZER_FILES, CONFIG_FILE, INDEX_FILE, CARD_FILE, "vocab.txt", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "training.json", ".gitattributes",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md",
))  # fmt: skip
"""What a checkpoint or variant may have beside its weights."""

OF_LANCE = frozenset((f"{VISION_FOLDER}/{HF_CONFIG_FILE}", f"{VISION_FOLDER}/vit.safetensors", *VAE_FILES))
"""What a Lance may have in its folder or beside it."""

_NAMED = 3
"""So many names stand in an error; the others are counted."""


@dataclass(frozen=True)
class Contents:
    """A folder whose every file is known."""

    name: str
    folder: Path
    kind: str
    """``checkpoint``, ``variant`` or ``export``."""
    files: dict[str, Path]
    """By the name that each gets in the repository, sorted."""
    recorded: dict[str, str] = field(default_factory=dict)
    """SHA-256 of files as they were made, where that was written down."""
    record: dict[str, Any] = field(default_factory=dict)
    """The folder's ``lance_workbench.json``."""
    fingerprint: str | None = None
    """Of a checkpoint or variant."""
    beside: tuple[str, ...] = ()
    """What a Lance needs that does not lie in the folder, so that it is not published with it."""


def contents(source: str, store: Store) -> Contents:
    """Look at the checkpoint, variant or exported folder that ``source`` names or is the path of.

    Raises:
        UsageError: nothing of that name or path.
        CheckpointError: the folder is incomplete or damaged, or holds what is no part of it.
    """
    folder = resolve(source, store).resolve()
    made = _export(store, folder)
    if made is not None:
        # A package is one thing with its folder's name; of other exports the folder is only what holds them.
        prefix = f"{folder.name}/" if folder.suffix == ".mlpackage" else ""
        names = frozenset(made["files"])
        files = {prefix + name: path for name, path in _files(folder, names, "export").items()}
        recorded = {prefix + name: digest for name, digest in made["files"].items()}
        _check_all_there(folder, names, files, prefix)
        return Contents(folder.name, folder, "export", files, recorded)
    family = family_of(folder)
    record = own_record(folder)
    names = KNOWN | {file.name for file in weight_files(folder)}
    if family == "lance":
        names |= OF_LANCE
    info = describe(folder)
    files = _files(folder, names | _copied(folder, names, record), info.kind)
    beside = _beside(folder, files) if family == "lance" else ()
    recorded = _recorded(folder, record)
    return Contents(info.name, folder, info.kind, files, recorded, record, info.fingerprint, beside)


def _beside(folder: Path, files: dict[str, Path]) -> tuple[str, ...]:
    """What a Lance takes from elsewhere."""
    bundled = any(name.startswith("vit_model.") for name in TensorSource.open(folder).entries)
    tower = () if bundled else (f"{VISION_FOLDER}/vit.safetensors",)
    return tuple(
        name for name in (*tower, *VAE_FILES) if name not in files and companion(folder, name) is not None
    )


def _export(store: Store, folder: Path) -> dict[str, Any] | None:
    """What the job that exported to ``folder`` left written of its files, or None where none did."""
    rows = store.query(
        "SELECT result FROM jobs WHERE kind = 'export' AND state = 'succeeded' "
        "AND json_extract(result, '$.path') = ? ORDER BY id DESC LIMIT 1",
        (str(folder),),
    )
    return json.loads(rows[0]["result"]) if rows else None


def _recorded(folder: Path, record: dict[str, Any]) -> dict[str, str]:
    found = record.get("files", {})
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{folder / OWN_FILE}: files {found!r}: wanted an object; make the variant again"
        )
    return {str(name): str(digest) for name, digest in found.items()}


def _copied(folder: Path, names: frozenset[str], record: dict[str, Any]) -> set[str]:
    """Files that a variant has from its checkpoint, byte for byte, whatever they are called."""
    origin = record.get("source_path")
    if not isinstance(origin, str):
        return set()
    return {
        path.name
        for path in folder.iterdir()
        if path.name not in names
        and path.is_file()
        and (Path(origin) / path.name).is_file()
        and filecmp.cmp(path, Path(origin) / path.name, shallow=False)
    }


def _check_all_there(folder: Path, names: frozenset[str], files: dict[str, Path], prefix: str) -> None:
    for name in sorted(names):
        if prefix + name not in files:
            raise CheckpointError(f"{folder / name}: is gone since it was exported; export it again")


def _walk(folder: Path) -> Iterator[Path]:
    """All files below, and links to folders; those are not followed."""
    for root, folders, files in os.walk(folder):
        place = Path(root)
        yield from (place / name for name in files)
        yield from (place / name for name in folders if (place / name).is_symlink())


def _files(folder: Path, names: frozenset[str], kind: str) -> dict[str, Path]:
    """The files in ``folder`` by name, all of which have to be among ``names`` and lie in it."""
    found, strange = {}, set()
    tops = {name.partition("/")[0] for name in names}
    for path in sorted(_walk(folder)):
        name = path.relative_to(folder).as_posix()
        if name not in names:
            top = name.partition("/")[0]
            strange.add(name if top in tops or top == name else f"{top}/")
        elif not path.is_file():
            raise CheckpointError(f"{path}: is no file; put the file there, then publish")
        elif not path.resolve().is_relative_to(folder):
            raise CheckpointError(
                f"{path}: is a link to {path.resolve()}, outside of the folder; publish a copy that holds the files "
                "themselves"
            )
        else:
            found[name] = path
    if strange:
        shown = sorted(strange)
        more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
        raise CheckpointError(
            f"{folder}: holds {', '.join(shown[:_NAMED])}{more}, no part of the {kind}; move that out of the folder, "
            "then publish"
        )
    return found
