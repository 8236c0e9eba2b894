"""Intervals and errors against published values and closed forms."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.evaluation import statistics


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_matches_newcombe(successes: int, trials: int, low: float, high: float) -> None:
    interval = statistics.wilson(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_share_and_mirrors(pair: tuple[int, int]) -> None:
    successes, trials = pair
    one, other = statistics.wilson(successes, trials), statistics.wilson(trials - successes, trials)
    assert 0.0 <= one.low <= one.value <= one.high <= 1.0
    assert one.low == pytest.approx(1 - other.high, abs=1e-12)


def test_wilson_refuses_what_is_no_proportion() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        statistics.wilson(3, 2)
    with pytest.raises(ValueError, match="0 of 0"):
        statistics.wilson(0, 0)


def test_mean_and_standard_error() -> None:
    result = statistics.mean([1.0, 2.0, 3.0, 4.0])
    assert result.value == 2.5
    assert result.error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert statistics.mean([7.0]) == statistics.Mean(7.0, None)


def test_pairs_that_move_together_have_no_error() -> None:
    difference = statistics.paired_difference([1.0, 5.0, 9.0], [1.5, 5.5, 9.5])
    assert difference == statistics.Mean(0.5, 0.0)


def test_quantile_interpolates() -> None:
    assert statistics.quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert statistics.quantile([5.0], 0.99) == 5.0
    assert statistics.quantile(list(range(101)), 0.99) == pytest.approx(99.0)
