"""The columns of the run table as data: what the app, ``runs list`` and the exports share.

Proportions carry a 95 % Wilson interval, means a standard error.

A column says how its value is written (``text``), which way is better, and which other columns are its
interval. Figures are written the same everywhere, so that a table copied from the app and one exported by a
script can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from core.errors import UsageError

Format = Literal["text", "count", "bits", "bytes", "percent", "number", "seconds", "date"]
Better = Literal["higher", "lower"]

MISSING = "—"


class Column(NamedTuple):
    """One column of the view ``run_table``.

    Attributes:
        key: its name in the view, in filters and in ``--sort``.
        title: its heading.
        width: characters it needs in a terminal, interval included.
        align: ``left`` or ``right``.
        format: how ``text`` writes its value.
        digits: digits after the decimal point, for the formats that have them.
        better: which way is better, or None where neither is.
        low, high: the columns of its Wilson interval, for a proportion.
        error: the column of its standard error, for a mean.
        meaning: one line for help.
    """

    key: str
    title: str
    width: int
    align: Literal["left", "right"]
    format: Format
    meaning: str
    digits: int = 0
    better: Better | None = None
    low: str | None = None
    high: str | None = None
    error: str | None = None

    @property
    def interval(self) -> tuple[str, ...]:
        """The keys of the columns that belong to this one: its interval's ends, or its standard error."""
        return tuple(key for key in (self.low, self.high, self.error) if key)


def _proportion(key: str, title: str, meaning: str) -> Column:
    return Column(key, title, 13, "right", "percent", meaning, 1, "higher", f"{key}_low", f"{key}_high")


def _mean(key: str, title: str, meaning: str, digits: int, better: Better, width: int = 15) -> Column:
    return Column(key, title, width, "right", "number", meaning, digits, better, error=f"{key}_se")


def _score(key: str, title: str, meaning: str, digits: int, better: Better, width: int = 8) -> Column:
    return Column(key, title, width, "right", "number", meaning, digits, better)


COLUMNS: tuple[Column, ...] = (
    Column("id", "run", 6, "right", "count", "number of the run"),
    Column("name", "variant", 26, "left", "text", "checkpoint, recipe and group"),
    Column("kind", "kind", 9, "left", "text", "what was run"),
    Column("checkpoint", "checkpoint", 16, "left", "text", "the checkpoint the variant was made from"),
    Column("recipe", "recipe", 14, "left", "text", "the recipe that made the variant"),
    Column("bits", "bits", 5, "right", "bits", "bits per target weight, scales included", 1, "lower"),
    Column("size_bytes", "size", 9, "right", "bytes", "bytes on disk", better="lower"),
    Column("suite", "suite", 12, "left", "text", "the suite it was run over"),
    Column("task", "task", 10, "left", "text", "the suite's task"),
    Column("samples", "samples", 7, "right", "count", "samples run"),
    Column("state", "state", 9, "left", "text", "running, succeeded, failed, cancelled or lost"),
    _proportion("exact", "exact", "answers that are the same text as bf16's"),
    _proportion("truth", "truth", "answers that are the expected text"),
    _mean("kl", "KL", "mean KL divergence from bf16 per answer token, in nats", 4, "lower", 17),
    _score("kl_p99", "KL p99", "99th percentile of the per-token KL", 3, "lower"),
    _score("kl_max", "KL max", "largest per-token KL", 3, "lower"),
    _proportion("top1", "top-1", "answer tokens whose likeliest choice is bf16's"),
    _mean("nll", "NLL", "mean negative log-likelihood of bf16's answers, or of the text, per token", 4, "lower", 17),
    _score("levenshtein", "Levensh.", "mean Levenshtein similarity to bf16's answers", 4, "higher"),
    _score("ratio", "ratio", "mean difflib ratio to bf16's answers", 4, "higher"),
    _score("jaccard", "Jaccard", "mean word Jaccard similarity to bf16's answers", 4, "higher"),
    _mean("psnr", "PSNR", "mean PSNR to bf16's picture from the same noise, in dB", 2, "higher"),
    _mean("mae", "MAE", "mean absolute pixel difference to bf16's picture", 4, "lower", 17),
    _mean("cosine", "cosine", "mean cosine similarity to bf16's picture", 4, "higher", 17),
    _mean("velocity", "velocity", "mean relative error of the velocity at bf16's latents", 4, "lower", 17),
    _proportion("pixel", "pixel", "pictures in which the pixel check finds what was asked for"),
    Column("seconds", "s/sample", 8, "right", "number", "seconds per sample", 2, "lower"),
    Column("duration_s", "time", 9, "right", "seconds", "time the run took", better="lower"),
    Column("device", "device", 14, "left", "text", "where it ran"),
    Column("created_at", "date", 16, "left", "date", "when it started (UTC)"),
    Column("baseline_run_id", "against", 7, "right", "count", "the bf16 run it is compared with"),
    Column("job_id", "job", 5, "right", "count", "the job that ran it"),
    Column("tags", "tags", 12, "left", "text", "your tags"),
    Column("note", "note", 20, "left", "text", "your note"),
)  # fmt: skip

BY_KEY: Mapping[str, Column] = {column.key: column for column in COLUMNS}

DEFAULT = (
    "id",
    "name",
    "suite",
    "samples",
    "bits",
    "size_bytes",
    "exact",
    "truth",
    "kl",
    "top1",
    "psnr",
    "pixel",
)
"""The columns shown when nothing else is asked for."""


def chosen(keys: Iterable[str] | None = None) -> list[Column]:
    """The columns with these keys, in this order; ``DEFAULT`` for None.

    Raises:
        UsageError: an unknown key.
    """
    keys = DEFAULT if keys is None else tuple(keys)
    for key in keys:
        if key not in BY_KEY:
            raise UsageError(f"column {key!r}: unknown; known are {', '.join(BY_KEY)}")
    return [BY_KEY[key] for key in keys]


def without_empty(columns: Iterable[Column], rows: Iterable[Mapping[str, Any]]) -> list[Column]:
    """``columns`` less those in which no row has a value."""
    rows = list(rows)
    return [column for column in columns if any(row.get(column.key) is not None for row in rows)]


def best(column: Column, rows: Iterable[Mapping[str, Any]]) -> Any:
    """The best value of a column among ``rows``, or None where the column has no better or no row has a
    value."""
    values = [row[column.key] for row in rows if row.get(column.key) is not None]
    if column.better is None or not values:
        return None
    return max(values) if column.better == "higher" else min(values)


def size(count: float) -> str:
    """Bytes in decimal units: ``19.8 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.95:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """A length of time in its two largest units: ``0.4 s``, ``12 s``, ``1 m 12 s``, ``2 h 05 m``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} m"


def number(value: float, digits: int, like: float) -> str:
    """``value`` with so many decimals, or as ``7.7e-5`` where these would leave nothing of ``like``."""
    if 0 < abs(like) < 10 ** (1 - digits):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{digits}f}"


def value_text(column: Column, value: Any) -> str:
    """One value as text, without its interval; ``—`` for None."""
    if value is None:
        return MISSING
    match column.format:
        case "bits" | "number":
            return number(value, column.digits, value)
        case "percent":
            return f"{value * 100:.{column.digits}f} %"
        case "bytes":
            return size(value)
        case "seconds":
            return duration(value)
        case "date":
            return str(value)[:16].replace("T", " ")
        case _:
            return str(value)


def text(column: Column, row: Mapping[str, Any]) -> str:
    """A cell with its uncertainty: ``88.0 % ±4.5`` (half the interval's width), ``0.0310 ±0.0021`` (standard
    error)."""
    value = row.get(column.key)
    written = value_text(column, value)
    if value is None:
        return written
    low, high = row.get(column.low or ""), row.get(column.high or "")
    if low is not None and high is not None:
        return f"{written} ±{(high - low) * 50:.{column.digits}f}"
    error = row.get(column.error or "")
    return written if error is None else f"{written} ±{number(error, column.digits, value)}"


def interval_text(column: Column, row: Mapping[str, Any]) -> str:
    """A cell for a document: ``88.0 % (82.8 to 91.8)`` with the interval's two ends, ``0.0310 ± 0.0021``."""
    value = row.get(column.key)
    written = value_text(column, value)
    if value is None:
        return written
    low, high = row.get(column.low or ""), row.get(column.high or "")
    if low is not None and high is not None:
        return f"{written} ({low * 100:.{column.digits}f} to {high * 100:.{column.digits}f})"
    error = row.get(column.error or "")
    return written if error is None else f"{written} ± {number(error, column.digits, value)}"
