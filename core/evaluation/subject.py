"""What is evaluated: a bf16 checkpoint or a variant of one, and the checkpoint it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.checkpoints.describe import CheckpointInfo, describe, own_record
from core.checkpoints.resolve import resolve
from core.errors import UsageError
from core.evaluation.baseline import BF16
from core.evaluation.samples import PERPLEXITY, Suite
from core.evaluation.suites import PROSE
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


def open_subjects(name: str, store: Store, *, alone: bool = False) -> tuple[Subject, Subject, CheckpointInfo]:
    """The named checkpoint or variant, its bf16 source (itself, for a checkpoint), and the source described.

    With ``alone``, where nothing of the source is needed, a quantized folder that does not say what it was made from
    (an export, or somebody else's) stands in its source's place.

    Raises:
        UsageError: an unknown name, or a variant whose source is gone.
        CheckpointError: a folder that is incomplete or damaged.
    """
    info = describe(resolve(name, store))
    if info.kind != "variant":
        source = _source(info)
        return source, source, info
    record, row = own_record(info.path), store.checkpoint(info.name) or {}
    parent = _parent(info, record, store)
    if parent is None:
        if not alone:
            raise UsageError(
                f"{info.path}: does not say which checkpoint it was made from, so nothing can be scored against it; "
                "evaluate it with --baseline none"
            )
        parent = info
    variant = Subject(
        path=info.path,
        checkpoint=parent.name,
        variant=info.name,
        recipe=str(row.get("recipe") or record.get("recipe") or "unknown"),
        bits=row.get("bits") or record.get("bits"),
        size_bytes=int(row.get("size_bytes") or info.nbytes),
        fingerprint=info.fingerprint,
    )
    return variant, variant if parent is info else _source(parent), parent


def check_suite(info: CheckpointInfo, suite: Suite) -> None:
    """Check that a checkpoint (a variant's source) is evaluated on suites of this kind.

    Raises:
        UsageError: a suite of Lance's tasks for a causal LM.
    """
    if info.family == "huggingface" and suite.task != PERPLEXITY:
        raise UsageError(
            f"{info.name}: is no Lance and is evaluated on running text: wanted {PROSE} or {PROSE}:FILE, "
            f"{suite.name} is of the task {suite.task}"
        )


def _parent(info: CheckpointInfo, record: dict[str, Any], store: Store) -> CheckpointInfo | None:
    """The checkpoint a variant was made from: where it lay then, or wherever one of its name lies now; None if its
    record says neither.
    """
    path, made_from = record.get("source_path"), record.get("source") or {}
    name = made_from.get("name")
    if not path and not name:
        return None
    if path and Path(path).is_dir():
        found = Path(path)
    else:
        try:
            found = resolve(str(name or path), store)
        except UsageError as error:
            raise UsageError(
                f"{info.name}: was made from {name or 'a checkpoint'} at {path}, which is gone; put it back or "
                "register it"
            ) from error
    parent = describe(found)
    if made_from.get("fingerprint") not in (None, parent.fingerprint):
        raise UsageError(
            f"{parent.path}: has changed since {info.name} was made from it; make the variant again"
        )
    return parent


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
