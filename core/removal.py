"""Taking variants and calibrations away, row and files, and what killed jobs left beside them; runs that were made with
them stay as they are. No torch."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core import jobs
from core.calibration.record import RECORD_FILE
from core.errors import RetryLater, UsageError, WorkbenchError
from core.files import discard, disk_errors, set_aside, sweep_aside
from core.jobs import processes, table
from core.store import Store

Kind = Literal["variant", "calibration"]

_MARK: dict[Kind, str] = {"variant": "recipe.toml", "calibration": RECORD_FILE}
"""A file that every folder of this kind has, so that no other folder is ever deleted."""

_PLACE: dict[Kind, str] = {"variant": "variants", "calibration": "calibrations"}
"""Where they are made, beside the database, unless something else is asked for."""


@dataclass(frozen=True)
class Removable:
    """A variant or calibration, or what a killed job left of one."""

    kind: Kind
    name: str
    path: Path
    size_bytes: int
    """Of its files and of what is left beside it; 0 where they are gone already and only the row is left."""
    left: tuple[Path, ...] = ()
    """Hidden folders beside it: what a killed job had done of it, or was replacing it by."""
    finished: bool = True
    """Whether it was ever registered; where not, there is only what is left of it."""
    layers: int = 0
    """Layers of a variant that a killed job had done, and that making it again would go on from."""

    @property
    def places(self) -> tuple[Path, ...]:
        """The folders that go."""
        return (self.path, *self.left) if self.finished else self.left


def find(store: Store, kind: Kind, name: str) -> Removable:
    """What is registered under that name, or was begun under it and never finished.

    Raises:
        UsageError: nothing is, it is a checkpoint, or its folder holds something else.
    """
    row = store.checkpoint(name) if kind == "variant" else store.calibration(name)
    if row is None:
        return _unfinished(store, kind, name)
    if row.get("kind", kind) != kind:
        raise UsageError(f"{name}: a checkpoint, not a variant; its files are never touched")
    path = Path(row["path"])
    left = _left_beside(path)
    if path.is_dir() and not (path / _MARK[kind]).is_file():
        raise UsageError(
            f"{path}: holds no {_MARK[kind]}, so it is no {kind} that was made here; remove the folder yourself, "
            f"then this forgets {name}"
        )
    return Removable(kind, name, path, _size(path, *left), left, layers=_layers(path))


def _unfinished(store: Store, kind: Kind, name: str) -> Removable:
    places = [store.data_dir / _PLACE[kind] / name] if name == Path(name).name else []
    if kind == "variant":
        # Runs name the variant that their job was making, and its spec the place that was asked for.
        places += [
            Path(row["output"])
            for row in store.query(
                "SELECT DISTINCT json_extract(j.spec, '$.output') AS output FROM runs r JOIN jobs j ON j.id = r.job_id "
                "WHERE r.kind = 'quantize' AND r.variant = ? AND output IS NOT NULL",
                (name,),
            )
        ]
    for path in places:
        if left := _left_beside(path):
            return Removable(kind, name, path, _size(*left), left, False, _layers(path))
    shows = "variants list" if kind == "variant" else "calibrations show"
    raise UsageError(f"{name}: no {kind} of that name; `{shows}` shows them")


def begun(store: Store) -> list[Removable]:
    """The variants that a job has begun, and not ended yet or never, where they are made unless told otherwise."""
    place = store.data_dir / _PLACE["variant"]
    names = [path.name[1:].removesuffix(".work") for path in sorted(place.glob(".*.work"))]
    return [_unfinished(store, "variant", name) for name in names]


def _work(path: Path) -> Path:
    """Where ``quantization.unfinished`` keeps the layers that are done of the variant at ``path``."""
    return path.with_name(f".{path.name}.work")


def _layers(path: Path) -> int:
    return sum(1 for _ in _work(path).glob("layer-*.json"))


def _left_beside(path: Path) -> tuple[Path, ...]:
    """The hidden folders of the variant or calibration at ``path``, which nobody sees who lists its place."""
    hidden = re.compile(rf"\.{re.escape(path.name)}\.(work|(partial|retired)-\d+)")
    if not path.parent.is_dir():
        return ()
    return tuple(
        sorted(each for each in path.parent.iterdir() if hidden.fullmatch(each.name) and each.is_dir())
    )


def _size(*folders: Path) -> int:
    """Bytes of all files in them."""
    total = 0
    for file in (each for folder in folders for each in folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # a job may be at work there
            if file.is_file():
                total += file.stat().st_size
    return total


def remove(store: Store, found: Removable) -> None:
    """Forget ``found`` and delete its folder, and what killed jobs left beside it.

    The folders lose their names before the row goes, and their files go last: after a kill it is there as it was, or
    its row says that it is gone, or nothing of either is seen. What a kill leaves of a folder goes with the next
    removal from the same place.

    Raises:
        RetryLater: a job that has not ended uses it, or makes it.
        WorkbenchError: a folder cannot be moved or deleted.
    """
    if jobs.unfinished(store):
        jobs.reconcile(store)  # a job whose worker died uses nothing any more
    aside: dict[Path, Path] = {}
    # Whoever writes into the work folder holds its lock.
    with _locked(store, found):
        try:
            # No job can be queued while this transaction is open.
            with store.write(durable=True):
                _check_unused(store, found)
                sweep_aside(found.path.parent)
                for path in found.places:
                    if (moved := set_aside(path)) is not None:
                        aside[path] = moved
                if found.finished:
                    store.forget("checkpoints" if found.kind == "variant" else "calibrations", found.name)
        except BaseException:
            for path, moved in aside.items():
                moved.replace(path)
            raise
    for moved in aside.values():
        discard(moved)


@contextlib.contextmanager
def _locked(store: Store, found: Removable) -> Iterator[None]:
    work = _work(found.path)
    if work not in found.left:
        yield
        return
    with disk_errors(work):
        lock = processes.take_lock(work / "lock")
    if lock is None:
        _check_unused(store, found)  # which names the job, if it is one of this database's
        raise RetryLater(f"{found.name}: a job is making it; wait for it, or cancel it")
    try:
        yield
    finally:
        os.close(lock)


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
        if (
            found.kind == "variant"
            and row["kind"] == "quantize"
            and _makes(store, row) == found.path.resolve()
        ):
            raise RetryLater(
                f"{found.name}: job {row['id']} ({row['state']}) makes it; wait for it, or `jobs cancel {row['id']}`"
            )
    if _work(found.path) not in found.left:
        for path in found.left:
            writer = path.name.rpartition("-")[2]
            if processes.is_same(int(writer), None):
                raise RetryLater(f"{path}: process {writer} is writing it; wait for it")


def _makes(store: Store, row: dict[str, Any]) -> Path | None:
    """Where a job that quantizes writes its variant, or None where that cannot be known; then it will fail."""
    from core.checkpoints import describe, resolve
    from core.quantization import recipe as recipes  # not for a removal that no job is in the way of

    spec = row["spec"]
    if spec.get("dry_run"):
        return None
    if spec.get("output"):
        return (Path(row["cwd"] or ".") / str(spec["output"])).resolve()
    try:
        recipe = recipes.load(str(spec["recipe"])).with_group(spec.get("group"))
        made_from = describe(resolve(str(spec["checkpoint"]), store)).name
    except WorkbenchError:
        return None
    return (store.data_dir / _PLACE["variant"] / f"{made_from}_{recipe.variant_suffix}").resolve()


def _is(name: Any, found: Removable, directory: str | None) -> bool:
    """Whether a job's ``name``, which may be a path from its working ``directory``, means ``found``."""
    if not isinstance(name, str):
        return False
    return name == found.name or (Path(directory or ".") / name).resolve() == found.path.resolve()
