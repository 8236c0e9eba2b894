"""Figures of benchmarks: kept in the run's manifest, shown and exported the same everywhere. No torch.

A figure is a dict: ``subject`` (a linear such as ``gate_up``, or ``decode``, ``t2i``, ``load``), ``rows`` of
activations or None, ``implementation``, ``value`` and its ``unit``, ``gigabytes`` a second and the ``share`` of the
device's read bandwidth that they are (of a linear on a GPU), ``against`` (times bf16's speed on the same subject and
rows), and ``how`` it was taken.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence

from core.errors import UsageError
from core.store.export import FORMATS, footnote, markdown_table, versions_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from core.store import Store

    Figure = Mapping[str, Any]

KEY = "measurements"
"""The manifest's key."""

HIGHER = ("tokens/s",)
"""Units of which more is better; of the others, less."""

TITLES = (
    "run",
    "name",
    "device",
    "what",
    "M",
    "implementation",
    "value",
    "unit",
    "GB/s",
    "peak",
    "speed",
    "how",
)
FIELDS = ("subject", "rows", "implementation", "value", "unit", "gigabytes", "share", "against", "how")
"""Of a figure, in the order of csv."""
RIGHT = ("run", "M", "value", "GB/s", "peak", "speed")


def figure(
    subject: str,
    implementation: str,
    value: float,
    unit: str,
    how: str = "",
    *,
    rows: int | None = None,
    gigabytes: float | None = None,
    share: float | None = None,
    against: float | None = None,
) -> dict[str, Any]:
    """One figure as it is kept."""
    return {
        "subject": subject, "rows": rows, "implementation": implementation, "value": value, "unit": unit,
        "gigabytes": gigabytes, "share": share, "against": against, "how": how,
    }  # fmt: skip


def of_run(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of a run that ``Store.run`` returned; none of another kind of run."""
    return list((run.get("manifest") or {}).get(KEY) or ())


def number(value: float) -> str:
    """A value with four significant digits, without an exponent."""
    if value >= 1000:
        return f"{value:,.0f}"
    magnitude = 0 if value <= 0 else math.floor(math.log10(value))
    return f"{value:.{max(0, 3 - magnitude)}f}"


def cells(item: Figure) -> list[str]:
    """A figure's cells under ``TITLES`` behind run, name and device."""
    rows, gigabytes, share, against = (item.get(key) for key in ("rows", "gigabytes", "share", "against"))
    return [
        str(item["subject"]),
        "" if rows is None else str(rows),
        str(item["implementation"]),
        number(item["value"]),
        str(item["unit"]),
        "" if gigabytes is None else f"{gigabytes:,.0f}",
        "" if share is None else f"{100 * share:.0f} %",
        "" if against is None else f"{against:.2f}x",
        str(item.get("how") or ""),
    ]


def _rows(runs: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Figure]]:
    return [(run, item) for run in runs for item in of_run(run)]


def plain_rows(runs: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of cells under ``TITLES``."""
    return [
        [str(run["id"]), str(run["name"]), str(run["device"] or ""), *cells(item)]
        for run, item in _rows(runs)
    ]


def document(runs: Sequence[Mapping[str, Any]], form: str, date: str) -> str:
    """The figures of benchmark runs as markdown (with a footnote), csv or json.

    Args:
        runs: from ``Store.run``.
        form: of ``core.store.export.FORMATS``.
        date: when it is exported, as ``core.store.clock.now`` has it.

    Raises:
        UsageError: another format, or runs without figures.
    """
    if not _rows(runs):
        raise UsageError(
            "no figures to export: none of these runs is a benchmark; `lance-workbench bench` makes one"
        )
    if form == "markdown":
        body = markdown_table(TITLES, plain_rows(runs), [title in RIGHT for title in TITLES])
        note = footnote(runs, versions_of(run.get("manifest") or {} for run in runs), date)
        commands = {" ".join((run.get("manifest") or {}).get("command_line") or ()) for run in runs} - {""}
        note = note.replace(
            "Proportions with their 95 % Wilson interval, means with their standard error. ", ""
        )
        return body + "\n" + note + "".join(f"\n    {command}\n" for command in sorted(commands))
    flat = [
        {
            "run": run["id"],
            "name": run["name"],
            "device": run["device"],
            **{key: item.get(key) for key in FIELDS},
        }
        for run, item in _rows(runs)
    ]
    if form == "json":
        return json.dumps(flat, ensure_ascii=False, indent=2) + "\n"
    if form == "csv":
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        return stream.getvalue()
    raise UsageError(f"format {form!r}: unknown; known are {', '.join(FORMATS)}")


def chosen(store: Store, ids: Sequence[int]) -> list[dict[str, Any]]:
    """The named benchmark runs; without names, those of the latest job that made any, oldest first.

    Raises:
        UsageError: an unknown run, one that is no benchmark, or there is none.
    """
    if ids:
        runs = [store.run(run_id) for run_id in ids]
        for run in runs:
            if run["kind"] != "bench":
                raise UsageError(
                    f"run {run['id']}: is no benchmark but of kind {run['kind']}; "
                    "`lance-workbench runs list kind=bench` shows those that are"
                )
        return runs
    latest = store.runs("kind=bench", limit=1)
    if not latest:
        raise UsageError("no benchmark is recorded; `lance-workbench bench` makes one")
    job = latest[0]["job_id"]
    same = store.runs(f"kind=bench job_id={job}") if job is not None else latest
    return [store.run(row["id"]) for row in reversed(same)]
