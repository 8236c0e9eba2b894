"""Searched ranges lose less than plain ones by the measure they are searched by, group by group."""

from __future__ import annotations

import pytest
import torch
from drawn_inputs import inputs_of
from hypothesis import given, settings
from hypothesis import strategies as st

from core.quantization.integer import plain_grid, searched_grid
from core.quantization.losses import BlockLoss, Inputs, linear_block
from core.quantization.rounding import Rounding, round_best
from core.quantization.scheme import Scheme


def errors(grid: object, weight: torch.Tensor, importance: torch.Tensor, group: int) -> torch.Tensor:
    """Weighted squared error of each group, in float64."""
    runs = grid.encode(weight).dequantize().double()  # type: ignore[attr-defined]
    return ((runs - weight.double()).square() * importance.double()).unflatten(-1, (-1, group)).sum(-1)


def outliers(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    return weight, torch.exp(torch.randn(columns, generator=generator) * 3)


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(2, 8), symmetric=st.booleans(), seed=st.integers(0, 1 << 16))
def test_no_group_loses_more_than_in_its_plain_range(bits: int, symmetric: bool, seed: int) -> None:
    weight, importance = outliers(6, 96, seed)
    weight[0, :32] = 0
    weight[1] = weight[1].abs() + 0.05
    scheme = Scheme(bits, 32, symmetric)
    plain = errors(plain_grid(weight, scheme), weight, importance, 32)
    searched = errors(searched_grid(weight, importance, scheme), weight, importance, 32)
    assert bool((searched <= plain * (1 + 1e-5) + 1e-12).all())


@pytest.mark.parametrize(("symmetric", "share"), [(False, 0.75), (True, 0.7)])
def test_the_error_that_counts_falls_where_channels_differ(symmetric: bool, share: float) -> None:
    weight, importance = outliers(64, 256, 1)
    scheme = Scheme(4, 64, symmetric)
    plain = errors(plain_grid(weight, scheme), weight, importance, 64).sum()
    searched = errors(searched_grid(weight, importance, scheme), weight, importance, 64).sum()
    assert float(searched) < share * float(plain)


def test_channels_without_a_weight_still_get_a_usable_range() -> None:
    weight, _ = outliers(8, 64, 2)
    importance = torch.zeros(64)
    importance[40] = 1.0
    runs = searched_grid(weight, importance, Scheme(4, 32, False)).encode(weight).dequantize().float()
    assert bool(runs.isfinite().all())
    # The first group has no channel that counts: it is rounded as if all of them did.
    assert float((runs[:, :32] - weight[:, :32]).norm() / weight[:, :32].norm()) < 0.1


def test_a_group_keeps_the_way_that_loses_least_and_says_which() -> None:
    weight, importance = outliers(32, 128, 3)
    rows = torch.randn(64, 128, generator=torch.Generator().manual_seed(4)) * importance.sqrt()
    inputs = inputs_of(rows, rows[:0])
    loss = BlockLoss(linear_block, [weight], inputs)
    scheme = Scheme(4, 32, False)
    found = round_best([weight], inputs, loss, Rounding(scheme, searched=True), None)
    assert found.way == "ranges"
    plain = round_best([weight], inputs, loss, Rounding(scheme), None)
    assert plain.way == "nearest" and found.loss is not None and plain.loss is not None
    assert found.loss < plain.loss
    # Rows that see only channels that the importance calls worthless: the search would lose, so it is not kept.
    odd = inputs_of(torch.eye(128)[importance.argsort()[:64]], rows[:0])
    misled = Inputs(**(vars(odd) | {"mean_sq": importance}))
    loss = BlockLoss(linear_block, [weight], misled)
    assert round_best([weight], misled, loss, Rounding(scheme, searched=True), None).way == "nearest"
