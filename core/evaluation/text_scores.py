"""How close two answers are as text, by the definitions lance-quant published its numbers with."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher

from rapidfuzz.distance import Levenshtein

END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True)
class TextScores:
    """Similarities of one pair of answers; 1 means identical, all lie in [0, 1]."""

    exact: float
    levenshtein: float
    ratio: float
    jaccard: float


def cut(text: str) -> str:
    """The answer proper: everything before the first end-of-turn marker, without whitespace around it."""
    return text.split(END_OF_TURN, 1)[0].strip()


def levenshtein(reference: str, candidate: str) -> float:
    """1 - edit distance / length of the longer text, in characters."""
    longest = max(len(reference), len(candidate))
    return 1.0 if longest == 0 else 1.0 - Levenshtein.distance(reference, candidate) / longest


def ratio(reference: str, candidate: str) -> float:
    """``difflib.SequenceMatcher(None, reference, candidate).ratio()``.

    Not symmetric: difflib disregards characters frequent in a candidate of 200 or more characters, which is
    why long answers score far lower here than by edit distance. Kept so that numbers compare with published
    ones.
    """
    return SequenceMatcher(None, reference, candidate).ratio()


def jaccard(reference: str, candidate: str) -> float:
    """Shared words over all words, as sets of lower-cased, whitespace-separated words."""
    left, right = set(reference.lower().split()), set(candidate.lower().split())
    union = left | right
    return 1.0 if not union else len(left & right) / len(union)


def score(reference: str, candidate: str) -> TextScores:
    """All four similarities of two raw answers, each cut at the end of turn first."""
    left, right = cut(reference), cut(candidate)
    return TextScores(
        exact=float(left == right),
        levenshtein=levenshtein(left, right),
        ratio=ratio(left, right),
        jaccard=jaccard(left, right),
    )
