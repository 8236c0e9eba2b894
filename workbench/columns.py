"""The run table's columns on screen: those of ``core.store.columns``, written so that decimal points align."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from core.store import columns as data
from workbench.cells import number, proportion, with_error
from workbench.sheet import Column, Row

ORDER: Final = (
    "name", "bits", "size_bytes", "exact", "kl", "top1", "truth", "suite", "task", "samples",
    "psnr", "mae", "cosine", "velocity", "pixel", "levenshtein", "ratio", "jaccard", "kl_p99", "kl_max", "nll",
    "seconds", "duration_s", "device", "created_at", "state", "kind", "checkpoint", "recipe", "tags", "note",
    "baseline_run_id", "job_id", "id",
)  # fmt: skip
"""What a person compares comes first, so that 80 columns hold it."""


def _width(column: data.Column) -> int:
    if column.error:
        return 2 * column.digits + 7
    return {"bytes": 8, "percent": 13}.get(column.format, column.width)


def _cell(column: data.Column, width: int) -> Callable[[Row], str]:
    key, digits = column.key, column.digits
    if column.format == "percent":
        low, high = column.low or "", column.high or ""
        return lambda row: proportion(row[key], row.get(low), row.get(high))
    if column.error:
        error = column.error
        return lambda row: with_error(row[key], row.get(error), digits, width)
    if column.format in ("number", "bits"):
        return lambda row: number(row[key], digits, width)
    if column.align == "right":
        return lambda row: data.value_text(column, row[key]).rjust(width)
    return lambda row: data.value_text(column, row[key] or None)


def _screen_column(column: data.Column) -> Column:
    width = _width(column)
    best = {"higher": "max", "lower": "min"}.get(column.better or "", "")
    return Column(column.key, column.title, width, _cell(column, width), column.align == "right", best)


RUN_COLUMNS: Final = tuple(_screen_column(data.BY_KEY[key]) for key in ORDER)
"""All of them, in the order in which they stand."""


def described(row: Row) -> str:
    """A run in words, for the line under the table."""
    parts = [
        f"run {row['id']}",
        str(row["recipe"] or row["kind"]),
        " ".join(str(row[key]) for key in ("suite", "task") if row[key]),
        f"[{row['tags']}]" if row["tags"] else "",
        str(row["note"] or ""),
        f"{row['samples']} samples" if row["samples"] else "",
        row["state"] if row["state"] != "succeeded" else "",
        str(row["created_at"])[:16].replace("T", " "),
        data.duration(row["duration_s"]) if row["duration_s"] is not None else "",
        str(row["device"] or ""),
    ]
    return " · ".join(part for part in parts if part)
