"""A measured sensitivity in one look and as tables that can be sorted; draws nothing and computes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.style import Style

from core.quantization import sensitivity_results as results
from core.quantization.sensitivity_report import SCORES, samples, shares
from core.store.columns import duration
from core.store.columns import number as written
from workbench import look
from workbench.cells import ABSENT, number, with_error
from workbench.figures import LEVELS
from workbench.sheet import Column, Row
from workbench.widgets.text import Part, visible

BAR, NOISE = 12, 24
SCORE = 15
EXPERTS = ("und", "gen")

Result = results.Result


@dataclass(frozen=True)
class Section:
    """One table of a result: its columns, and its rows with values as they are sorted."""

    title: str
    remark: str
    columns: tuple[Column, ...]
    rows: list[Row]


class Rows:
    """The rows of a section, in the order that was chosen; a table asks it for windows."""

    def __init__(self, section: Section) -> None:
        self.section = section
        self.rows: list[Row] = section.rows
        self.sort = ""
        self.descending = False

    def order(self, column: Column) -> None:
        """Sort by a column, what suffers most first; the same once more turns it round. What is absent comes last."""
        worst_first = column.best == "min"
        self.descending = not self.descending if self.sort == column.key else worst_first
        self.sort = column.key
        known = [row for row in self.section.rows if row[column.key] is not None]
        absent = [row for row in self.section.rows if row[column.key] is None]
        self.rows = sorted(known, key=lambda row: _place(row[column.key]), reverse=self.descending) + absent

    def count(self) -> int:
        return len(self.rows)

    def window(self, offset: int, limit: int) -> Sequence[Row]:
        return self.rows[offset : offset + limit]

    def identity(self, row: Row) -> Any:
        return row["id"]

    def is_best(self, row: Row, column: Column) -> bool:
        return False

    def style(self, row: Row) -> Style:
        return look.PLAIN


def _place(value: Any) -> Any:
    """Where a value comes in order; numbers in a name count as such: layer 2 before layer 10."""
    if not isinstance(value, str):
        return value
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", value)]


def of_checkpoint(data_dir: Path, name: str) -> list[Path]:
    """The files of the results of a checkpoint, the newest first."""
    # A result is called by its checkpoint, a recipe without an underscore, and digits.
    return [file for file in results.files(data_dir) if file.stem.rpartition("_")[0] == name]


def sections(found: Result) -> list[Section]:
    """The tables of a result; steps are shown by ``overview``."""
    made = []
    if "layers" in found:
        made += [_layers(found["layers"])]
    made += [_groups(found["groups"])]
    if "linears" in found:
        made += [_linears(found["linears"])]
    return made


NOTHING = (Column("name", "", 8, lambda row: "", numeric=False),)
"""The columns while there is no result."""


def _ratio(key: str, title: str) -> Column:
    return Column(key, title, 12, lambda row: number(row[key], 1, 9).ljust(12), best="max")


def _noise(row: Mapping[str, Any]) -> float | None:
    """The power of the noise in an output, as a share of its signal's."""
    return None if row["output_sqnr"] is None else float(10 ** (-row["output_sqnr"] / 10))


def _noisy(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[Row], Column]:
    """The rows with their noise, and the column that shows it."""
    found: list[Row] = [
        dict(row) | {"id": row[key] if key else place, "noise": _noise(row)} for place, row in enumerate(rows)
    ]
    most = max((row["noise"] for row in found if row["noise"] is not None), default=0.0) or 1.0

    def cell(row: Row) -> str:
        return "" if row["noise"] is None else look.bar(row["noise"] / most, NOISE)

    return found, Column("noise", "noise of outputs", NOISE, cell, numeric=False, best="min")


_WEIGHTS, _OUTPUTS = _ratio("weight_sqnr", "weights dB"), _ratio("output_sqnr", "outputs dB")


def _score(score: str) -> Column:
    cell: Callable[[Row], str] = lambda row: _scored(row[score], row[f"{score}_se"])  # noqa: E731
    return Column(score, SCORES[score], SCORE, cell, best="min")


def _scored(value: float | None, error: float | None) -> str:
    """A mean with its standard error; of a single sample there is none, and small values keep their digits."""
    if value is None or error is not None:
        return with_error(value, error, 4, SCORE)
    return written(value, 4, value).rjust(SCORE - 8).ljust(SCORE)


def _layers(layers: Sequence[Mapping[str, Any]]) -> Section:
    rows, noise = _noisy(layers, "")
    columns = (
        Column("layer", "layer", 8, lambda row: f"{row['layer']:>5}", numeric=False),
        Column("expert", "expert", 6, lambda row: row["expert"], numeric=False),
        _WEIGHTS,
        _OUTPUTS,
        noise,
    )
    return Section("Layers", "SQNR of weights and of outputs ", columns, rows)


def _groups(groups: Sequence[Mapping[str, Any]]) -> Section:
    parts = shares(groups)
    most = max((part for part in parts if part is not None), default=0.0) or 1.0
    known = [score for score in SCORES if any(score in row["scores"] for row in groups)]
    rows: list[Row] = [
        {"id": row["group"], "group": row["group"], "bits": row["bits"], "share": part}
        | {key: row["scores"].get(key) for score in known for key in (score, f"{score}_se")}
        for row, part in zip(groups, parts, strict=True)
    ]
    columns = (
        Column("group", "group of linears", 24, lambda row: visible(row["group"]), numeric=False),
        Column("bits", "bits", 4, lambda row: f"{row['bits']:4d}"),
        *map(_score, known),
        Column("share", "share", 20, lambda row: _share(row["share"], most), numeric=False, best="min"),
    )
    return Section(
        "Groups",
        "each rounded alone ",
        columns,
        sorted(rows, key=lambda row: row["share"] or 0.0, reverse=True),
    )


def _share(part: float | None, most: float) -> str:
    if part is None:
        return f"{ABSENT:>3}"
    return f"{100 * part:5.1f} % {look.bar(part / most, BAR)}"


def _linears(linears: Sequence[Mapping[str, Any]]) -> Section:
    rows, noise = _noisy(linears, "linear")
    columns = (
        Column("linear", "linear", 33, _linear, numeric=False),
        Column("scheme", "format", 13, lambda row: visible(row["scheme"]), numeric=False),
        _WEIGHTS,
        _OUTPUTS,
        noise,
    )
    return Section("Linears", "SQNR of weights and of outputs ", columns, rows)


def _linear(row: Row) -> str:
    return visible(row["linear"]).partition("layers.")[2]


def overview(found: Result, width: int) -> list[list[Part]]:
    """KL and velocity error after each step of the recipe, and every layer's ratio of each expert as one cell."""
    lines: list[list[Part]] = []
    steps = found.get("steps", [])
    known = [score for score in SCORES if any(score in step["scores"] for step in steps)]
    if steps:
        name = max(18, *(len(step["step"]) for step in steps))
        heads = "".join(f"  {SCORES[score]:^{SCORE}}" for score in known)
        lines.append([(f" {'step of the recipe':<{name}}{heads}".rstrip(), look.MUTED)])
        for step in steps:
            line: list[Part] = [(f" {visible(step['step']):<{name}}", look.PLAIN)]
            for score in known:
                value = step["scores"].get(score)
                least = min(s["scores"][score] for s in steps if s["scores"].get(score) is not None)
                text = _scored(value, step["scores"].get(f"{score}_se"))
                line.append((f"  {text}", look.BOLD if value == least else look.PLAIN))
            lines.append(line)
    return [*lines, *_by_layer(found.get("layers", []), width)]


def _by_layer(layers: Sequence[Mapping[str, Any]], width: int) -> list[list[Part]]:
    """One line for each expert: the ratio of its outputs by layer, on a scale that both share."""
    values = [row["output_sqnr"] for row in layers if row["output_sqnr"] is not None]
    if not values:
        return []
    least, most = min(values), max(values)
    lines: list[list[Part]] = []
    for expert in EXPERTS:
        own = [row["output_sqnr"] for row in layers if row["expert"] == expert]
        known = [value for value in own if value is not None]
        if not known:
            continue
        cells = "".join(" " if value is None else _level(value, least, most) for value in own)
        words = f"  {min(known):.1f} to {max(known):.1f} dB"
        lead = f" {expert}  "
        lines.append(
            [(lead, look.MUTED), (cells[: width - len(lead) - len(words)], look.ACCENT), (words, look.PLAIN)]
        )
    if lines:
        lines[0].append(("  SQNR of outputs, layer by layer", look.MUTED))
    return lines


def _level(value: float, least: float, most: float) -> str:
    return LEVELS[round((value - least) / ((most - least) or 1.0) * (len(LEVELS) - 1))]


def described(found: Result, file: Path) -> str:
    """Where a result comes from, in words; its file tells when (UTC, as runs do)."""
    parts = [
        samples(found),
        f"calibration {found['calibration']}",
        f"{found['device']} {found['dtype']}",
        duration(found["seconds"]),
        datetime.fromtimestamp(file.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M"),
    ]
    return " · ".join(parts)


def table_text(section: Section, rows: Sequence[Row]) -> str:
    """Rows of a section as a markdown table."""
    from core.store.export import markdown_table

    columns = [column for column in section.columns if column.key != "noise"]
    cells = [[column.cell(row).strip(f" ·{look.BARS}") for column in columns] for row in rows]
    return markdown_table([column.title for column in columns], cells, [column.numeric for column in columns])
