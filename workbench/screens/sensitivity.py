"""Sensitivity: where a recipe hurts a checkpoint, by step, layer, group of linears and linear."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from textual.widget import Widget

from core.errors import UsageError
from core.quantization import sensitivity_results as results
from workbench import look, sensitivity
from workbench.screens.base import AreaScreen, bindings
from workbench.sensitivity import Result, Rows, Section
from workbench.widgets.document import Document
from workbench.widgets.lines import Line
from workbench.widgets.table import Table
from workbench.widgets.text import Part, strip, visible

EMPTY = """No sensitivity is measured yet

It tells where a recipe hurts a checkpoint: step by step, layer by layer
and linear by linear, for both experts.

n   measure one: what: sensitivity
esc back"""


class SensitivityScreen(AreaScreen):
    """One result at a time: its steps and layers in one look, above a table of layers, groups or linears."""

    AREA: ClassVar[str] = "sensitivity"
    UNDER: ClassVar[str] = "checkpoints"
    CSS_PATH: ClassVar[str] = "sensitivity.tcss"
    BINDINGS: ClassVar = bindings("sensitivity")
    AUTO_FOCUS: ClassVar[str] = "Table"

    def body(self) -> Iterable[Widget]:
        self.files: Sequence[Path] = ()
        self.number = 0
        self.found: Result | None = None
        self.sections: list[Section] = []
        self.section = 0
        self.back_to = self.UNDER
        self.heading = Line()
        self.overview = Document()
        self.overview.can_focus = False
        self.tabs = Line()
        self.table = Table(Rows(Section("", "", sensitivity.NOTHING, [])), sensitivity.NOTHING, empty=EMPTY)
        self.description = Line()
        yield self.heading
        yield self.overview
        yield self.tabs
        yield self.table
        yield self.description

    def on_mount(self) -> None:
        if not self.files:
            self.files = results.files(self.app.store.data_dir)
        with self.app.guarded():
            self._show()

    def show_results(self, files: Sequence[Path], back_to: str) -> None:
        """Show the first of these results; escape goes back to the area ``back_to``."""
        self.files, self.number, self.back_to = files, 0, back_to
        self._show()

    def _show(self) -> None:
        if self.files:
            file = self.files[self.number]
            self.found = results.read(file)
            self.sections = sensitivity.sections(self.found)
            self.section = min(self.section, len(self.sections) - 1)
            called = self.found["name"].rpartition("-")[0]
            more = f"result {self.number + 1} of {len(self.files)} " if len(self.files) > 1 else ""
            parts: list[Part] = [
                (f" {visible(called)}", look.BOLD),
                ("  sensitivity", look.MUTED),
            ]
            self.heading.show(parts, [(more, look.MUTED)])
            self.description.show([(f" {visible(sensitivity.described(self.found, file))}", look.MUTED)])
            self._show_section()
        self._show_overview()

    def _show_overview(self) -> None:
        lines = [] if self.found is None else sensitivity.overview(self.found, self.size.width)
        self.overview.styles.height = len(lines)
        self.overview.display = self.tabs.display = bool(lines) or self.found is not None
        self.overview.show([strip(line) for line in lines])

    def on_resize(self) -> None:
        self._show_overview()

    def _show_section(self) -> None:
        section = self.sections[self.section]
        parts: list[Part] = []
        for number, each in enumerate(self.sections):
            style = look.CURSOR if number == self.section else look.PLAIN
            parts += [(f" {each.title} {len(each.rows)} ", style)]
        self.tabs.show(parts, [(section.remark, look.MUTED)])
        self.table.source = Rows(section)
        self.table.sort_key, self.table.descending = "", False
        self.table.cursor = self.table.top = self.table.column = 0
        self.table.name_width = section.columns[0].width
        self.table.set_columns(section.columns)
        self.table.reload()

    def _rows(self) -> Rows:
        source = self.table.source
        if self.found is None or not isinstance(source, Rows):
            raise UsageError("no sensitivity is measured yet; n starts a job that measures one")
        return source

    def subject(self) -> str | None:
        return None if self.found is None else str(self.found["checkpoint"])

    # --- actions --------------------------------------------------------------------------------------------------

    def action_top(self) -> None:
        self.table.go(0)

    def action_bottom(self) -> None:
        self.table.go(self.table.total - 1)

    def action_section(self) -> None:
        self._rows()
        self.section = (self.section + 1) % len(self.sections)
        self._show_section()

    def action_sort(self) -> None:
        rows, column = self._rows(), self.table.columns[self.table.column]
        rows.order(column)
        self.table.sort_key, self.table.descending = column.key, rows.descending
        self.table.cursor = self.table.top = 0
        self.table.reload()

    def action_previous_result(self) -> None:
        self._step(-1)

    def action_next_result(self) -> None:
        self._step(1)

    def _step(self, step: int) -> None:
        self._rows()
        number = max(0, min(self.number + step, len(self.files) - 1))
        if number != self.number:
            self.number = number
            self._show()

    def action_export(self) -> None:
        from core.files import write_text
        from core.quantization.sensitivity_report import markdown
        from workbench.exports import stamped

        self._rows()
        assert self.found is not None
        path = stamped("sensitivity", ".md")
        write_text(path, markdown(self.found))
        self.app.say(f"written {path.resolve()}")

    def action_copy(self) -> None:
        rows = self._rows()
        self.app.copy(sensitivity.table_text(rows.section, rows.rows), f"the {rows.section.title.lower()}")

    async def action_back(self) -> None:
        await self.app.go_to(self.back_to)
