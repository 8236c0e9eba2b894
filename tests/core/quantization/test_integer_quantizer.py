from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UsageError
from core.quantization.awq import evenness
from core.quantization.integer import plain_grid, quantize, searched_grid
from core.quantization.scheme import CHANNEL, Scheme


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    shift=st.floats(-3, 3),
    size=st.sampled_from([1e-30, 1e-6, 0.02, 1.0, 1e4]),
    seed=st.integers(0, 1 << 16),
)
def test_a_weight_comes_back_within_half_a_step(
    bits: int, symmetric: bool, shift: float, size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(6, 64, generator=generator) + shift) * size
    scheme = Scheme(bits, 32, symmetric)
    quantized = quantize(weight, scheme)
    step = quantized.scale.float().repeat_interleave(32, dim=1)
    error = (quantized.dequantize().float() - weight).abs()
    # Half a step, plus what rounding the range (the scale) and the product to bfloat16 may add: 2**-8 of
    # the value.
    bound = step / 2 + (weight.abs() + step * (1 << bits)) * 2.0**-8
    assert bool((error <= bound).all())


def test_in_float32_half_a_step_is_exact() -> None:
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    quantized = quantize(weight, Scheme(4, 64, False), torch.float32)
    step = quantized.scale.repeat_interleave(64, dim=1)
    assert bool(((quantized.dequantize() - weight).abs() <= step * 0.50001).all())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_range_of_a_one_sided_group_includes_zero(sign: float) -> None:
    weight = sign * torch.linspace(0.5, 0.65, 64).view(1, 64)
    quantized = quantize(weight, Scheme(4, 64, False))
    assert float((quantized.dequantize().float() - weight).abs().max()) < 0.65 / 15 / 2 + 0.005
    zero = plain_grid(weight, Scheme(4, 64, False)).zero
    assert zero is not None
    assert int(zero.item()) == (-8 if sign > 0 else 7)


def test_zeros_stay_zero_and_a_tiny_range_keeps_its_shape() -> None:
    assert float(quantize(torch.zeros(2, 32), Scheme(4, 32, False)).dequantize().abs().max()) == 0.0
    weight = torch.linspace(-1, 1, 32).view(1, 32) * 1e-20
    back = quantize(weight, Scheme(4, 32, False)).dequantize().float()
    assert float((back - weight).norm() / weight.norm()) < 0.1


def test_a_group_that_does_not_divide_names_tensor_shape_and_group() -> None:
    with pytest.raises(UsageError, match=r"layer\.q \[64, 96\].*groups of 64.*choose a group of 32"):
        Scheme(4, 64, False).check_shape("layer.q", (64, 96))


@pytest.mark.parametrize("symmetric", [False, True])
def test_one_scale_a_row_is_a_group_of_all_columns(symmetric: bool) -> None:
    weight = torch.randn(6, 96, generator=torch.Generator().manual_seed(3))
    rows, whole = Scheme(4, CHANNEL, symmetric), Scheme(4, 96, symmetric)
    for search in (plain_grid, lambda w, s: searched_grid(w, torch.linspace(0.1, 3, 96), s)):
        mine, theirs = search(weight, rows), search(weight, whole)
        assert mine.scale.shape == (6, 1)
        assert torch.equal(mine.encode(weight).dequantize(), theirs.encode(weight).dequantize())
        assert torch.equal(mine.nearest(weight[:, 70], 70), mine.encode(weight).dequantize()[:, 70].float())
    assert torch.equal(evenness([weight], CHANNEL), evenness([weight], 96))
    assert rows.nbytes((6, 96)) == whole.nbytes((6, 96))
    assert rows.label.endswith(" channel") and rows.to_json()["group"] == "channel"
    with pytest.raises(UsageError, match=r"layer\.q \[6, 40\].*multiples of 32"):
        rows.check_shape("layer.q", (6, 40))


@pytest.mark.parametrize(("bits", "group"), [(1, 64), (9, 64), (4, 0)])
def test_a_format_that_cannot_be_stored_is_refused(bits: int, group: int) -> None:
    with pytest.raises(UsageError):
        Scheme(bits, group, True)


@pytest.mark.parametrize("symmetric", [False, True])
def test_stored_bytes_are_predicted(symmetric: bool) -> None:
    assert Scheme(4, 64, symmetric).nbytes((2048, 2048)) == 2048 * 1024 + 2048 * 32 * 2 + 16 + (
        0 if symmetric else 2048 // 8 * 32 * 4
    )
