"""What an export leaves behind, whatever its format, and what every format's folder has alike."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.checkpoints.describe import TOKENIZER_FILES
from core.files import sha256_file
from core.quantization.scheme import Scheme
from core.store.manifest import versions

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


PROMPT = (
    'text = "<|im_start|>system\\nAnswer the question.<|im_end|>\\n"',
    'text += "<|im_start|>user\\nWhat is a lance?<|im_end|>\\n<|im_start|>assistant\\n"',
)
"""Lines of Python that make a prompt for a Lance."""


def taken_from(name: str, fingerprint: str, *tools: str) -> str:
    """The last line of a card: of what an export was made, and with which versions."""
    used = versions()
    told = ", ".join(f"{tool} {used[tool]}" for tool in ("lance-workbench", "torch", *tools))
    return f"Taken from {name} (fingerprint {fingerprint[:12]}) with {told}."


def by_scheme(schemes: Mapping[str, Scheme], noun: str) -> Iterator[tuple[str, str]]:
    """The formats of modules, given by name, and which have each, in words: all of them, or how many."""
    modules: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        modules.setdefault(scheme, []).append(name)
    for scheme, names in modules.items():
        which = " and ".join(names) if len(names) < 3 else f"{len(names)} {noun}, the first {names[0]}"
        yield scheme.label, which


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
