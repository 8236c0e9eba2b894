"""What the app, the command line and the evaluations ask the database. The standard library only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from core.errors import StoreError, UsageError
from core.store.database import Database
from core.store.filters import NUMBER_KEYS, TEXT_KEYS, where

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Row = dict[str, Any]

_SORTABLE = frozenset((*TEXT_KEYS, *NUMBER_KEYS))
_JSON = ("details", "tasks", "tokens", "kl_tokens", "spec", "result", "manifest")
_DISTINCT = ("name", "checkpoint", "variant", "recipe", "suite", "task", "state", "kind", "device", "tags")


def decoded(row: Row) -> Row:
    """``row`` with its JSON columns turned into lists and dicts, in place."""
    for key in _JSON:
        if isinstance(row.get(key), str):
            row[key] = json.loads(row[key])
    return row


class Queries(Database):
    """The reading half of the store. Rows are dicts by column name; JSON columns come decoded from the
    single-row methods."""

    # -- runs ---------------------------------------------------------------------------------------

    def no_run(self, run_id: int) -> UsageError:
        """What is raised where a run is asked for that is not there."""
        return UsageError(f"run {run_id}: not in {self.path}; `lance-workbench runs list` shows what is")

    def runs(
        self,
        filter: str = "",  # noqa: A002 - the word of the screens and of the command line
        sort: str = "id",
        descending: bool = True,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Row]:
        """A window of the view ``run_table``: the runs that ``filter`` lets through, sorted by one column,
        NULLs last.

        Raises:
            UsageError: an unknown column in ``filter`` or ``sort``.
        """
        if sort not in _SORTABLE:
            raise UsageError(
                f"sort {sort!r}: unknown column; known are {', '.join((*TEXT_KEYS, *NUMBER_KEYS))}"
            )
        condition, parameters = where(filter)
        order = "DESC" if descending else "ASC"
        # Sort ids only and fetch the window's rows after it: the sorter then carries 2 columns, not 50.
        return self.query(
            f"SELECT t.* FROM (SELECT id AS key, {sort} AS by FROM run_table WHERE {condition} "
            f"ORDER BY {sort} {order} NULLS LAST, id {order} LIMIT ? OFFSET ?) w "
            f"CROSS JOIN run_table t ON t.id = w.key ORDER BY w.by {order} NULLS LAST, w.key {order}",
            [*parameters, -1 if limit is None else limit, offset],
        )

    def count_runs(self, filter: str = "") -> int:  # noqa: A002
        """How many runs ``filter`` lets through."""
        condition, parameters = where(filter)
        return int(self.value(f"SELECT count(*) FROM run_table WHERE {condition}", parameters))

    def run(self, run_id: int) -> Row:
        """One run with its scores and, under ``manifest``, its manifest.

        Raises:
            UsageError: there is no such run.
        """
        rows = self.query(
            "SELECT t.*, m.body AS manifest FROM run_table t LEFT JOIN manifests m ON m.run_id = t.id "
            "WHERE t.id = ?",
            (run_id,),
        )
        if not rows:
            raise self.no_run(run_id)
        return decoded(rows[0])

    def latest_run(self, **equals: Any) -> Row | None:
        """The newest succeeded run whose columns have the given values (None: no value), or None.

        For example ``latest_run(checkpoint="lance-demo", recipe="bf16", suite="demo-x2t")``.
        """
        unknown = set(equals) - _SORTABLE - {"spec_hash"}
        if unknown:
            raise UsageError(f"latest_run: unknown column {sorted(unknown)[0]!r}")
        condition = " AND ".join(f"{key} IS ?" for key in equals) or "1"
        rows = self.query(
            f"SELECT * FROM run_table WHERE state = 'succeeded' AND {condition} ORDER BY id DESC LIMIT 1",
            list(equals.values()),
        )
        return rows[0] if rows else None

    def distinct(self, column: str) -> list[str]:
        """The different values of one text column of the run table, sorted: for completions and choices.

        Raises:
            UsageError: not one of the columns that have few values.
        """
        if column not in _DISTINCT:
            raise UsageError(f"distinct {column!r}: unknown column; known are {', '.join(_DISTINCT)}")
        rows = self.query(
            f"SELECT DISTINCT {column} AS v FROM run_table WHERE {column} IS NOT NULL ORDER BY 1"
        )
        return [row["v"] for row in rows]

    # -- outputs and media --------------------------------------------------------------------------

    def outputs(self, run_id: int) -> list[Row]:
        """Every sample's output of one run, by index."""
        return [
            decoded(row)
            for row in self.query("SELECT * FROM outputs WHERE run_id = ? ORDER BY idx", (run_id,))
        ]

    def output(self, run_id: int, idx: int) -> Row:
        """One sample's output.

        Raises:
            UsageError: there is no such output.
        """
        rows = self.query("SELECT * FROM outputs WHERE run_id = ? AND idx = ?", (run_id, idx))
        if not rows:
            raise UsageError(
                f"run {run_id}: no output with index {idx}; `lance-workbench runs show {run_id} --outputs` shows all"
            )
        return decoded(rows[0])

    def output_keys(self, run_id: int, columns: Sequence[str] = ("exact",)) -> list[Row]:
        """``idx``, ``sample_key`` and the named columns of every output of a run: what stepping through
        samples needs."""
        known = {row["name"] for row in self.query("SELECT name FROM pragma_table_info('outputs')")}
        unknown = set(columns) - known
        if unknown:
            raise UsageError(f"outputs: unknown column {sorted(unknown)[0]!r}")
        names = ", ".join(dict.fromkeys(("idx", "sample_key", *columns)))
        return self.query(f"SELECT {names} FROM outputs WHERE run_id = ? ORDER BY idx", (run_id,))

    def media(self, sha256: str) -> bytes:
        """The bytes of one stored picture.

        Raises:
            StoreError: there is no such picture.
        """
        found = self.value("SELECT bytes FROM media WHERE sha256 = ?", (sha256,))
        if found is None:
            raise StoreError(
                f"picture {sha256[:12]}…: not in {self.path}; `lance-workbench doctor` checks the database"
            )
        return bytes(found)

    # -- checkpoints and calibrations -----------------------------------------------------------------

    def portable(self, path: str | Path) -> str:
        """``path`` as the database keeps it: relative to the database's folder where it lies below it, else absolute.

        So a database can be moved, or committed, together with what it refers to.
        """
        whole = Path(path).absolute()
        home = self.path.parent
        return str(whole.relative_to(home) if whole.is_relative_to(home) else whole)

    def _registered(self, sql: str, parameters: Sequence[Any]) -> list[Row]:
        rows = [decoded(row) for row in self.query(sql, parameters)]
        for row in rows:
            row["path"] = str(self.path.parent / row["path"])
        return rows

    def checkpoints(self, kind: str | None = None) -> list[Row]:
        """The registered checkpoints and variants, variants behind their parents; ``kind`` keeps one of the two."""
        return self._registered(
            "SELECT * FROM checkpoints WHERE ? IS NULL OR kind = ? ORDER BY coalesce(parent, name), kind, name",
            (kind, kind),
        )

    def checkpoint(self, name: str) -> Row | None:
        """One registered checkpoint or variant by name, or None."""
        rows = self._registered("SELECT * FROM checkpoints WHERE name = ?", (name,))
        return rows[0] if rows else None

    def checkpoint_path(self, name: str) -> Path | None:
        """The folder registered under the name of a checkpoint or variant, or None."""
        row = self.checkpoint(name)
        return None if row is None else Path(row["path"])

    def calibrations(self, checkpoint: str | None = None) -> list[Row]:
        """The registered calibrations, newest first; of one checkpoint if it is named."""
        return self._registered(
            "SELECT * FROM calibrations WHERE ? IS NULL OR checkpoint = ? ORDER BY id DESC",
            (checkpoint, checkpoint),
        )

    def calibration(self, name: str) -> Row | None:
        """One registered calibration by name, or None."""
        rows = self._registered("SELECT * FROM calibrations WHERE name = ?", (name,))
        return rows[0] if rows else None
