"""Compensation of rounding errors against its definition, and that it lowers the loss it is for."""

from __future__ import annotations

import pytest
import torch
from drawn_inputs import correlated, inputs_of

from core.errors import WorkbenchError
from core.quantization.gptq import Curvature, compensate, inverse_factor
from core.quantization.integer import plain_grid, searched_grid
from core.quantization.losses import BlockLoss, linear_block
from core.quantization.recipe import GptqStep
from core.quantization.rounding import Rounding, round_best
from core.quantization.scheme import Scheme

SCHEME = Scheme(4, 32, False)


def by_definition(weight: torch.Tensor, hessian: torch.Tensor, grid: object, damping: float) -> torch.Tensor:
    """Optimal brain quantization in the order of the diagonal, one column at a time, the inverse updated anew."""
    h = hessian.double().clone()
    h.diagonal().add_(damping * float(h.diagonal().mean()))
    work, result = weight.double().clone(), torch.empty_like(weight)
    remaining = hessian.diagonal().argsort(descending=True, stable=True).tolist()
    while remaining:
        inverse = torch.linalg.inv(h[remaining][:, remaining])
        column = remaining[0]
        value = grid.nearest(work[:, column].float(), column)  # type: ignore[attr-defined]
        result[:, column] = value
        error = (work[:, column] - value.double()) / inverse[0, 0]
        work[:, remaining] -= error.unsqueeze(-1) * inverse[0]
        remaining = remaining[1:]
    return result


def test_the_result_is_that_of_the_definition() -> None:
    weight, rows = correlated(16, 160, 400, 0)
    hessian = rows.t() @ rows / len(rows)
    grid = searched_grid(weight, hessian.diagonal(), SCHEME)
    found = grid.encode(compensate(weight, hessian, grid).weight).dequantize().float()
    wanted = by_definition(weight, hessian, grid, 0.01)
    # float32 against float64: a value near the middle between two codes may fall to either side, and what
    # follows it in its row differs.
    assert float((found == wanted).float().mean()) > 0.97
    both = [Curvature(hessian, 0.0).error(w - weight) for w in (found, wanted)]
    assert both[0] == pytest.approx(both[1], rel=0.02)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_correlated_inputs_lose_less_on_rows_it_never_saw(symmetric: bool, seed: int) -> None:
    weight, rows = correlated(48, 128, 2000, seed)
    seen, unseen = rows[:1500], rows[1500:]
    scheme = Scheme(4, 32, symmetric)
    grid = searched_grid(weight, seen.square().mean(0), scheme)
    curvature = Curvature.of(seen, torch.ones(len(seen)), seen.square().mean(0))
    assert curvature.shrinkage < 0.2
    found = compensate(weight, curvature.hessian, grid)
    assert found.damping == 0.01
    loss = [
        float((unseen @ (grid.encode(w).dequantize().float() - weight).t()).square().mean())
        for w in (weight, found.weight)
    ]
    assert loss[1] < 0.6 * loss[0]


def test_what_is_stored_is_what_was_scored_column_by_column() -> None:
    weight, _ = correlated(16, 96, 300, 4)
    grid = plain_grid(weight, SCHEME)
    runs = grid.encode(weight).dequantize().float()
    assert torch.equal(torch.stack([grid.nearest(weight[:, j], j) for j in range(96)], 1), runs)


def test_uncorrelated_channels_are_rounded_to_nearest() -> None:
    weight, _ = correlated(16, 96, 10, 5)
    grid = plain_grid(weight, SCHEME)
    found = compensate(weight, torch.diag(torch.rand(96) + 0.1), grid)
    assert torch.allclose(found.weight, weight)


def test_a_channel_that_was_never_seen_is_rounded_as_it_is() -> None:
    weight, rows = correlated(16, 96, 400, 6)
    rows[:, [3, 40]] = 0
    grid = plain_grid(weight, SCHEME)
    found = compensate(weight, rows.t() @ rows / len(rows), grid)
    assert torch.equal(found.weight[:, [3, 40]], weight[:, [3, 40]])
    assert not torch.equal(found.weight, weight)


def test_damping_is_raised_until_the_moments_factorise_and_reported() -> None:
    hessian = torch.ones(64, 64)
    hessian[0, 1] = hessian[1, 0] = 4.0
    factor, damping = inverse_factor(hessian, 0.01)
    assert damping == pytest.approx(10.0)
    damped = hessian + damping * torch.eye(64)
    assert torch.allclose(factor.t() @ factor @ damped, torch.eye(64), atol=1e-4)
    with pytest.raises(WorkbenchError, match=r"second moments \[64, 64\] cannot be factorised"):
        inverse_factor(hessian * torch.where(torch.eye(64) > 0, 1.0, 50.0), 0.01)


def test_a_small_sample_is_trusted_less_than_a_large_one() -> None:
    _, rows = correlated(1, 64, 4000, 7)
    mean_sq = rows.square().mean(0)
    shares = [Curvature.of(rows[:n], torch.ones(n), mean_sq).shrinkage for n in (1, 8, 64, 4000)]
    assert shares[0] == 1.0 and sorted(shares, reverse=True) == shares and shares[-1] < 0.05
    truth = rows.t() @ rows / len(rows)
    few = rows[:48]
    plain = few.t() @ few / 48
    drawn = Curvature.of(few, torch.ones(48), mean_sq).hessian
    assert float((drawn - truth).norm()) < 0.9 * float((plain - truth).norm())
    assert torch.equal(drawn.diagonal(), mean_sq)


def test_rows_count_what_their_weight_says() -> None:
    _, rows = correlated(1, 32, 500, 8)
    twice = torch.cat([rows, rows[:100]])
    weight = torch.ones(500)
    weight[:100] = 2.0
    mean_sq = twice.square().mean(0)
    one = Curvature.of(rows, weight, mean_sq).hessian
    other = Curvature.of(twice, torch.ones(600), mean_sq).hessian
    cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
    assert float(cosine) > 0.9999


def test_compensation_that_loses_on_unseen_rows_is_not_kept() -> None:
    weight, rows = correlated(32, 96, 600, 9)
    mixed = rows[:, torch.randperm(96, generator=torch.Generator().manual_seed(0))]
    good, bad = inputs_of(rows[:300], rows[300:]), inputs_of(rows[:300], mixed[300:])
    rounding = Rounding(SCHEME, searched=True)
    kept = round_best([weight], good, BlockLoss(linear_block, [weight], good), rounding, GptqStep())
    assert kept.way == "gptq" and kept.damping == 0.01 and kept.shrinkage is not None
    refused = round_best([weight], bad, BlockLoss(linear_block, [weight], bad), rounding, GptqStep())
    assert refused.way == "ranges"
