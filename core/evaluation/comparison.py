"""Two evaluations of one suite side by side, sample by sample, from what the store holds; no torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal, NamedTuple

from core.errors import UsageError
from core.evaluation import statistics, text_scores
from core.evaluation.samples import ANSWERING, PERPLEXITY
from core.store import Store

_TOKENS = (
    "kl",
    "kl_se",
    "kl_p99",
    "kl_max",
    "top1",
    "top1_low",
    "top1_high",
    "nll",
    "nll_se",
    "velocity",
    "velocity_se",
)
"""Scores that need the models themselves: known only where the second run was scored against the first."""


class Piece(NamedTuple):
    """A stretch of text that both sides have, or only the first (``removed``) or the second (``added``)."""

    kind: Literal["same", "removed", "added"]
    text: str


@dataclass(frozen=True)
class Pair:
    """One sample's two outputs (rows of the store) and how close they are."""

    key: str
    first: dict[str, Any]
    second: dict[str, Any]
    scores: dict[str, float]

    @property
    def differs(self) -> bool:
        """Whether the second output is not the first one, to the character or the pixel; of running text, whether
        some token's likeliest choice is another.
        """
        if self.first["task"] == PERPLEXITY:
            return self.scores.get("top1", 1.0) < 1.0
        if self.first["task"] not in ANSWERING:
            return bool(self.first["output_media"] != self.second["output_media"])
        return self.scores["exact"] != 1.0


@dataclass(frozen=True)
class Comparison:
    """Two runs (rows of the store), their common samples in order, and the second's scores against the first.

    ``scores`` has the store's column names, so ``core.store.columns`` can write it. ``truth_difference`` is
    the paired difference of the share of right answers, second minus first, None where the truth is not
    known.
    """

    first: dict[str, Any]
    second: dict[str, Any]
    pairs: list[Pair]
    scores: dict[str, float | None]
    truth_difference: statistics.Mean | None

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON data."""
        difference = self.truth_difference
        return {
            "first": self.first,
            "second": self.second,
            "scores": self.scores,
            "truth_difference": None if difference is None else dataclasses.asdict(difference),
            "samples": [
                {
                    "key": pair.key,
                    "differs": pair.differs,
                    "scores": pair.scores,
                    "first": pair.first,
                    "second": pair.second,
                }
                for pair in self.pairs
            ],
        }


def compare(store: Store, first_id: int, second_id: int) -> Comparison:
    """Compare two evaluations of one suite on the samples that both have.

    Raises:
        UsageError: there is no such run, a run of another kind, two different suites, or no sample in common.
    """
    first, second = store.run(first_id), store.run(second_id)
    for run in (first, second):
        if run["kind"] != "evaluate":
            raise UsageError(
                f"run {run['id']} is of the kind {run['kind']}: wanted an evaluation; "
                "`runs list kind=evaluate` shows them"
            )
    if (first["suite"], first["task"]) != (second["suite"], second["task"]):
        raise UsageError(
            f"run {first_id} is of the suite {first['suite']}, run {second_id} of {second['suite']}: wanted one suite"
        )
    theirs = {_identity(row): row for row in store.outputs(second_id)}
    scored = second["baseline_run_id"] == first["id"]
    pairs = [
        Pair(row["sample_key"], row, other, _pair_scores(store, row, other, scored=scored))
        for row in store.outputs(first_id)
        if (other := theirs.get(_identity(row))) is not None
    ]
    if not pairs:
        raise UsageError(f"runs {first_id} and {second_id} have no sample in common")
    whole = scored and len(pairs) == second["samples"]
    return Comparison(
        first, second, pairs, _aggregate(pairs, second if whole else None), _truth_difference(pairs)
    )


def _identity(row: dict[str, Any]) -> tuple[str, str, str]:
    """What makes two outputs those of one sample."""
    return row["sample_key"], row["question"] or "", row["instruction"] or ""


def _pair_scores(
    store: Store, first: dict[str, Any], second: dict[str, Any], *, scored: bool
) -> dict[str, float]:
    if first["task"] == PERPLEXITY:
        scores: dict[str, float] = {}
    elif first["task"] not in ANSWERING:
        from core.evaluation import image_scores, media  # numpy, which comparing texts does without

        left, right = (
            media.picture(store, first["output_media"]),
            media.picture(store, second["output_media"]),
        )
        if left.size != right.size:
            raise UsageError(
                f"sample {first['sample_key']}: pictures of {left.size} and {right.size} pixels cannot be compared"
            )
        scores = dataclasses.asdict(image_scores.score(left, right))
    else:
        scores = dataclasses.asdict(text_scores.score(first["text"] or "", second["text"] or ""))
    if scored:
        scores |= {
            key: second[key] for key in ("kl", "kl_max", "top1", "nll", "velocity") if second[key] is not None
        }
    return scores


def _aggregate(pairs: Sequence[Pair], run: dict[str, Any] | None) -> dict[str, float | None]:
    """Means over ``pairs``, and the likelihood scores of ``run`` where it was scored against the first."""
    result: dict[str, float | None] = {}
    for key in ("levenshtein", "ratio", "jaccard", "psnr", "mae", "cosine"):
        values = [pair.scores[key] for pair in pairs if key in pair.scores]
        if values:
            average = statistics.mean(values)
            result |= {key: average.value, f"{key}_se": average.error}
    if "exact" in pairs[0].scores:
        same = statistics.wilson(sum(not pair.differs for pair in pairs), len(pairs))
        result |= {"exact": same.value, "exact_low": same.low, "exact_high": same.high}
    if run is not None:
        result |= {key: run[key] for key in _TOKENS if run[key] is not None}
    return result


def _truth_difference(pairs: Sequence[Pair]) -> statistics.Mean | None:
    key = "truth" if pairs[0].first["task"] in ANSWERING else "pixel"
    known = [
        (pair.first[key], pair.second[key])
        for pair in pairs
        if pair.first[key] is not None and pair.second[key] is not None
    ]
    if not known:
        return None
    return statistics.paired_difference([a for a, _ in known], [b for _, b in known])


def words(first: str, second: str) -> list[Piece]:
    """The word-level difference of two texts; joining what is not ``added`` gives the first text back, and so on."""
    left, right = re.findall(r"\s+|\S+", first), re.findall(r"\s+|\S+", second)
    pieces: list[Piece] = []
    for kind, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(Piece("same", "".join(left[a:b])))
            continue
        if a < b:
            pieces.append(Piece("removed", "".join(left[a:b])))
        if c < d:
            pieces.append(Piece("added", "".join(right[c:d])))
    return pieces
