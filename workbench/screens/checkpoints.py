"""Checkpoints: source weights, and below each the variants made from it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.style import Style
from textual.widget import Widget

from core.errors import UsageError, WorkbenchError
from core.store import Store
from core.store.columns import size
from workbench import look
from workbench.cells import number
from workbench.screens.base import AreaScreen, bindings
from workbench.sheet import Column, Row
from workbench.widgets.lines import Line
from workbench.widgets.table import Table
from workbench.widgets.text import visible

EMPTY = """No checkpoints yet

The embedded demo checkpoint appears here with the first job on it.

n   start a job on it"""

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
    Column("runs", "runs", 5, lambda row: f"{row['runs']:5d}"),
    Column("recipe", "recipe", 14, lambda row: row["recipe"] or "", numeric=False),
    Column("path", "path", 50, lambda row: visible(row["path"]), numeric=False),
)


def tree(store: Store) -> list[Row]:
    """The checkpoints, the embedded one first, each followed by its variants; with branches drawn and faults named."""
    from core.checkpoints import describe
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
    roots = [
        row
        for row in rows
        if row["kind"] == "checkpoint" or not any(r["name"] == row["parent"] for r in rows)
    ]
    roots.sort(key=lambda row: row["name"] != NAME)
    shown: list[dict[str, Any]] = []
    for root in roots:
        below = [row for row in rows if row["parent"] == root["name"] and row is not root]
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
    result: list[Row] = []
    for row in shown:
        missing = "complete"
        try:
            info = describe(Path(row["path"]))
            row = row | {"size_bytes": row["size_bytes"] or info.nbytes}
            if info.missing:
                missing = f"lacks {', '.join(info.missing)}"
        except WorkbenchError:
            missing = "gone" if not Path(row["path"]).is_dir() else "damaged; v says how"
        result.append(row | {"missing": missing, "runs": counts[row["name"]]})
    return result


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
        return row["name"]

    def is_best(self, row: Row, column: Column) -> bool:
        return column.key == "name" and row["kind"] == "checkpoint"

    def style(self, row: Row) -> Style:
        return look.PLAIN if row["missing"] == "complete" else look.WARN


class CheckpointsScreen(AreaScreen):
    """The tree of checkpoints and variants."""

    AREA: ClassVar[str] = "checkpoints"
    BINDINGS: ClassVar = bindings("checkpoints")
    AUTO_FOCUS: ClassVar[str] = "Table"

    def body(self) -> Iterable[Widget]:
        self.heading = Line()
        self.table = Table(CheckpointSource(self.app.store), COLUMNS, empty=EMPTY)
        self.description = Line()
        yield self.heading
        yield self.table
        yield self.description

    def refresh_data(self) -> None:
        super().refresh_data()
        row = self.table.row
        self.table.catch_up(row["name"] if row else None)

    def on_table_moved(self, message: Table.Moved) -> None:
        row = message.row
        self.description.show([] if row is None else [(f" {visible(row['path'])}", look.MUTED)])
        total = self.table.total
        variants = sum(1 for row in self.table.source.window(0, total) if row["kind"] == "variant")
        whole = total - variants
        text = f" {whole} checkpoint{'s' * (whole != 1)}, {variants} variant{'s' * (variants != 1)}"
        self.heading.show([(text, look.MUTED)] if total else [])

    def subject(self) -> str | None:
        return None if self.table.row is None else str(self.table.row["name"])

    def _row(self) -> Row:
        if self.table.row is None:
            raise UsageError("no checkpoint is chosen; n starts a job on the embedded one")
        return self.table.row

    # --- actions --------------------------------------------------------------------------------------------------

    def action_top(self) -> None:
        self.table.go(0)

    def action_bottom(self) -> None:
        self.table.go(self.table.total - 1)

    async def on_table_opened(self) -> None:
        await self.app.run_action("screen.open")

    async def action_open(self) -> None:
        from workbench.screens.runs import RunsScreen

        row = self._row()
        column = "checkpoint" if row["kind"] == "checkpoint" else "name"
        screen = await self.app.go_to("runs")
        if isinstance(screen, RunsScreen):
            text = f"{column}={row['name']}"
            await screen.set_filter(f'"{text}"' if " " in text else text)

    async def action_sensitivity(self) -> None:
        from workbench.screens.sensitivity import SensitivityScreen
        from workbench.sensitivity import of_checkpoint

        row = self._row()
        name = str(row["parent"] or row["name"])
        found = of_checkpoint(self.app.store.data_dir, name)
        if not found:
            raise UsageError(
                f"{name}: no sensitivity is measured; n starts a job that does (what: sensitivity)"
            )
        # A variant's own recipe first.
        found.sort(key=lambda file: not file.stem.startswith(f"{row['name']}-"))
        screen = await self.app.go_to("sensitivity")
        if isinstance(screen, SensitivityScreen):
            screen.show_results(found, self.AREA)

    def action_copy(self) -> None:
        self.app.copy(self._row()["path"], "the path")

    def action_verify(self) -> None:
        row = self._row()
        self.app.say(f"verifying {row['name']}: every tensor is read …")
        self.run_worker(lambda: self._verify(row["name"]), thread=True, group="verify", exit_on_error=False)

    def _verify(self, name: str) -> None:
        """Run the command in a process of its own, so that torch never enters this one, and say what it found."""
        command = [sys.executable, "-m", "workbench", "--db", str(self.app.store.path)]
        command += ["checkpoints", "verify", "--json", name]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        text, sound = verdict(name, done)
        self.app.call_from_thread(self.app.say, text, bad=not sound)


def verdict(name: str, done: subprocess.CompletedProcess[str]) -> tuple[str, bool]:
    """What ``checkpoints verify --json`` found, in one line, and whether the files are sound."""
    try:
        found = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"{name}: verifying ended with exit code {done.returncode}", False
    problems = found["problems"]
    if not problems:
        return (
            f"{name}: every tensor was read and is sound, {len(found['hashes'])} files",
            done.returncode == 0,
        )
    more = (
        f" (and {len(problems) - 1} more: lance-workbench checkpoints verify {name})"
        if len(problems) > 1
        else ""
    )
    return f"{name}: {problems[0]}{more}", False
