"""A comparison as a markdown document: every sample, whole outputs, differences marked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from core.evaluation import prose
from core.evaluation.comparison import Comparison, Pair, words
from core.evaluation.samples import ANSWERING, PERPLEXITY
from core.store import columns, export

_RUN_COLUMNS = (
    "id",
    "name",
    "bits",
    "size_bytes",
    "samples",
    "truth",
    "pixel",
    "seconds",
    "device",
    "created_at",
)
_SCORES = (
    "exact", "levenshtein", "ratio", "jaccard", "kl", "kl_p99", "kl_max", "top1", "nll",
    "psnr", "mae", "cosine", "velocity",
)  # fmt: skip
SAMPLE_SCORES = (
    "levenshtein",
    "ratio",
    "jaccard",
    "kl",
    "kl_max",
    "top1",
    "nll",
    "psnr",
    "mae",
    "cosine",
    "velocity",
)


def fenced(text: str) -> str:
    """``text`` in a code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}\n"


def marked(first: str, second: str) -> str:
    """The word difference as one text: ``[-only in the first-]`` and ``{+only in the second+}``."""
    shown = {"same": "{}", "removed": "[-{}-]", "added": "{{+{}+}}"}
    return "".join(shown[piece.kind].format(piece.text) for piece in words(first, second))


def markdown(
    comparison: Comparison, pictures: Mapping[str, str] | None = None, date: str | None = None
) -> str:
    """The report.

    Args:
        pictures: links to the stored pictures by key, where they were written; without them pictures are left
        out. date: for the footnote, as ``clock.now`` writes it; the present by default.
    """
    first, second = comparison.first, comparison.second
    shown = columns.without_empty(columns.chosen(_RUN_COLUMNS), [first, second])
    versions = export.versions_of([first.get("manifest") or {}, second.get("manifest") or {}])
    differing = sum(pair.differs for pair in comparison.pairs)
    description = (first.get("manifest") or {}).get("description")
    seen = (second.get("manifest") or {}).get("calibrated_on")
    parts = [
        f"# {_plain(second['name'])} beside {_plain(first['name'])} on {_plain(first['suite'])}\n",
        *([f"{_plain(description)}\n"] if description else []),
        *([f"{_plain(second['name'])} was calibrated on {seen} of these samples.\n"] if seen else []),
        export.table([first, second], shown, "markdown", versions, date),
        f"## Run {second['id']} against run {first['id']}\n",
        f"{differing} of {len(comparison.pairs)} outputs differ.{_truth(comparison)}\n",
        _scores(comparison),
        "## Samples\n",
    ]
    parts += [
        _sample(comparison, number, pair, pictures or {}) for number, pair in enumerate(comparison.pairs, 1)
    ]
    return "\n".join(parts)


def _truth(comparison: Comparison) -> str:
    difference = comparison.truth_difference
    if difference is None:
        return ""
    error = "" if difference.error is None else f" ± {difference.error * 100:.1f}"
    return f" Right answers: {difference.value * 100:+.1f}{error} points (paired)."


def _scores(comparison: Comparison) -> str:
    scores = comparison.scores | prose.perplexity(comparison.second)
    known = [
        column for column in (*columns.chosen(_SCORES), prose.COLUMN) if scores.get(column.key) is not None
    ]
    first = "bf16" if comparison.first["recipe"] == "bf16" else str(comparison.first["name"])
    rows = [
        [
            column.title,
            columns.interval_text(column, scores),
            column.meaning.replace("bf16", first),
        ]
        for column in known
    ]
    return export.markdown_table(["score", "value", "meaning"], rows, [False, True, False])


def _sample(comparison: Comparison, number: int, pair: Pair, pictures: Mapping[str, str]) -> str:
    lines = [f"### {number}. {_plain(pair.key)} {'≠' if pair.differs else '='}\n"]
    if pair.first["input_media"] in pictures:
        lines.append(f"![picture]({pictures[pair.first['input_media']]})\n")
    if pair.first["question"]:
        lines.append(f"{_plain(pair.first['question'])}\n")
    if pair.first["expected"]:
        lines.append(f"Expected: {_plain(pair.first['expected'])}\n")
    for run, row in ((comparison.first, pair.first), (comparison.second, pair.second)):
        lines.append(f"**{_plain(run['name'])}**{_mark(row)}\n")
        if row["output_media"] in pictures:
            lines.append(f"![picture]({pictures[row['output_media']]})\n")
        if row["task"] in ANSWERING:
            lines.append(fenced(row["text"] or ""))
    if pair.differs or pair.first["task"] == PERPLEXITY:
        if pair.first["task"] in ANSWERING:
            lines += ["Difference:\n", fenced(marked(pair.first["text"] or "", pair.second["text"] or ""))]
        known = [column for column in columns.chosen(SAMPLE_SCORES) if column.key in pair.scores]
        lines.append(
            " · ".join(
                f"{column.title} {columns.value_text(column, pair.scores[column.key])}" for column in known
            )
            + "\n"
        )
    return "\n".join(lines)


def _mark(row: dict[str, Any]) -> str:
    """Whether an output is right, where that is known; for pictures also what was recognised."""
    if row["truth"] is not None:
        return " ✓" if row["truth"] else " ✗"
    if row["pixel"] is not None:
        return f" {'✓' if row['pixel'] else '✗'} shows {_plain(row['text'])}"
    return ""


def _plain(text: str) -> str:
    return export.markdown_cell(str(text))
