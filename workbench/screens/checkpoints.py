"""Checkpoints: source weights, and below each the variants and calibrations made from it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from textual.widget import Widget

from core.errors import UsageError, WorkbenchError
from core.store import Store
from workbench import look
from workbench.checkpoint_tree import COLUMNS, CheckpointSource
from workbench.screens.base import AreaScreen, bindings
from workbench.sheet import Row
from workbench.widgets.lines import Line
from workbench.widgets.table import Table
from workbench.widgets.text import visible

if TYPE_CHECKING:
    from core.removal import Removable

EMPTY = """No checkpoints yet

The embedded demo checkpoint appears here with the first job on it.

n   start a job on it"""


class CheckpointsScreen(AreaScreen):
    """The tree of checkpoints, variants and calibrations."""

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
        self.table.catch_up(self.table.source.identity(row) if row else None)

    def on_table_moved(self, message: Table.Moved) -> None:
        row = message.row
        self.description.show([] if row is None else [(f" {visible(row['path'])}", look.MUTED)])
        kinds = Counter(row["kind"] for row in self.table.source.window(0, self.table.total))
        parts = [
            f"{kinds[kind]} {kind}{'s' * (kinds[kind] != 1)}"
            for kind in ("checkpoint", "variant", "calibration")
            if kinds[kind] or kind == "variant"
        ]
        self.heading.show([(f" {', '.join(parts)}", look.MUTED)] if kinds else [])

    def subject(self) -> str | None:
        row = self.table.row
        if row is None:
            return None
        return str(row["parent"] if row["kind"] == "calibration" or row["unfinished"] else row["name"])

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
        text = f"{column}={row['name']}"
        if row["kind"] == "calibration":
            text = f"checkpoint={row['parent']}"
        screen = await self.app.go_to("runs")
        if isinstance(screen, RunsScreen):
            text = f'"{text}"' if " " in text else text
            await screen.set_filter(f"kind=calibrate {text}" if row["kind"] == "calibration" else text)

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

    async def action_remove(self) -> None:
        from core import removal
        from workbench.screens.remove import Remove

        row = self._row()
        if row["kind"] == "checkpoint":
            raise UsageError(f"{row['name']}: a checkpoint; its files are never touched here")
        found = removal.find(self.app.store, row["kind"], row["name"])
        await self.app.open_box(Remove(self.app.store, found), self._removed)

    def _removed(self, found: Removable | None) -> None:
        if found is None:
            return
        self.app.say(f"removing {found.name} …")
        self.run_worker(lambda: self._remove(found), thread=True, group="remove", exit_on_error=False)

    def _remove(self, found: Removable) -> None:
        """Delete the files, which may be gigabytes, and say what that came to."""
        from core import removal
        from workbench.removal import done

        try:
            with Store.open(self.app.store.path) as store:
                removal.remove(store, found)
            text, bad = done(found), False
        except WorkbenchError as error:
            text, bad = str(error), True
        # Not every removal changes the database, which the app looks at by itself.
        self.app.call_from_thread(self.refresh_data)
        self.app.call_from_thread(self.app.say, text, bad=bad)

    async def action_publish(self) -> None:
        from workbench.screens.publish import Publish

        row = self._with_weights("published")
        await self.app.open_box(Publish(self.app.store, row["name"], row["kind"]), self._published)

    def _published(self, job: int | None) -> None:
        if job is not None:
            self.app.supervise()
            self.app.look_again()
            self.app.say(f"started job {job}; 3 shows its progress, and it goes on if you quit")

    def _with_weights(self, can_be: str) -> Row:
        """The row under the cursor, if it is a checkpoint or a finished variant."""
        row = self._row()
        if row["kind"] == "calibration" or row["unfinished"]:
            what = "a calibration" if row["kind"] == "calibration" else "not finished"
            raise UsageError(f"{row['name']}: {what}; checkpoints and variants can be {can_be}")
        return row

    def action_verify(self) -> None:
        row = self._with_weights("verified")
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
