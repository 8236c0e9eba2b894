"""Uncertainty of the reported numbers: Wilson intervals for proportions, standard errors for means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Proportion:
    """``successes / trials`` with its Wilson interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """A sample mean and its standard error; the error is None for fewer than two values."""

    value: float
    error: float | None


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Proportion:
    """The Wilson score interval (Wilson 1927) of a proportion.

    Args:
        successes: how often it held, 0..trials.
        trials: how often it was tried, at least 1.
        confidence: two-sided coverage, 0.95 gives z = 1.96.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} of {trials} is no proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    denominator = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / denominator
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / denominator
    # The bounds are exact at 0 and 1; rounding would leave 1e-17 there.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Proportion(share, low, high)


def mean(values: Sequence[float]) -> Mean:
    """The mean with the standard error s / sqrt(n), s with n - 1 degrees of freedom."""
    count = len(values)
    if count == 0:
        raise ValueError("the mean of no values")
    centre = math.fsum(values) / count
    if count == 1:
        return Mean(centre, None)
    variance = math.fsum((value - centre) ** 2 for value in values) / (count - 1)
    return Mean(centre, math.sqrt(variance / count))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Mean:
    """Mean of ``second - first`` over the same samples, with the standard error of the differences.

    Much narrower than the difference of two independent means when both sides find the same samples hard.
    """
    if len(first) != len(second):
        raise ValueError(f"pairs need equal lengths, not {len(first)} and {len(second)}")
    return mean([b - a for a, b in zip(first, second, strict=True)])


def quantile(values: Sequence[float], share: float) -> float:
    """The ``share`` quantile with linear interpolation between order statistics."""
    if not values:
        raise ValueError("the quantile of no values")
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
