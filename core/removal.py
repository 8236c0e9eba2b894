"""Taking variants and calibrations away, row and files; runs that were made with them stay as they are. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.calibration.record import RECORD_FILE
from core.errors import RetryLater, UsageError
from core.files import discard, set_aside, sweep_aside
from core.jobs import processes, table
from core.store import Store

Kind = Literal["variant", "calibration"]

_MARK: dict[Kind, str] = {"variant": "recipe.toml", "calibration": RECORD_FILE}
"""A file that every folder of this kind has, so that no other folder is ever deleted."""


@dataclass(frozen=True)
class Removable:
    """A registered variant or calibration."""

    kind: Kind
    name: str
    path: Path
    size_bytes: int
    """Of its files; 0 where they are gone already and only the row is left."""


def find(store: Store, kind: Kind, name: str) -> Removable:
    """What is registered under that name.

    Raises:
        UsageError: nothing is, it is a checkpoint, or its folder holds something else.
    """
    row = store.checkpoint(name) if kind == "variant" else store.calibration(name)
    if row is None:
        shows = "variants list" if kind == "variant" else "calibrations show"
        raise UsageError(f"{name}: no {kind} of that name; `{shows}` shows them")
    if row.get("kind", kind) != kind:
        raise UsageError(f"{name}: a checkpoint, not a variant; its files are never touched")
    path = Path(row["path"])
    if not path.is_dir():
        return Removable(kind, name, path, 0)
    if not (path / _MARK[kind]).is_file():
        raise UsageError(
            f"{path}: holds no {_MARK[kind]}, so it is no {kind} that was made here; remove the folder yourself, "
            f"then this forgets {name}"
        )
    return Removable(kind, name, path, sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))


def remove(store: Store, found: Removable) -> None:
    """Forget ``found`` and delete its folder.

    The folder loses its name before the row goes, and its files go last: after a kill it is there as it was, or its
    row says that it is gone, or nothing of either is seen. What a kill leaves of a folder goes with the next removal
    from the same place.

    Raises:
        RetryLater: a job that has not ended uses it.
        WorkbenchError: the folder cannot be moved or deleted.
    """
    aside: Path | None = None
    try:
        # No job can be queued while this transaction is open.
        with store.write(durable=True):
            _check_unused(store, found)
            sweep_aside(found.path.parent)
            aside = set_aside(found.path)
            store.forget("checkpoints" if found.kind == "variant" else "calibrations", found.name)
    except BaseException:
        if aside is not None:
            aside.replace(found.path)
        raise
    if aside is not None:
        discard(aside)


def _check_unused(store: Store, found: Removable) -> None:
    for row in table.jobs(store, states=("queued", *table.ACTIVE)):
        spec = row["spec"]
        named = (
            [spec.get("checkpoint"), *(spec.get("checkpoints") or ())]
            if found.kind == "variant"
            else [spec.get("calibration")]
        )
        if any(_is(name, found, row["cwd"]) for name in named):
            raise RetryLater(
                f"{found.name}: job {row['id']} ({row['kind']}, {row['state']}) uses it; wait for it, or "
                f"`jobs cancel {row['id']}`"
            )
    if processes.is_locked(found.path.with_name(f".{found.path.name}.work") / "lock"):
        raise RetryLater(f"{found.name}: a job is making it anew; wait for it, or cancel it")


def _is(name: Any, found: Removable, directory: str | None) -> bool:
    """Whether a job's ``name``, which may be a path from its working ``directory``, means ``found``."""
    if not isinstance(name, str):
        return False
    return name == found.name or (Path(directory or ".") / name).resolve() == found.path.resolve()
