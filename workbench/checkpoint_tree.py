"""The rows of the checkpoints screen: source weights, and below each its variants and calibrations."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.style import Style

from core.errors import WorkbenchError
from core.files import is_folder
from core.store import Store
from core.store.columns import size
from workbench import look
from workbench.cells import ABSENT, number
from workbench.sheet import Column, Row
from workbench.widgets.text import visible

COLUMNS = (
    Column(
        "name",
        "checkpoint and its variants",
        40,
        lambda row: row["branch"] + visible(row["name"]),
        numeric=False,
    ),
    Column("bits", "bits", 5, lambda row: number(row["bits"], 1, 5)),
    Column(
        "size_bytes",
        "size",
        8,
        lambda row: size(row["size_bytes"] or 0).rjust(8),
    ),
    Column("missing", "files", 18, lambda row: row["missing"], numeric=False),
    Column("runs", "runs", 5, lambda row: ABSENT.rjust(5) if row["runs"] is None else f"{row['runs']:5d}"),
    Column("recipe", "recipe", 14, lambda row: row["recipe"] or "", numeric=False),
    Column("path", "path", 50, lambda row: visible(row["path"]), numeric=False),
)


def tree(store: Store) -> list[Row]:
    """The checkpoints, the embedded one first, each followed by what was made of it; with branches drawn and faults
    named.

    ``kind`` of a row is ``checkpoint``, ``variant`` or ``calibration``; ``unfinished`` says of a variant that a job
    has begun it and not ended.
    """
    rows = _checkpoints(store)
    rows += [*_begun(store, {row["name"] for row in rows}), *_calibrations(store)]
    names = {row["name"] for row in rows if row["kind"] == "checkpoint"}
    roots = [row for row in rows if row["kind"] == "checkpoint" or row["parent"] not in names]
    roots.sort(key=lambda row: not row.get("embedded"))
    shown: list[dict[str, Any]] = []
    for root in roots:
        below = [
            row
            for row in rows
            if root["kind"] == "checkpoint" and row["parent"] == root["name"] and row is not root
        ]
        shown.append(root | {"branch": ""})
        shown += [row | {"branch": "├─ "} for row in below[:-1]] + [
            row | {"branch": "└─ "} for row in below[-1:]
        ]
    # What the run table shows of a row: of a checkpoint its own runs and its variants'.
    counts: Counter[str] = Counter()
    for made in store.query(
        "SELECT checkpoint, variant, count(*) AS n FROM runs WHERE kind = 'evaluate' GROUP BY 1, 2"
    ):
        counts[made["checkpoint"]] += made["n"]
        if made["variant"] is not None:
            counts[made["variant"]] += made["n"]
    return [
        _described(row) | {"runs": None if row["kind"] == "calibration" else counts[row["name"]]}
        for row in shown
    ]


def _checkpoints(store: Store) -> list[dict[str, Any]]:
    """The registered checkpoints and variants, and the embedded checkpoint."""
    from core.demo import CHECKPOINT, NAME

    rows: list[dict[str, Any]] = [dict(row) for row in store.checkpoints()]
    if NAME not in {row["name"] for row in rows} and CHECKPOINT.is_dir():
        embedded = {
            "name": NAME,
            "path": str(CHECKPOINT),
            "kind": "checkpoint",
            "parent": None,
            "recipe": None,
        }
        rows.insert(0, embedded | {"bits": 16.0, "size_bytes": None})
    return [row | {"unfinished": False, "embedded": row["name"] == NAME} for row in rows]


def _begun(store: Store, known: set[str]) -> list[dict[str, Any]]:
    """The variants that a job has begun in their usual place and not ended."""
    from workbench.removal import begun

    return [
        {
            "name": each.found.name,
            "path": str(each.found.path),
            "kind": "variant",
            "parent": each.checkpoint,
            "recipe": each.recipe,
            "bits": each.bits,
            "size_bytes": each.found.size_bytes,
            "missing": "in the making" if each.running else "never finished",
            "unfinished": True,
        }
        for each in begun(store)
        if each.found.name not in known
    ]


def _calibrations(store: Store) -> list[dict[str, Any]]:
    """The registered calibrations with the size of their files."""
    from core.calibration.record import RECORD_FILE

    rows = []
    for row in store.calibrations():
        path = Path(row["path"])
        nbytes = 0
        missing = "gone" if not is_folder(path) else "damaged"
        with contextlib.suppress(OSError):
            nbytes = sum(file.stat().st_size for file in path.iterdir())
            missing = "complete" if (path / RECORD_FILE).is_file() else missing
        rows.append(
            {
                "name": row["name"],
                "path": row["path"],
                "kind": "calibration",
                "parent": row["checkpoint"],
                "recipe": "calibration",
                "bits": None,
                "size_bytes": nbytes,
                "missing": missing,
                "unfinished": False,
            }
        )
    return rows


def _described(row: dict[str, Any]) -> dict[str, Any]:
    """A row with what its files lack; what is known of them stays."""
    from core.checkpoints import describe

    if "missing" in row:
        return row
    try:
        info = describe(Path(row["path"]))
    except WorkbenchError:
        return row | {"missing": "damaged; v says how" if is_folder(row["path"]) else "gone"}
    except OSError as error:
        return row | {"missing": (error.strerror or "unreadable").lower()}
    lacks = f"lacks {', '.join(info.missing)}" if info.missing else "complete"
    return row | {"size_bytes": row["size_bytes"] or info.nbytes, "missing": lacks}


class CheckpointSource:
    """The tree as a table; a handful of rows, read whole."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._rows: list[Row] = []

    def count(self) -> int:
        self._rows = tree(self.store)
        return len(self._rows)

    def window(self, offset: int, limit: int) -> Sequence[Row]:
        return self._rows[offset : offset + limit]

    def identity(self, row: Row) -> Any:
        return row["kind"], row["name"]

    def is_best(self, row: Row, column: Column) -> bool:
        return column.key == "name" and row["kind"] == "checkpoint"

    def style(self, row: Row) -> Style:
        if row["missing"] not in ("complete", "in the making"):
            return look.WARN
        return look.MUTED if row["kind"] == "calibration" or row["unfinished"] else look.PLAIN
