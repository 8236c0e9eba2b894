"""Gates: limits that a comparison must keep, such as ``kl=0.05,top1=0.97``; no torch.

Which side of its limit a score must be on is the score's own (``core.store.columns``): a divergence at most, a share
of agreement at least. The measured value itself is compared, not an end of its interval, so that the same runs
always get the same verdict; the interval is shown beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import UsageError
from core.evaluation.baseline import BF16
from core.evaluation.comparison import Comparison
from core.evaluation.samples import ANSWERING, PERPLEXITY
from core.store import columns
from core.store.columns import BY_KEY, Column

_TOKENS = ("kl", "kl_p99", "kl_max", "top1", "nll")
_ANSWERS = ("exact", "truth", "levenshtein", "ratio", "jaccard", *_TOKENS)
_PICTURES = ("psnr", "mae", "cosine", "velocity", "pixel")
SCORES = (*_ANSWERS, *_PICTURES)
"""The scores that can be gated."""

_OWN = ("truth", "pixel")
"""Scores of the second run alone."""


@dataclass(frozen=True)
class Gate:
    """One limit."""

    score: str
    limit: float

    @property
    def column(self) -> Column:
        """How the score is written, and which way is better."""
        return BY_KEY[self.score]

    @property
    def relation(self) -> str:
        """``at most`` or ``at least``."""
        return "at least" if self.column.better == "higher" else "at most"

    def holds(self, value: float) -> bool:
        """Whether ``value`` keeps the limit; what is no number does not."""
        return value >= self.limit if self.column.better == "higher" else value <= self.limit


@dataclass(frozen=True)
class Verdict:
    """A gate held against one comparison."""

    gate: Gate
    suite: str
    row: Mapping[str, float | None]
    """The score under its column's name, with its interval."""
    passed: bool

    @property
    def value(self) -> float:
        """The measured value."""
        value = self.row[self.gate.score]
        assert value is not None  # verdicts are given on known values only
        return value

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        column = self.gate.column
        return {
            "suite": self.suite,
            "score": self.gate.score,
            "value": self.value,
            "interval": {key: self.row.get(key) for key in column.interval},
            "relation": self.gate.relation,
            "limit": self.gate.limit,
            "passed": self.passed,
        }


def parse(text: str) -> list[Gate]:
    """The gates of ``score=limit`` pairs separated by commas.

    Raises:
        UsageError: no pair, an unknown score, a score twice, or a limit that is no number or out of the score's
            range.
    """
    gates: list[Gate] = []
    for part in text.split(","):
        score, sign, number = (word.strip() for word in part.partition("="))
        if not sign:
            raise UsageError(f"gate {part!r}: wanted score=limit, for example kl=0.05,top1=0.97")
        if score not in SCORES:
            raise UsageError(f"gate {part.strip()!r}: no score {score!r}; scores are {', '.join(SCORES)}")
        if any(gate.score == score for gate in gates):
            raise UsageError(f"gate {part.strip()!r}: {score} has a limit already; give one")
        gates.append(Gate(score, _limit(part.strip(), score, number)))
    return gates


def _limit(part: str, score: str, number: str) -> float:
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UsageError(f"gate {part!r}: the limit is {number!r}, wanted a number")
    if BY_KEY[score].format == "percent" and not 0 <= limit <= 1:
        raise UsageError(f"gate {part!r}: {score} is a share, wanted a limit from 0 to 1, for example 0.97")
    return limit


def judge(gates: Sequence[Gate], comparisons: Sequence[Comparison]) -> list[Verdict]:
    """Every gate held against every comparison whose task has its score.

    Raises:
        UsageError: a gate's score is not known of a comparison whose task has it, or of none at all.
    """
    verdicts = []
    for gate in gates:
        meant = [comparison for comparison in comparisons if gate.score in _scores_of(comparison)]
        if not meant:
            suites = ", ".join(str(comparison.first["suite"]) for comparison in comparisons)
            raise UsageError(f"gate {gate.score}: {suites} measures no {gate.score}; compare another suite")
        verdicts += [_verdict(gate, comparison) for comparison in meant]
    return verdicts


def _scores_of(comparison: Comparison) -> Iterable[str]:
    if comparison.first["task"] == PERPLEXITY:
        return _TOKENS
    return _ANSWERS if comparison.first["task"] in ANSWERING else _PICTURES


def _verdict(gate: Gate, comparison: Comparison) -> Verdict:
    first, second = comparison.first, comparison.second
    row = second if gate.score in _OWN else comparison.scores
    value = row.get(gate.score)
    if value is None:
        raise UsageError(f"gate {gate.score}: {_missing(gate, first, second)}")
    shown = {key: row.get(key) for key in (gate.score, *gate.column.interval)}
    return Verdict(gate, str(first["suite"]), shown, gate.holds(value))


def _missing(gate: Gate, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    if gate.score in _OWN:
        return f"run {second['id']} has none, the truth of {second['suite']} is not known"
    lacking = f"not known of run {second['id']} against run {first['id']}, as it was not scored against its samples; "
    if first["recipe"] != BF16 or first["checkpoint"] != second["checkpoint"]:
        return lacking + f"only a bf16 run of {second['checkpoint']} can be its baseline, compare it with one"
    return lacking + f"evaluate {second['name']} with --baseline {first['id']}"


def table(verdicts: Sequence[Verdict]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the verdicts as text; values carry their interval."""
    titles = ["gate", "suite", "limit", "measured", "verdict"]
    rows = []
    for verdict in verdicts:
        column = verdict.gate.column
        limit = columns.value_text(column, verdict.gate.limit)
        rows.append(
            [
                column.title,
                verdict.suite,
                f"{verdict.gate.relation} {limit}",
                columns.interval_text(column, verdict.row),
                "pass" if verdict.passed else "FAIL",
            ]
        )
    return titles, rows


def failure(verdicts: Sequence[Verdict]) -> str | None:
    """What failed, in one line, or None."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if not failed:
        return None
    words = (
        f"{verdict.gate.score} on {verdict.suite} is {verdict.value:.6g}, wanted {verdict.gate.relation} "
        f"{verdict.gate.limit:.6g}"
        for verdict in failed
    )
    return f"{len(failed)} of {len(verdicts)} gates failed: {'; '.join(words)}"
