"""Bench: the recorded benchmark runs, above the figures of the one under the cursor as table and plot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from textual.widget import Widget

from core.errors import UsageError
from core.store import measurements
from workbench import look
from workbench.figures import plotted, told_apart
from workbench.screens.base import bindings
from workbench.screens.runs import RunsScreen
from workbench.widgets.document import Document
from workbench.widgets.lines import Line
from workbench.widgets.table import Table
from workbench.widgets.text import strip, visible

EMPTY = """No benchmarks are recorded

Speed and memory of kernels, checkpoints and variants will stand here.

b   measure: on a GPU the kernels and the released size, else
    the processor's and the embedded checkpoint
1   the runs with their scores"""


class BenchScreen(RunsScreen):
    """The run table, of benchmarks, and a run's figures beside those of the same job."""

    AREA: ClassVar[str] = "bench"
    SCOPE: ClassVar[str] = "kind=bench"
    EMPTY: ClassVar[str] = EMPTY
    CSS_PATH: ClassVar[str] = "bench.tcss"
    BINDINGS: ClassVar = bindings("bench")

    def body(self) -> Iterable[Widget]:
        yield from super().body()
        self.title_line = Line()
        self.figures = Document()
        self._drawn: object = None
        yield self.title_line
        yield self.figures

    def on_table_moved(self, message: Table.Moved) -> None:  # Textual calls the base class's as well
        row = message.row
        self.figures.display = self.title_line.display = row is not None
        wanted = None if row is None else (row["id"], row["state"], *self.table.marked)
        if wanted != self._drawn:
            self._drawn = wanted
            self._draw()

    def _draw(self) -> None:
        runs = self._together()
        found = told_apart([(run["id"], measurements.of_run(run)) for run in runs])
        heading = f" figures of run {', '.join(str(run['id']) for run in runs)} "
        self.title_line.show([(heading + "─" * max(0, self.size.width - len(heading)), look.MUTED)])
        lines = plotted(found) if found else [[("  no figures yet", look.MUTED)]]
        if runs:
            words = " ".join((runs[0]["manifest"] or {}).get("command_line") or ())
            lines += [[], [(f" {visible(words)}", look.MUTED)]]
        self.figures.show([strip(line) for line in lines])

    def _together(self) -> list[dict[str, Any]]:
        """The marked runs, or the one under the cursor with the others of its job that measured the same."""
        if self.table.marked:
            return [self.app.store.run(number) for number in sorted(self.table.marked)]
        row = self.table.row
        if row is None:
            return []
        if row["job_id"] is None:
            return [self.app.store.run(row["id"])]
        same = self.app.store.runs(f"kind=bench job_id={row['job_id']} suite={row['suite']}", "id", False)
        return [self.app.store.run(other["id"]) for other in same]

    async def action_open(self) -> None:
        if self.table.row is not None:
            (self.table if self.figures.has_focus else self.figures).focus()

    def action_mark(self) -> None:
        super().action_mark()
        self._draw()

    def key_escape(self) -> None:
        super().key_escape()
        self._draw()
        self.table.focus()

    def action_start(self) -> None:
        from core import jobs

        number = jobs.submit(self.app.store, "bench", {"device": "auto"})
        self.app.supervise()
        self.app.look_again()
        self.app.say(f"started job {number}; 3 shows its progress, and it goes on if you quit")

    def _document(self) -> str:
        from core.store.clock import now

        runs = self._together()
        if not runs:
            raise UsageError("no benchmark is chosen; b starts one")
        return measurements.document(runs, "markdown", now())

    def action_export(self) -> None:
        from core.files import write_text
        from workbench.exports import stamped

        text, path = self._document(), stamped("bench", ".md")
        write_text(path, text)
        self.app.say(f"written {path.resolve()}")

    def action_copy(self) -> None:
        self.app.copy(self._document(), "the figures")
