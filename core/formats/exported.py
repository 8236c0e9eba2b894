"""What an export leaves behind, whatever its format, and what every format's folder has alike."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.checkpoints.describe import TOKENIZER_FILES
from core.files import sha256_file

GENERATION_FILE = "generation_config.json"

_OF_TOKENIZERS = (
    *TOKENIZER_FILES, "tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """A folder (or package) that another program reads, complete under its final name."""

    path: Path
    size_bytes: int
    """Of all its files."""
    files: dict[str, str]
    """File, relative to ``path`` -> SHA-256."""
    left_out: tuple[str, ...]
    """What of the source the format cannot carry, each in words: "the generation expert (14 linears)"."""
    loads_with: str
    """How to load it, one line: a call or a command."""


def copy_tokenizer(source: Path, folder: Path, *others: str) -> None:
    """Copy the files of a checkpoint's tokenizer, and ``others``, where they are."""
    for name in (*_OF_TOKENIZERS, *others):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def inventory(folder: Path, known: Mapping[str, str] | None = None) -> tuple[dict[str, str], int]:
    """The SHA-256 of every file below ``folder``, by its name there, and the bytes of all; ``known`` are hashed."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    hashes = {name: (known or {}).get(name) or sha256_file(path) for name, path in paths.items()}
    return hashes, sum(path.stat().st_size for path in paths.values())
