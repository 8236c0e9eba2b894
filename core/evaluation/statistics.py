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
    return _wilson(successes / trials, trials, confidence)


def _wilson(share: float, trials: float, confidence: float) -> Proportion:
    """The interval of a ``share`` of so many independent trials, which need not be a whole number."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    denominator = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / denominator
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / denominator
    # The bounds are exact at 0 and 1; rounding would leave 1e-17 there.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
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


def clustered_mean(sums: Sequence[float], counts: Sequence[int]) -> Mean:
    """The mean over all tokens of clusters of tokens, with the standard error of a ratio of cluster totals.

    Tokens of a cluster depend on each other, so clusters are what varies independently (Cochran, Sampling
    Techniques, section 6.3): s^2 = n / (n - 1) * sum (sum_i - mean * count_i)^2 / (sum count)^2.

    Args:
        sums: total of each cluster.
        counts: tokens of each cluster, at least one.
    """
    if len(sums) != len(counts) or not sums or min(counts) < 1:
        raise ValueError(f"{len(sums)} totals and {len(counts)} counts are no clusters")
    total = sum(counts)
    centre = math.fsum(sums) / total
    clusters = len(sums)
    if clusters == 1:
        return Mean(centre, None)
    squares = math.fsum((part - centre * count) ** 2 for part, count in zip(sums, counts, strict=True))
    return Mean(centre, math.sqrt(clusters / (clusters - 1) * squares) / total)


def clustered_proportion(successes: Sequence[int], counts: Sequence[int]) -> Proportion:
    """A proportion over all tokens of clusters with the Wilson interval of as many independent tokens as have its
    clustered error (Korn and Graubard 1998); never of more than there are.
    """
    share = clustered_mean(successes, counts)
    total = sum(counts)
    spread = share.value * (1 - share.value)
    if not share.error or not spread:
        return wilson(sum(successes), total)
    effective = min(float(total), spread / share.error**2)
    return _wilson(share.value, effective, 0.95)


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
