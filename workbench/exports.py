"""Files the app writes on request, into the current directory, through the same code as the command line's exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.files import write_text
from core.store import Store
from core.store.clock import now

if TYPE_CHECKING:
    from workbench.queries import RunSource
    from workbench.sheet import Column, Row


def stamped(stem: str, suffix: str) -> Path:
    """A path in the current directory that carries the present second: ``runs-20261121-140211.md``."""
    digits = "".join(sign for sign in now()[:19] if sign.isdigit())
    return Path(f"{stem}-{digits[:8]}-{digits[8:]}{suffix}")


def table_text(store: Store, rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Runs as a markdown table with these columns, and a footnote with devices, versions and date."""
    from core.store import columns as data
    from core.store import export

    manifests = [store.run(row["id"]).get("manifest") or {} for row in rows[:200]]
    chosen = data.chosen(column.key for column in columns)
    return export.table(rows, chosen, "markdown", versions=export.versions_of(manifests))


def write_table(store: Store, source: RunSource, columns: Sequence[Column]) -> Path:
    """Write the filtered runs, in the order on screen, as markdown; the path written."""
    rows = store.runs(source.condition, source.sort, source.descending)
    path = stamped("runs", ".md")
    write_text(path, table_text(store, rows, columns))
    return path.resolve()
