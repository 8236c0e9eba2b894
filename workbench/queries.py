"""What the screens ask the store beyond its own methods: counts and extremes over the filtered run table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.style import Style

from core.store import Store
from core.store.filters import where
from workbench import look
from workbench.columns import RUN_COLUMNS
from workbench.sheet import Column, Row

_KIND = re.compile(r"(?:^|\s)-?kind[:=]")


def count_unfinished(store: Store) -> int:
    """How many jobs are queued or active: ``core.jobs.unfinished`` without the 20 ms that importing it takes."""
    states = "('queued', 'starting', 'running', 'cancelling')"
    return int(store.value(f"SELECT count(*) FROM jobs WHERE state IN {states}"))


@dataclass(frozen=True)
class Survey:
    """What one pass over the filtered runs finds."""

    best: Mapping[tuple[Any, Any], Row]
    """The best value of each column among the variants of one checkpoint on one suite."""
    filled: set[str]
    """The columns in which any run has a value."""


def survey(store: Store, filter_line: str) -> Survey:
    """Look at every filtered run: 100 ms at 10,000 of them, so not on the way to a paint."""
    condition, parameters = where(filter_line)
    asked = ["checkpoint", "suite"]
    for column in RUN_COLUMNS:
        key = column.key
        asked.append(f"count({key}) AS {key}_count")
        if column.best:
            value = f"CASE WHEN recipe IS NOT 'bf16' AND state = 'succeeded' THEN {key} END"
            asked += [f"{column.best}({value}) AS {key}", f"max({value}) > min({value}) AS {key}_differs"]
    rows = store.query(
        f"SELECT {', '.join(asked)} FROM run_table WHERE {condition} GROUP BY checkpoint, suite", parameters
    )
    filled = {column.key for column in RUN_COLUMNS if any(row[f"{column.key}_count"] for row in rows)}
    return Survey({(row["checkpoint"], row["suite"]): row for row in rows}, filled)


class RunSource:
    """The run table in windows: filter and order are SQL's work, and only the rows on screen are ever fetched.

    ``scope`` is a filter that always holds, such as ``kind=bench``; ``filter`` is the user's.
    """

    def __init__(self, store: Store, scope: str) -> None:
        self.store = store
        self.scope = scope
        self.filter = ""
        self.sort = "id"
        self.descending = True
        self.filled: set[str] = {column.key for column in RUN_COLUMNS}
        """The columns in which any filtered run has a value."""
        self._best: Mapping[tuple[Any, Any], Row] = {}

    @property
    def condition(self) -> str:
        """The scope and the user's filter as one filter line; a filter that names kinds has its way."""
        return self.filter if _KIND.search(self.filter) else f"{self.scope} {self.filter}".strip()

    def count(self) -> int:
        return self.store.count_runs(self.condition)

    def window(self, offset: int, limit: int) -> Sequence[Row]:
        return self.store.runs(self.condition, self.sort, self.descending, limit, offset)

    def identity(self, row: Row) -> Any:
        return row["id"]

    def style(self, row: Row) -> Style:
        return look.MUTED if row["state"] in ("failed", "cancelled", "lost") else look.PLAIN

    def is_best(self, row: Row, column: Column) -> bool:
        best = self._best.get((row["checkpoint"], row["suite"]))
        if best is None or row["recipe"] == "bf16":
            return False
        value = row[column.key]
        return value is not None and value == best[column.key] and bool(best[f"{column.key}_differs"])

    def total(self) -> int:
        """How many runs there are without the user's filter."""
        return self.store.count_runs(self.scope)

    def version(self) -> tuple[str, Any]:
        """Changes whenever a survey would find something else; a millisecond at 10,000 runs."""
        return self.condition, self.store.query(
            "SELECT max(id), count(*), sum(state = 'succeeded'), count(tags), count(note) FROM runs"
        )

    def take(self, survey: Survey) -> None:
        """Use what a survey found."""
        self._best, self.filled = survey.best, survey.filled

    def differing(self) -> set[str]:
        """The columns that have more than one value among the filtered runs."""
        condition, parameters = where(self.condition)
        keys = [column.key for column in RUN_COLUMNS]
        asked = ", ".join(
            f"min({key}) IS NOT max({key}) OR count({key}) NOT IN (0, count(*)) AS {key}" for key in keys
        )
        row = self.store.query(f"SELECT {asked} FROM run_table WHERE {condition}", parameters)[0]
        return {key for key in keys if row[key]}
