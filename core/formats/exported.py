"""What an export leaves behind, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
