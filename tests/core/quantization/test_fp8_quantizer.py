"""FP8: a scale a row, the nearest code, and a search and a compensation that lose less."""

from __future__ import annotations

import pytest
import torch
from drawn_inputs import correlated, inputs_of
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UsageError
from core.quantization.awq import search
from core.quantization.fp8 import Fp8Quantized, plain_grid, searched_grid
from core.quantization.gptq import compensate
from core.quantization.losses import BlockLoss, linear_block
from core.quantization.recipe import GptqStep
from core.quantization.rounding import Rounding, round_best
from core.quantization.scheme import FP8, Scheme
from kernels.fp8 import Fp8Weight, fp8_linear


def drawn(rows: int, columns: int, seed: int, size: float = 0.02) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size


@settings(max_examples=40, deadline=None)
@given(size=st.sampled_from([1e-12, 1e-4, 0.02, 1.0, 1e5]), seed=st.integers(0, 1 << 16))
def test_every_weight_keeps_four_significant_bits_or_a_step_of_its_row(size: float, seed: int) -> None:
    weight = drawn(6, 96, seed, size)
    weight[2] *= 1000
    weight[3] = 0
    for grid in (plain_grid(weight), searched_grid(weight, torch.ones(96))):
        stored = grid.encode(weight)
        assert (stored.codes.dtype, stored.scale.dtype, stored.scale.shape) == (
            torch.float8_e4m3fn, torch.float32, (6, 1),
        )  # fmt: skip
        error = (stored.dequantize() - weight).abs()
        assert bool((error <= torch.maximum(weight.abs() * 2.0**-4, stored.scale * 2.0**-10) * 1.001).all())
        assert not stored.dequantize()[3].any()


def test_the_greatest_weight_of_a_row_is_kept_by_the_plain_grid() -> None:
    weight = drawn(8, 64, 1)
    runs = plain_grid(weight).encode(weight).dequantize()
    assert torch.allclose(runs.abs().amax(1), weight.abs().amax(1), rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 16))
def test_no_row_loses_more_than_with_its_plain_scale(seed: int) -> None:
    weight = drawn(8, 64, seed)
    importance = torch.exp(torch.randn(64, generator=torch.Generator().manual_seed(seed)) * 2)
    plain, searched = plain_grid(weight), searched_grid(weight, importance)
    assert bool((searched.error(weight, importance) <= plain.error(weight, importance)).all())


def test_the_search_lowers_the_error() -> None:
    weight = drawn(64, 256, 3)
    importance = torch.exp(torch.randn(256, generator=torch.Generator().manual_seed(3)) * 2)
    plain, searched = (
        float(grid.error(weight, importance).sum())
        for grid in (plain_grid(weight), searched_grid(weight, importance))
    )
    assert searched < 0.92 * plain


def test_columns_round_as_the_whole_and_compensation_lowers_the_loss() -> None:
    weight, rows = correlated(32, 128, 1200, 5)
    grid = searched_grid(weight, rows.square().mean(0))
    runs = grid.encode(weight).dequantize()
    assert torch.equal(torch.stack([grid.nearest(weight[:, j], j) for j in range(128)], 1), runs)
    found = compensate(weight, rows[:900].t() @ rows[:900] / 900, grid).weight
    loss = [
        float((rows[900:] @ (grid.encode(w).dequantize() - weight).t()).square().mean())
        for w in (weight, found)
    ]
    assert loss[1] < 0.7 * loss[0]
    inputs = inputs_of(rows[900:], rows[:900])
    scored = BlockLoss(linear_block, [weight], inputs)
    assert round_best([weight], inputs, scored, Rounding(FP8, searched=True), GptqStep()).way == "gptq"


def test_the_loss_counts_what_rounding_activations_costs() -> None:
    weight, rows = correlated(32, 128, 1200, 6)
    inputs, rounding = inputs_of(rows[900:], rows[:900]), Rounding(FP8, searched=True)
    grid = rounding.grid(weight, inputs.mean_sq)
    stored = grid.encode(weight)
    assert isinstance(stored, Fp8Quantized)
    one = torch.ones(128)
    found = BlockLoss(linear_block, [weight], inputs, rounding.seen)([stored.dequantize()], one)
    runs = fp8_linear(inputs.rows, Fp8Weight(stored.codes, stored.scale.view(-1)))
    exact = inputs.rows @ weight.t()
    assert found == pytest.approx(float((runs - exact).square().sum() / exact.square().sum()), rel=0.01)
    assert found > 1.3 * BlockLoss(linear_block, [weight], inputs)([stored.dequantize()], one)
    chosen = search([weight], inputs, linear_block, rounding, exponents=0)
    assert chosen.loss_after == pytest.approx(found, rel=1e-6)


def test_linears_that_were_stacked_come_apart_as_they_were() -> None:
    weights = [drawn(8, 32, 6), drawn(4, 32, 7, 0.5)]
    parts = Rounding(FP8).grid(torch.cat(weights), torch.ones(32)).encode(torch.cat(weights)).split([8, 4])
    for part, weight in zip(parts, weights, strict=True):
        assert torch.equal(part.dequantize().float(), plain_grid(weight).encode(weight).dequantize())


def test_a_format_that_is_not_fp8_is_refused() -> None:
    with pytest.raises(UsageError, match="fp8 has eight bits and a scale a row"):
        Scheme(8, 64, True, "fp8")
    # Codes are bytes: any number of columns will do.
    FP8.check_shape("w", (5, 7))
    assert (FP8.nbytes((5, 7)), FP8.label) == (35 + 20, "fp8")
