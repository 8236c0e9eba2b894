from __future__ import annotations

import torch

from core.quantization.awq import search
from core.quantization.losses import Inputs, attention_block, linear_block, mlp_block
from core.quantization.rounding import Rounding
from core.quantization.scheme import Scheme


def _inputs(channels: int, generator: torch.Generator, outliers: bool) -> Inputs:
    rows = torch.randn(192, channels, generator=generator)
    if outliers:
        rows = rows * torch.exp(torch.randn(channels, generator=generator) * 1.5)
    bucket = torch.arange(192) % 3
    return inputs_of(rows, bucket, [0.4, 0.3, 0.3])


def inputs_of(rows: torch.Tensor, bucket: torch.Tensor, weight: list[float]) -> Inputs:
    """Rows as a calibration would hand them on, all of them scored."""
    counted = rows[bucket == int(torch.tensor(weight).argmax())]
    return Inputs(
        rows,
        bucket,
        torch.tensor(weight),
        counted.abs().mean(0),
        counted.square().mean(0),
        rows[:0],
        rows[:0, 0],
    )


def test_scales_help_where_some_channels_are_outliers() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(48, 128, generator=generator) * 0.02]
    choice = search(weights, _inputs(128, generator, True), linear_block, Rounding(Scheme(4, 64, False)))
    assert choice.mode != "identity"
    assert choice.loss_after < 0.7 * choice.loss_before


def test_a_search_never_ends_worse_than_plain_rounding() -> None:
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        weights = [torch.randn(32, 64, generator=generator) for _ in range(2)]
        weights[0][:, seed] *= 30
        down = torch.randn(16, 32, generator=generator)
        inputs = _inputs(64, generator, seed % 2 == 0)
        choice = search(
            weights, inputs, mlp_block(down, "silu", (None, None)), Rounding(Scheme(4, 32, False))
        )
        assert choice.loss_after <= choice.loss_before


def test_identity_is_kept_when_nothing_else_is_tried() -> None:
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(32, 64, generator=generator)]
    choice = search(
        weights, _inputs(64, generator, True), linear_block, Rounding(Scheme(4, 32, True)), exponents=0
    )
    assert choice.mode == "identity"
    assert choice.loss_before == choice.loss_after
    assert torch.equal(choice.scale, torch.ones(64))


def test_a_bucket_of_large_tokens_does_not_drown_the_others() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(100, 64, generator=generator)
    rows[:50] *= 100
    rows[50:, 5] *= 40
    bucket = (torch.arange(100) >= 50).long()
    weights = [torch.randn(32, 64, generator=generator)]
    loud = inputs_of(rows, bucket, [1.0, 0.0])
    quiet = inputs_of(rows, bucket, [0.0, 1.0])
    assert search(weights, quiet, linear_block, Rounding(Scheme(4, 64, False))).scale[5] > 2
    assert search(weights, loud, linear_block, Rounding(Scheme(4, 64, False))).scale[5] < 2


def test_the_length_of_a_head_does_not_count_in_queries_and_keys() -> None:
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(n, 32, generator=generator) for n in (32, 16, 16))
    zero = [torch.zeros(n) for n in (32, 16, 16)]
    rows = torch.randn(20, 32, generator=generator)
    block = attention_block(zero, torch.ones(16), torch.ones(16), 1e-6)
    first, second = block((q, k, v), rows), block((3 * q, 0.5 * k, v), rows)
    for a, b in zip(first, second, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
