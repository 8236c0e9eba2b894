"""Runs: every run as a row over SQL, with filter, order, marks, columns and export."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual.widget import Widget
from textual.worker import get_current_worker

from core.store import Store
from workbench.columns import RUN_COLUMNS
from workbench.queries import RunSource, Survey, survey
from workbench.run_lines import CHROME, EMPTY, NOTHING, SCOPE, SURVEY_ASIDE, description, heading
from workbench.screens.base import AreaScreen, bindings
from workbench.sheet import Row
from workbench.widgets.lines import Line
from workbench.widgets.prompt import Prompt
from workbench.widgets.table import Table

if TYPE_CHECKING:
    from textual.timer import Timer

FILTER_DELAY_S = 0.13
SURVEY_DELAY_S = 0.03


class RunsScreen(AreaScreen):
    """The run table."""

    AREA: ClassVar[str] = "runs"
    SCOPE: ClassVar[str] = SCOPE
    EMPTY: ClassVar[str] = EMPTY
    CSS_PATH: ClassVar[str] = "runs.tcss"
    BINDINGS: ClassVar = bindings("runs")
    AUTO_FOCUS: ClassVar[str] = "Table"

    def body(self) -> Iterable[Widget]:
        self.source = RunSource(self.app.store, self.SCOPE)
        self.chosen: list[str] = [column.key for column in RUN_COLUMNS]
        self.only_differing = False
        self.heading = Line()
        self.table = Table(self.source, RUN_COLUMNS, empty=self.EMPTY)
        self.description = Line()
        self._looked: object = None
        self._surveyed: object = None
        self.prompt: Prompt | None = None
        self._typing: Timer | None = None
        yield self.heading
        yield self.table
        yield self.description

    def refresh_data(self) -> None:
        super().refresh_data()
        row = self.table.row
        self.table.catch_up(row["id"] if row else None)

    def _reload(self) -> None:
        row = self.table.row
        self.table.empty = NOTHING if self.source.filter else self.EMPTY
        self.table.reload(keep=row["id"] if row else None)

    def on_mount(self) -> None:
        self.table.prepare(self.app.size.height - CHROME)
        self._tell_all(self.table.row)

    def on_table_moved(self, message: Table.Moved) -> None:
        self._tell_all(message.row)

    def _tell_all(self, row: Row | None) -> None:
        """What stands around the table, for the row under the cursor."""
        self.description.show(description(row))
        self._tell()
        self._survey()

    def _survey(self) -> None:
        """Find out again what is bold and which columns are empty, if any run changed since the last time."""
        seen = (self.source.condition, self.app.store.data_version())
        if seen == self._looked:
            return
        self._looked = seen
        if self.table.total > SURVEY_ASIDE:
            self.set_timer(SURVEY_DELAY_S, self._survey_later)  # after the paint that this is on the way to
        elif (version := self.source.version()) != self._surveyed:
            self._surveyed = version
            self._take(survey(self.app.store, self.source.condition))

    def _survey_later(self) -> None:
        with self.app.guarded():
            version = self.source.version()
            if version != self._surveyed:
                self._surveyed = version
                work = partial(self._survey_aside, self.source.condition)
                self.run_worker(work, thread=True, exclusive=True, group="survey", exit_on_error=False)

    def _survey_aside(self, condition: str) -> None:
        with Store.open(self.app.store.path, create=False, readonly=True) as store:
            found = survey(store, condition)
        if not get_current_worker().is_cancelled:
            self.app.call_from_thread(self._take, found)

    def _take(self, found: Survey) -> None:
        self.source.take(found)
        self._choose_columns()

    def _tell(self) -> None:
        """The heading (filter and counts) and the remark about marks."""
        left, right = heading(self.source, self.table.total, self.only_differing)
        self.heading.show(left, right)
        marked = len(self.table.marked)
        self.keys.set_remark(f"{marked} marked" if marked else "")

    def subject(self) -> str | None:
        row = self.table.row
        return str(row["checkpoint"]) if row else None

    async def set_filter(self, text: str) -> None:
        """Filter as if the text had been typed."""
        await self.action_filter()
        if self.prompt is not None:
            self.prompt.input.value = text
        self._close_filter()

    # --- filter ---------------------------------------------------------------------------------------------------

    async def action_filter(self) -> None:
        if self.prompt is None:
            # Made when it is first wanted: its style sheet alone would cost the first paint 10 ms.
            self.prompt = Prompt("filter", "suite:demo-x2t kl<0.1 -minmax awq")
            await self.mount(self.prompt, before=self.heading)
        self.heading.display, self.prompt.display = False, True
        self.prompt.input.focus()

    def on_input_changed(self) -> None:
        if self._typing is not None:
            self._typing.stop()
        self._typing = self.set_timer(FILTER_DELAY_S, self._apply_filter)

    def _apply_filter(self) -> None:
        text = self.prompt.input.value.strip() if self.prompt is not None else ""
        if text == self.source.filter:
            return
        before, self.source.filter = self.source.filter, text
        with self.app.guarded():
            try:
                self._reload()
            except Exception:
                self.source.filter = before
                raise
            self.notice.hide()

    def on_input_submitted(self) -> None:
        self._close_filter()

    def key_escape(self) -> None:
        if self.prompt is not None and self.prompt.display:
            self.prompt.input.value = ""
            self._close_filter()
        elif self.table.marked:
            self.table.marked.clear()
            self.table.refresh()
            self._tell()
        self.notice.hide()

    def _close_filter(self) -> None:
        if self._typing is not None:
            self._typing.stop()
        self._apply_filter()
        if self.prompt is not None:
            self.heading.display, self.prompt.display = True, False
        self.table.focus()

    # --- columns and order ----------------------------------------------------------------------------------------

    def action_sort(self) -> None:
        key = self.table.columns[self.table.column].key
        again = key == self.source.sort
        # First the better end: the largest exact match, the smallest KL; words from A.
        down = self.table.columns[self.table.column].best == "max"
        self.source.descending = not self.source.descending if again else down
        self.source.sort = key
        self.table.sort_key, self.table.descending = key, self.source.descending
        self.table.cursor = self.table.top = 0
        self.table.reload()

    def _choose_columns(self) -> None:
        """The chosen columns that have a value at all, or only those that tell the runs apart."""
        wanted = set(self.chosen) & self.source.filled
        if self.only_differing:
            wanted &= self.source.differing()
        self.table.set_columns([column for column in RUN_COLUMNS if column.key in wanted | {"name"}])

    def action_differing(self) -> None:
        self.only_differing = not self.only_differing
        self._choose_columns()
        self._tell()

    async def action_columns(self) -> None:
        from workbench.screens.choose import Choose

        choices = [(column.key, column.title) for column in RUN_COLUMNS[1:]]
        await self.app.open_box(Choose("Columns", choices, set(self.chosen)), self._columns_chosen)

    def _columns_chosen(self, chosen: list[str] | None) -> None:
        if chosen is not None:
            self.chosen = ["name", *chosen]
            self._choose_columns()

    # --- rows -----------------------------------------------------------------------------------------------------

    def action_top(self) -> None:
        self.table.go(0)

    def action_bottom(self) -> None:
        self.table.go(self.table.total - 1)

    def action_mark(self) -> None:
        self.table.toggle_mark()
        self._tell()

    async def action_open(self) -> None:
        row = self.table.row
        if row is not None:
            await self._compare([row["id"]])

    async def on_table_opened(self, message: Table.Opened) -> None:
        await self.app.run_action("screen.open")

    async def action_compare(self) -> None:
        marked = list(self.table.marked) or ([self.table.row["id"]] if self.table.row else [])
        if marked:
            await self._compare(marked)

    async def _compare(self, ids: list[int]) -> None:
        from workbench.comparison import Comparison
        from workbench.screens.compare import CompareScreen

        comparison = Comparison.of_runs(self.app.store, ids)
        screen = await self.app.go_to("compare")
        if isinstance(screen, CompareScreen):
            screen.show_comparison(comparison)

    async def action_tags(self) -> None:
        from workbench.screens.tags import Tags

        row = self.table.row
        if row is not None:
            await self.app.open_box(Tags(row), self._tagged)

    def _tagged(self, change: tuple[int, str, str] | None) -> None:
        if change is not None:
            with self.app.guarded():
                self.app.store.update_run(change[0], tags=change[1] or None, note=change[2] or None)
                self.app.look_again()

    # --- export ---------------------------------------------------------------------------------------------------

    def action_export(self) -> None:
        from workbench.exports import write_table

        self.app.say(f"written {write_table(self.app.store, self.source, self.table.columns)}")

    def action_copy(self) -> None:
        from workbench.exports import table_text

        row = self.table.row
        if row is not None:
            self.app.copy(table_text(self.app.store, [row], self.table.columns), "the run")
