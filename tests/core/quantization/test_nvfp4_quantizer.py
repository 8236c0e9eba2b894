"""NVFP4: exact two-level scales, the nearest code, and a search that loses less."""

from __future__ import annotations

import pytest
import torch
from drawn_inputs import correlated, inputs_of
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UsageError
from core.quantization.gptq import compensate
from core.quantization.losses import BlockLoss, linear_block
from core.quantization.nvfp4 import global_scale, nearest_codes, plain_grid, searched_grid
from core.quantization.recipe import GptqStep
from core.quantization.rounding import Rounding, round_best
from core.quantization.scheme import NVFP4, Scheme
from kernels.nvfp4 import MAGNITUDES


def drawn(rows: int, columns: int, seed: int, size: float = 0.02) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size


def test_the_nearest_code_is_chosen_and_ties_go_to_the_even_one() -> None:
    codes = torch.tensor([*(-m for m in reversed(MAGNITUDES[1:])), *MAGNITUDES])
    x = torch.linspace(-7, 7, 20001)
    found = nearest_codes(x)
    assert torch.equal((found - x).abs(), (codes - x.unsqueeze(-1)).abs().amin(-1))
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert nearest_codes(ties).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert nearest_codes(-ties).tolist() == [0.0, -1.0, -1.0, -2.0, -2.0, -4.0, -4.0]


@settings(max_examples=40, deadline=None)
@given(size=st.sampled_from([1e-20, 1e-4, 0.02, 1.0, 1e5]), seed=st.integers(0, 1 << 16))
def test_what_runs_is_exact_in_any_order_and_dtype(size: float, seed: int) -> None:
    weight = drawn(6, 64, seed, size)
    stored = plain_grid(weight).encode(weight)
    runs = stored.dequantize()
    codes = torch.tensor([*MAGNITUDES, *(-m for m in MAGNITUDES)])
    nibbles = torch.stack((stored.packed & 15, stored.packed >> 4), -1).flatten(-2).int()
    scale = stored.scale.float().repeat_interleave(16, 1)
    assert torch.equal(runs.float(), codes[nibbles] * (scale / stored.global_scale))
    assert torch.equal(runs.float(), (codes[nibbles] * scale) / stored.global_scale)
    # Half a step between codes 4 and 6 at worst, and what rounding a scale to three bits of mantissa adds.
    error = (runs.float() - weight).unflatten(-1, (-1, 16)).abs()
    greatest = weight.unflatten(-1, (-1, 16)).abs().amax(-1, keepdim=True)
    floor = weight.abs().max() * 2.0**-10
    assert bool((error <= greatest * (1 / 6 + 1 / 16) + floor).all())


def test_the_global_scale_is_a_power_of_two_that_leaves_headroom() -> None:
    for size in (1e-6, 0.02, 0.0625, 3.0):
        weight = drawn(8, 64, 1, size)
        factor = global_scale(weight)
        assert float(torch.frexp(factor)[0]) == 0.5
        highest = float(weight.abs().max() * factor) / 4
        assert 224 < highest <= 448
    assert torch.equal(
        plain_grid(torch.zeros(2, 32)).encode(torch.zeros(2, 32)).dequantize(), torch.zeros(2, 32).bfloat16()
    )


def test_two_level_scales_keep_what_one_level_loses() -> None:
    """Weights of a usual size: E4M3 scales alone would all be subnormal."""
    weight = drawn(64, 256, 2)
    relative = float((plain_grid(weight).encode(weight).dequantize().float() - weight).norm() / weight.norm())
    assert relative < 0.098
    groups = weight.unflatten(-1, (-1, 16))
    exact = groups.abs().amax(-1, keepdim=True) / 6
    # As toolkits without a global scale do it: codes chosen for the scale before it is rounded.
    one_level = nearest_codes(groups / exact) * exact.to(torch.float8_e4m3fn).float()
    assert relative < 0.8 * float((one_level - groups).norm() / groups.norm())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 16))
def test_no_group_loses_more_than_with_its_plain_scale(seed: int) -> None:
    weight = drawn(8, 64, seed)
    weight[0, :16] = 0
    importance = torch.exp(torch.randn(64, generator=torch.Generator().manual_seed(seed)) * 2)
    h = importance.view(-1, 16)
    plain, searched = plain_grid(weight), searched_grid(weight, importance)
    assert bool((searched.error(weight, h) <= plain.error(weight, h)).all())
    # The error that is searched by is that of the stored weight.
    runs = searched.encode(weight).dequantize().float()
    stored = ((runs - weight).square() * importance).unflatten(-1, (-1, 16)).sum(-1)
    assert torch.allclose(stored, searched.error(weight, h), rtol=1e-4, atol=1e-12)


def test_the_search_lowers_the_error() -> None:
    weight = drawn(64, 256, 3)
    one = torch.ones(256)
    importance = torch.exp(torch.randn(256, generator=torch.Generator().manual_seed(3)) * 1.5)
    for h, share in ((one, 0.85), (importance, 0.7)):
        plain, searched = (
            float(grid.error(weight, h.view(-1, 16)).sum())
            for grid in (plain_grid(weight), searched_grid(weight, h))
        )
        assert searched < share * plain


def test_columns_round_as_the_whole_and_compensation_lowers_the_loss() -> None:
    weight, rows = correlated(32, 128, 1200, 5)
    grid = searched_grid(weight, rows.square().mean(0))
    runs = grid.encode(weight).dequantize().float()
    assert torch.equal(torch.stack([grid.nearest(weight[:, j], j) for j in range(128)], 1), runs)
    found = compensate(weight, rows[:900].t() @ rows[:900] / 900, grid).weight
    loss = [
        float((rows[900:] @ (grid.encode(w).dequantize().float() - weight).t()).square().mean())
        for w in (weight, found)
    ]
    assert loss[1] < 0.7 * loss[0]
    inputs = inputs_of(rows[900:], rows[:900])
    scored = BlockLoss(linear_block, [weight], inputs)
    assert round_best([weight], inputs, scored, Rounding(NVFP4, searched=True), GptqStep()).way == "gptq"


def test_stacked_linears_share_the_global_scale() -> None:
    weights = [drawn(8, 32, 6), drawn(4, 32, 7, 0.5)]
    parts = Rounding(NVFP4).grid(torch.cat(weights), torch.ones(32)).encode(torch.cat(weights)).split([8, 4])
    assert torch.equal(parts[0].global_scale, parts[1].global_scale)
    for part, weight in zip(parts, weights, strict=True):
        assert float((part.dequantize().float() - weight).norm() / weight.norm()) < 0.12


def test_a_format_that_is_not_nvfp4_is_refused() -> None:
    with pytest.raises(UsageError, match="nvfp4 has four bits and groups of 16"):
        Scheme(4, 32, True, "nvfp4")
    with pytest.raises(UsageError, match=r"w \[4, 24\]: nvfp4 needs columns in sixteens"):
        NVFP4.check_shape("w", (4, 24))
