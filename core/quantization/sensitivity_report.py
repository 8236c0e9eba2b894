"""A sensitivity as tables, on a terminal or in markdown; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.store.columns import MISSING, number
from core.store.export import markdown_table

Table = tuple[str, list[str], list[list[str]], list[bool]]
"""Title, headings, rows, and which columns align to the right."""

SCORES = {"kl": "KL", "velocity": "velocity error"}
"""What a divergence is called, by its name in a result."""


def tables(found: Mapping[str, Any], *, linears: bool = False) -> list[Table]:
    """Steps, layers and groups of a result; with ``linears`` also every linear."""
    known = [score for score in SCORES if any(score in row["scores"] for row in found["groups"])]
    heads = [SCORES[score] for score in known]
    made: list[Table] = []
    if "steps" in found:
        steps = [[row["step"], *(_scored(row["scores"], score) for score in known)] for row in found["steps"]]
        made.append(("Steps of the recipe", ["step", *heads], steps, _right(1, len(heads))))
        rows = [
            [str(row["layer"]), row["expert"], _decibels(row["weight_sqnr"]), _decibels(row["output_sqnr"])]
            for row in found["layers"]
        ]
        titles = ["layer", "expert", "SQNR of weights", "SQNR of outputs"]
        made.append(("Layers", titles, rows, [True, False, True, True]))
    made.append(_groups(found["groups"], known, heads))
    if linears and "linears" in found:
        rows = [
            [row["linear"], row["scheme"], _decibels(row["weight_sqnr"]), _decibels(row["output_sqnr"])]
            for row in found["linears"]
        ]
        titles = ["linear", "format", "SQNR of weights", "SQNR of outputs"]
        made.append(("Linears", titles, rows, _right(2, 2)))
    return made


def _groups(groups: Sequence[Mapping[str, Any]], known: Sequence[str], heads: Sequence[str]) -> Table:
    """One group rounded at a time, the greatest share of the whole first."""
    rows = [
        [
            row["group"],
            str(row["bits"]),
            *(_scored(row["scores"], score) for score in known),
            MISSING if share is None else f"{100 * share:.1f} %",
        ]
        for row, share in sorted(zip(groups, shares(groups), strict=True), key=lambda pair: -(pair[1] or 0.0))
    ]
    partly = any(row["scores"].get(score) is None for row in groups for score in known)
    return (
        "Groups, one rounded at a time" + (f" ({MISSING}: no sample reaches it)" if partly else ""),
        ["group", "bits", *heads, "share"],
        rows,
        _right(1, len(heads) + 2),
    )


def shares(groups: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Each group's share of what all of them do to the model, every known score counting alike; None where none is
    known of it.
    """
    known = [score for score in SCORES if any(score in row["powers"] for row in groups)]
    totals = {score: sum(row["powers"].get(score) or 0.0 for row in groups) or 1.0 for score in known}
    return [
        None
        if all(row["powers"].get(score) is None for score in known)
        else sum((row["powers"].get(score) or 0.0) / totals[score] for score in known) / len(known)
        for row in groups
    ]


def samples(found: Mapping[str, Any]) -> str:
    """What a result was measured on: ``25 drawn samples``, ``24 samples of text``."""
    measured = found["measured_on"]
    where = f"samples of {', '.join(measured['suites'])}" if measured["suites"] else "drawn samples"
    return f"{measured['samples']} {where}"


def markdown(found: Mapping[str, Any]) -> str:
    """The whole result as a document."""
    parts = [
        f"# Sensitivity of {found['checkpoint']} to {found['recipe']}\n",
        f"{samples(found)}, {found['device']}, {found['dtype']}; calibration "
        f"{found['calibration']}. KL in nats a token and relative error of velocities, with standard errors over "
        "samples; SQNR in dB.\n",
    ]
    for title, titles, rows, right in tables(found, linears=True):
        parts.append(f"## {title}\n\n{markdown_table(titles, rows, right)}")
    return "\n".join(parts)


def _right(left: int, right: int) -> list[bool]:
    return [False] * left + [True] * right


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} dB"


def _scored(scores: Mapping[str, float | None], score: str) -> str:
    value, error = scores.get(score), scores.get(f"{score}_se")
    if value is None:
        return MISSING
    written = number(value, 4, value)
    return written if error is None else f"{written} ± {number(error, 4, value)}"
