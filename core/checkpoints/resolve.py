"""From a name or a path to a folder, and from a folder to the files that lie beside it."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from core.errors import UsageError
from core.files import expanded

VISION_FOLDER = "Qwen2.5-VL-ViT"
VAE_FILES = ("Wan2.2_VAE.pth", "Wan2.2_VAE.safetensors")


class Registry(Protocol):
    """What ``resolve`` asks of the store."""

    def checkpoint(self, name: str) -> Mapping[str, Any] | None:
        """The row registered under a name, or None."""

    def checkpoints(self) -> Sequence[Mapping[str, Any]]:
        """All rows."""


def companion(folder: Path, name: str) -> Path | None:
    """Find a file that upstream keeps beside the model folder (vision tower, VAE).

    Looked for in the folder itself, in its parent (upstream's ``downloads/`` layout), then in the same two places of
    the checkpoint a variant was made from, as its ``lance_workbench.json`` records.
    """
    folder = folder.resolve()
    places = [folder, folder.parent]
    record = folder / "lance_workbench.json"
    if record.is_file():
        try:
            origin = json.loads(record.read_text(encoding="utf-8")).get("source_path")
        except (ValueError, RecursionError, AttributeError, OSError):
            origin = None
        if origin:
            places += [Path(origin), Path(origin).parent]
    return next((place / name for place in places if (place / name).exists()), None)


def resolve(name: str, store: Registry | None = None) -> Path:
    """The folder of a checkpoint or variant named or pathed by the user.

    ``lance-demo`` is the embedded checkpoint; other names are asked of the store; anything else is a path.

    Raises:
        UsageError: nothing of that name, and no folder of that path.
    """
    from core.demo import CHECKPOINT, NAME

    if name in (NAME, f"{NAME}_bf16"):
        return CHECKPOINT
    if store is not None and (row := store.checkpoint(name)) is not None:
        known = Path(row["path"])
        if not known.is_dir():
            forget = f", or forget it: `variants remove {name}`" if row.get("kind") == "variant" else ""
            raise UsageError(f"{name}: registered at {known}, which is gone; make it again{forget}")
        return known
    path = expanded(name)
    with contextlib.suppress(OSError):  # a name longer than a file's can be
        if path.is_dir():
            return path.resolve()
    known_names = [NAME, *(str(row["name"]) for row in (store.checkpoints() if store is not None else ()))]
    near = difflib.get_close_matches(name, known_names, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"{name}: no checkpoint or variant of that name and no such folder; {meant}`checkpoints list` shows them"
    )
