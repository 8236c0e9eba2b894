"""The run table as a document: GitHub-flavoured markdown, csv or json. The app and ``runs export`` share it.

Markdown is for reading: figures rounded, intervals beside them, a footnote saying where they come from. csv
and json are for programs: values as stored, an interval's ends or a standard error as columns of their own.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.errors import UsageError
from core.plain_text import visible
from core.store.clock import now
from core.store.columns import Column, interval_text

FORMATS = ("markdown", "csv", "json")

# What a backslash must stand before to be itself; an underscore inside a word is itself anyway.
_MARKUP = re.compile(r"([\\`*\[\]<>|~&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_BREAKS = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def markdown_cell(text: str) -> str:
    """``text`` so that a GitHub table shows it as it is: markup escaped, line breaks as ``<br>``."""
    shown = visible(_BREAKS.sub("\n", text.strip()))
    return _MARKUP.sub(r"\\\1", shown).replace("\n", "<br>")


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool]) -> str:
    """A GitHub table of plain-text cells, padded so that it also reads well as text.

    Args:
        titles: the headings.
        rows: cells as text, one per heading.
        right: which columns align to the right.
    """
    table = [[markdown_cell(cell) for cell in row] for row in (titles, *rows)]
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(titles))]
    lines = [
        "| "
        + " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        + " |"
        for row in table
    ]
    rule = "| " + " | ".join("-" * (w - r) + ":" * r for w, r in zip(widths, right, strict=True)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def footnote(rows: Sequence[Mapping[str, Any]], versions: Mapping[str, str], date: str | None = None) -> str:
    """The lines below a markdown table: what the intervals are, the devices, the versions and the date, if there is
    one.
    """
    devices = sorted({str(row["device"]) for row in rows if row.get("device")})
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = [
        "Proportions with their 95 % Wilson interval, means with their standard error.",
        f"Device: {', '.join(devices) or 'not recorded'}.",
        *([f"Made with {used}."] if used else []),
        *([f"Exported {date[:16].replace('T', ' ')} UTC."] if date else []),
    ]
    return markdown_cell(" ".join(parts)) + "\n"


def _markdown(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], versions: Mapping[str, str], date: str
) -> str:
    body = markdown_table(
        [column.title for column in columns],
        [[interval_text(column, row) for column in columns] for row in rows],
        [column.align == "right" for column in columns],
    )
    return f"{body}\n{footnote(rows, versions, date)}"


def _keys(columns: Sequence[Column]) -> list[str]:
    return list(dict.fromkeys(key for column in columns for key in (column.key, *column.interval)))


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    def line(cells: Sequence[Any]) -> str:
        # The writer quotes the characters of its line terminator: both kinds of line break must be quoted.
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\r\n").writerow(cells)
        return stream.getvalue().removesuffix("\r\n") + "\n"

    keys = _keys(columns)
    return line(keys) + "".join(line([row.get(key) for key in keys]) for row in rows)


def _json(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    keys = _keys(columns)
    return (
        json.dumps([{key: row.get(key) for key in keys} for row in rows], ensure_ascii=False, indent=2) + "\n"
    )


def table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Column],
    format: str = "markdown",  # noqa: A002 - the option's name
    versions: Mapping[str, str] | None = None,
    date: str | None = None,
) -> str:
    """The rows as a document, with exactly these columns and in this order.

    Args:
        rows: rows of ``Store.runs``.
        columns: from ``columns.chosen``.
        format: ``markdown``, ``csv`` or ``json``.
        versions: what made the figures, for markdown's footnote; see ``versions_of``.
        date: when it is exported, as ``clock.now`` writes it; the present by default.

    Raises:
        UsageError: another format.
    """
    match format:
        case "markdown":
            return _markdown(rows, columns, versions or {}, date or now())
        case "csv":
            return _csv(rows, columns)
        case "json":
            return _json(rows, columns)
    raise UsageError(f"format {format!r}: unknown; known are {', '.join(FORMATS)}")


def versions_of(manifests: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The versions that ``manifests`` name, for the footnote; where they differ, all of them joined by
    ``/``."""
    found: dict[str, list[str]] = {}
    for manifest in manifests:
        for name, version in (manifest.get("versions") or {}).items():
            if name in ("lance-workbench", "torch", "transformers") and version not in found.setdefault(
                name, []
            ):
                found[name].append(version)
    return {name: " / ".join(versions) for name, versions in found.items()}


def plain_table(rows: Sequence[Sequence[str]], titles: Sequence[str], right: Sequence[bool]) -> str:
    """Aligned text for a terminal: headings, then rows, two spaces between columns, no line longer than it
    must be."""
    cells = [[visible(_BREAKS.sub(" ", cell)) for cell in row] for row in (titles, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(titles))]
    lines = (
        "  ".join(
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )
    return "\n".join(lines) + "\n"
