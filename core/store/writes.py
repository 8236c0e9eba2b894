"""The store: everything of ``Queries``, and the writes, which go through sqlite-utils.

sqlite_utils takes 0.15 s to import, so it is imported with the first write and never by a reader.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping

from core.errors import UsageError
from core.store.clock import now
from core.store.queries import Queries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    from sqlite_utils import Database as SqliteUtils

FINISHED = ("succeeded", "failed", "cancelled", "lost")


def _encoded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` with lists, tuples and dicts as JSON text."""
    return {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | tuple) else value
        for key, value in fields.items()
    }


class Store(Queries):
    """runs.db, for reading and writing.

    Every write is one transaction. Writes raise ``RetryLater`` when another process holds the lock past the
    busy timeout, ``StoreError`` when the disk is full or the file is damaged, and ``UsageError`` for a column
    that does not exist.
    """

    @contextlib.contextmanager
    def _tables(self, *, durable: bool = False) -> Iterator[SqliteUtils]:
        from sqlite_utils import Database as SqliteUtils

        with self.write(durable=durable) as connection:
            yield SqliteUtils(connection, execute_plugins=False)

    def _known(self, table: str, fields: Mapping[str, Any]) -> None:
        known = {row["name"] for row in self.query(f"SELECT name FROM pragma_table_info('{table}')")}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise UsageError(f"{table}: no column {unknown[0]!r}; columns are {', '.join(sorted(known))}")

    # -- runs ---------------------------------------------------------------------------------------

    def start_run(self, *, manifest: Mapping[str, Any] | None = None, **fields: Any) -> int:
        """Insert a run in state ``running``; its id. ``fields`` are columns of ``runs``, ``checkpoint`` among
        them."""
        row = {"created_at": now(), "state": "running", **_encoded(fields)}
        self._known("runs", row)
        with self._tables() as tables:
            run_id = int(tables.table("runs").insert(row).last_pk)
            if manifest is not None:
                self._put_manifest(tables, run_id, manifest)
        return run_id

    def set_manifest(self, run_id: int, manifest: Mapping[str, Any]) -> None:
        """Replace a run's manifest, for facts known only once it ran, such as the kernel path."""
        with self._tables() as tables:
            self._put_manifest(tables, run_id, manifest)

    @staticmethod
    def _put_manifest(tables: SqliteUtils, run_id: int, manifest: Mapping[str, Any]) -> None:
        body = json.dumps(manifest, ensure_ascii=False, sort_keys=True)
        tables.table("manifests").upsert({"run_id": run_id, "body": body}, pk="run_id")

    def update_run(self, run_id: int, **fields: Any) -> None:
        """Set columns of a run, such as ``tags``, ``note`` or ``size_bytes``.

        Raises:
            UsageError: there is no such run.
        """
        self._known("runs", fields)
        # Plain SQL: the app calls this for tags and notes, and should not pay for sqlite_utils.
        names = ", ".join(f"{key} = :{key}" for key in fields)
        if not self.execute(
            f"UPDATE runs SET {names} WHERE id = :run_id_", {**_encoded(fields), "run_id_": run_id}
        ):
            raise self.no_run(run_id)

    def finish_run(self, run_id: int, state: str = "succeeded", duration_s: float | None = None) -> None:
        """Close a run: ``state`` is succeeded, failed, cancelled or lost. Synced to the disk before it
        returns.

        Raises:
            UsageError: another state, or there is no such run.
        """
        if state not in FINISHED:
            raise UsageError(f"run {run_id}: cannot finish as {state!r}; wanted one of {', '.join(FINISHED)}")
        changed = self.execute(
            "UPDATE runs SET state = ?, duration_s = coalesce(?, duration_s) WHERE id = ?",
            (state, duration_s, run_id),
            durable=True,
        )
        if not changed:
            raise self.no_run(run_id)

    def set_scores(self, run_id: int, **scores: float | None) -> None:
        """Set the named scores of a run; scores not named keep their values."""
        self._known("scores", scores)
        with self._tables() as tables:
            tables.table("scores").upsert({"run_id": run_id, **scores}, pk="run_id")

    # -- outputs and media --------------------------------------------------------------------------

    def add_output(self, run_id: int, idx: int, **fields: Any) -> None:
        """Insert one sample's output, or set the named columns of one that is there (so a resumed run may
        repeat it)."""
        self._known("outputs", fields)
        with self._tables() as tables:
            tables.table("outputs").upsert(
                {"run_id": run_id, "idx": idx, **_encoded(fields)}, pk=("run_id", "idx")
            )

    def add_media(self, data: bytes, mime: str, width: int | None = None, height: int | None = None) -> str:
        """Store a picture once, however often it is added; its SHA-256 in hexadecimal, which outputs refer to
        it by."""
        import hashlib  # OpenSSL; only writers of pictures need it

        key = hashlib.sha256(data).hexdigest()
        with self._tables() as tables:
            tables.table("media").insert(
                {"sha256": key, "mime": mime, "width": width, "height": height, "bytes": data},
                pk="sha256",
                ignore=True,
            )
        return key

    # -- checkpoints and calibrations ---------------------------------------------------------------

    def _register(self, table: str, fields: Mapping[str, Any]) -> int:
        row = {"created_at": now(), **_encoded(fields)}
        if "path" in row:
            row["path"] = self.portable(row["path"])
        self._known(table, row)
        with self._tables(durable=True) as tables:
            found = self.value(f"SELECT id FROM {table} WHERE name = ?", (row.get("name"),))
            if found is None:
                return int(tables.table(table).insert(row).last_pk)
            tables.table(table).update(found, row)
            return int(found)

    def register_checkpoint(self, **fields: Any) -> int:
        """Record a checkpoint or variant under its ``name``, anew if it is known; its id.

        ``path`` is kept relative to the database's folder where it lies below it, and read back absolute.
        """
        return self._register("checkpoints", fields)

    def register_calibration(self, **fields: Any) -> int:
        """Record a calibration under its ``name``, anew if it is known; its id. ``path`` as for checkpoints."""
        return self._register("calibrations", fields)

    def forget(self, table: Literal["checkpoints", "calibrations"], name: str) -> None:
        """Delete the row of that name; runs name what they were made with and stay. Synced to the disk."""
        self.execute(f"DELETE FROM {table} WHERE name = ?", (name,), durable=True)
