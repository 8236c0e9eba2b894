"""What is evaluated: a bf16 checkpoint or a variant of one, and the checkpoint it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.checkpoints.describe import CheckpointInfo, describe, own_record
from core.checkpoints.resolve import resolve
from core.errors import UsageError
from core.evaluation.baseline import BF16
from core.store import Store

BF16_BYTES = 2


@dataclass(frozen=True)
class Subject:
    """A checkpoint or variant as its runs are recorded.

    ``checkpoint`` is the source checkpoint's name, its own for a source; ``variant`` is None for a source.
    """

    path: Path
    checkpoint: str
    variant: str | None
    recipe: str
    bits: float | None
    size_bytes: int
    fingerprint: str

    @property
    def name(self) -> str:
        """What a person calls it."""
        return self.variant or f"{self.checkpoint}_{BF16}"


def open_subjects(name: str, store: Store) -> tuple[Subject, Subject, CheckpointInfo]:
    """The named checkpoint or variant, its bf16 source (itself, for a checkpoint), and the source described.

    Raises:
        UsageError: an unknown name, or a variant whose source is gone.
        CheckpointError: a folder that is incomplete or damaged.
    """
    info = describe(resolve(name, store))
    if info.kind != "variant":
        source = _source(info)
        return source, source, info
    record, row = own_record(info.path), store.checkpoint(info.name) or {}
    origin = record.get("source_path") or row.get("parent")
    if not origin:
        raise UsageError(
            f"{info.path}: does not say which checkpoint it was made from; make the variant again"
        )
    parent = describe(resolve(str(origin), store))
    variant = Subject(
        path=info.path,
        checkpoint=parent.name,
        variant=info.name,
        recipe=str(row.get("recipe") or record.get("recipe") or "unknown"),
        bits=row.get("bits") or record.get("bits"),
        size_bytes=int(row.get("size_bytes") or info.nbytes),
        fingerprint=info.fingerprint,
    )
    return variant, _source(parent), parent


def _source(info: CheckpointInfo) -> Subject:
    """A source checkpoint, with the size its tensors have as bfloat16, whatever they are stored as."""
    return Subject(
        path=info.path,
        checkpoint=info.name,
        variant=None,
        recipe=BF16,
        bits=16.0,
        size_bytes=info.parameters * BF16_BYTES,
        fingerprint=info.fingerprint,
    )
