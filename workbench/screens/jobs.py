"""Jobs: what runs and what ran, with progress and the log of the one under the cursor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from rich.style import Style
from textual.widget import Widget

from core import jobs
from core.errors import UsageError
from core.jobs.kinds import what
from core.store import Store
from core.store.columns import duration
from workbench import look
from workbench.cells import ABSENT
from workbench.screens.base import AreaScreen, bindings
from workbench.sheet import Column, Row
from workbench.widgets.lines import Line, Notice
from workbench.widgets.log import LogView
from workbench.widgets.table import Table
from workbench.widgets.text import Part, visible

LOG_S = 0.25
BAR = 8

EMPTY = """No jobs yet

Calibrating, quantizing and evaluating run as jobs in the background.
They go on when you quit the app or lose the connection.

n   start one"""

NO_ACTIVE = """No active jobs

a   shows all of them, also those that are over
n   starts a new one"""

STATES = {
    "running": look.ACCENT, "starting": look.ACCENT, "cancelling": look.WARN, "failed": look.BAD, "lost": look.BAD,
    "cancelled": look.MUTED, "queued": look.PLAIN, "succeeded": look.PLAIN,
}  # fmt: skip


def progress(row: Row) -> str:
    """How far a job is: a bar and per cent, what it waits for, or how long it took."""
    if row["state"] == "queued" and row["depends_on"]:
        return f"after {row['depends_on'].replace(',', ', ')}"
    total, done = row["progress_total"], row["progress_done"] or 0
    if row["state"] in ("running", "cancelling") and total:
        share = done / total
        return f"{look.bar(share, BAR)} {share * 100:3.0f} %"
    if total and row["state"] != "queued":
        return f"{done:g}/{total:g} {row['unit'] or ''}"
    return ""


def left(row: Row) -> str:
    """The time a running job still needs; of one that is over, the time it took."""
    if row["state"] in jobs.FINISHED:
        from core.store.clock import parse

        if row["started_at"] and row["finished_at"]:
            return duration((parse(row["finished_at"]) - parse(row["started_at"])).total_seconds())
        return ABSENT
    seconds = jobs.seconds_left(row)
    return f"~{duration(seconds)}" if seconds else ABSENT


def named(row: Row) -> str:
    """Number, kind and subject of a job: ``  41 quantize    lance-demo · int4-awq · g64``."""
    return f"{row['id']:>4} {row['kind']:<11} {what(row['kind'], json.loads(row['spec']))}"


COLUMNS = (
    Column("job", "  id kind        what", 30, named, numeric=False),
    Column("state", "state", 10, lambda row: row["state"], numeric=False),
    Column("progress", "progress", BAR + 6, progress, numeric=False),
    Column("left", "time", 8, left, numeric=False),
    Column("slot", "device", 12, lambda row: row["slot"] or row["device"], numeric=False),
    Column("message", "message", 40, lambda row: row["message"] or "", numeric=False),
)


class JobSource:
    """The jobs in windows, newest first."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.all = True

    @property
    def _where(self) -> str:
        return "1" if self.all else "state IN ('queued', 'starting', 'running', 'cancelling')"

    def count(self) -> int:
        return int(self.store.value(f"SELECT count(*) FROM jobs WHERE {self._where}"))

    def window(self, offset: int, limit: int) -> Sequence[Row]:
        sql = f"SELECT * FROM job_table WHERE {self._where} ORDER BY id DESC LIMIT ? OFFSET ?"
        return self.store.query(sql, (limit, offset))

    def identity(self, row: Row) -> Any:
        return row["id"]

    def style(self, row: Row) -> Style:
        return STATES.get(row["state"], look.PLAIN)

    def is_best(self, row: Row, column: Column) -> bool:
        return False


class JobsScreen(AreaScreen):
    """The job table above the log."""

    AREA: ClassVar[str] = "jobs"
    CSS_PATH: ClassVar[str] = "jobs.tcss"
    BINDINGS: ClassVar = bindings("jobs")
    AUTO_FOCUS: ClassVar[str] = "Table"

    def body(self) -> Iterable[Widget]:
        self.source = JobSource(self.app.store)
        self.table = Table(self.source, COLUMNS, empty=EMPTY, first_share=0.48)
        self.title_line = Line()
        self.outcome = Notice()
        self.log_title = Line()
        self.log_view = LogView()
        yield self.table
        yield self.title_line
        yield self.outcome
        yield self.log_title
        yield self.log_view

    def on_mount(self) -> None:
        self.set_interval(LOG_S, self._look_at_log)

    def on_screen_resume(self) -> None:  # Textual calls the base class's as well
        if self.app.active_jobs:
            self.app.supervise()

    def _look_at_log(self) -> None:
        row = self.table.row
        if self.is_current and row is not None and row["state"] not in jobs.FINISHED:
            self.log_view.look()

    def refresh_data(self) -> None:
        super().refresh_data()
        row = self.table.row
        self.table.catch_up(row["id"] if row else None)

    def on_table_moved(self, message: Table.Moved) -> None:
        row = message.row
        for widget in (self.title_line, self.log_title, self.log_view):
            widget.display = row is not None
        if row is None:
            self.log_view.open(None)
            self.outcome.hide()
            return
        subject = what(row["kind"], json.loads(row["spec"]))
        parts: list[Part] = [(f" job {row['id']} ", look.BOLD), (f" {row['state']}", STATES[row["state"]])]
        parts.append((f" · {visible(subject)}", look.MUTED))
        self.title_line.show(parts)
        self.outcome.show(visible(row["message"] or ""), bad=row["state"] in ("failed", "lost"))
        self.log_view.open(jobs.log_path(self.app.store, row["id"]), "nothing written yet")
        self._show_title()

    def on_log_view_followed(self) -> None:
        self._show_title()

    def _show_title(self) -> None:
        row = self.table.row
        if row is not None:
            if row["state"] in jobs.FINISHED:
                doing = "complete" if self.log_view.following else "complete; G goes to its end"
            else:
                doing = "following" if self.log_view.following else "paused; G follows again"
            style = look.BOLD if self.log_view.has_focus else look.MUTED
            room = "─" * self.size.width
            self.log_title.show([(f" log of {row['id']} ─ {doing} {room}"[: self.size.width], style)])

    def subject(self) -> str | None:
        row = self.table.row
        return None if row is None else json.loads(row["spec"]).get("checkpoint")

    def _job(self) -> Row:
        if self.table.row is None:
            raise UsageError("no job is chosen; n starts one")
        return self.table.row

    # --- actions --------------------------------------------------------------------------------------------------

    def action_top(self) -> None:
        self.table.go(0)

    def action_bottom(self) -> None:
        self.table.go(self.table.total - 1)

    def on_table_opened(self) -> None:
        self.action_log()

    def action_log(self) -> None:
        if self.table.row is not None:
            (self.table if self.log_view.has_focus else self.log_view).focus()
            self.call_after_refresh(self._show_title)

    def key_escape(self) -> None:
        self.table.focus()
        self.notice.hide()
        self.call_after_refresh(self._show_title)

    def action_cancel(self) -> None:
        number = self._job()["id"]
        again = self._job()["state"] == "cancelling"
        state = jobs.cancel(self.app.store, number)
        self.app.supervise()
        self.app.look_again()
        if state == "cancelled":
            self.app.say(f"job {number} is cancelled")
        else:
            self.app.say(
                f"job {number} is killed" if again else f"job {number} is asked to stop; x again kills it"
            )

    def action_retry(self) -> None:
        number = self._job()["id"]
        jobs.retry(self.app.store, number)
        self.app.supervise()
        self.app.look_again()
        self.app.say(f"job {number} is queued again")

    async def action_sensitivity(self) -> None:
        from pathlib import Path

        from workbench.screens.sensitivity import SensitivityScreen

        job = jobs.job(self.app.store, self._job()["id"])
        if job["kind"] != "sensitivity" or job["state"] != "succeeded":
            raise UsageError(
                f"job {job['id']}: {job['kind']}, {job['state']}; wanted a sensitivity that succeeded"
            )
        screen = await self.app.go_to("sensitivity")
        if isinstance(screen, SensitivityScreen):
            screen.show_results([Path(job["result"]["path"])], self.AREA)

    def action_all(self) -> None:
        self.source.all = not self.source.all
        self.table.empty = EMPTY if self.source.all else NO_ACTIVE
        self.keys.set_remark("" if self.source.all else "active only")
        self.table.reload()

    def action_copy(self) -> None:
        self.app.copy(str(jobs.log_path(self.app.store, self._job()["id"])), "the log's path")
