from __future__ import annotations

import pytest
import torch

from kernels.fp8 import fp8_linear, quantize_rows, quantize_weight, unsupported
from kernels.samples import relative_error


def draw(m: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, k, generator=torch.Generator().manual_seed(seed))


def test_a_row_keeps_its_largest_element_and_every_normal_number_four_bits() -> None:
    x = draw(9, 200) * torch.logspace(-6, 6, 9).unsqueeze(1)
    codes, scale = quantize_rows(x)
    back = codes.float() * scale.unsqueeze(1)
    assert torch.allclose(back.abs().amax(1), x.abs().amax(1), rtol=1e-6)
    # Half a step of four significant bits; below 2**-6 of the scale, of a fixed step.
    assert ((back - x).abs() <= torch.maximum(x.abs() * 2.0**-4, scale.unsqueeze(1) * 2.0**-10) * 1.001).all()


def test_rows_of_zeros_stay_zeros() -> None:
    codes, scale = quantize_rows(torch.zeros(2, 16))
    assert (scale > 0).all() and not codes.float().any()


def test_a_large_channel_or_row_does_not_touch_the_others() -> None:
    weight, x = draw(6, 64), draw(5, 64, 1)
    plain = fp8_linear(x, quantize_weight(weight))
    weight[2] *= 1000
    x[4] *= 1000
    scaled = fp8_linear(x, quantize_weight(weight))
    keep = [i for i in range(6) if i != 2]
    assert torch.equal(scaled[:4, keep], plain[:4, keep])


def test_a_linear_is_close_to_the_exact_one_and_closer_to_its_own_weights() -> None:
    weight, x, bias = draw(48, 512), draw(7, 512, 1), draw(1, 48, 2)[0]
    stored = quantize_weight(weight)
    found = fp8_linear(x, stored, bias)
    exact = x.double() @ weight.double().t() + bias
    assert 0.01 < relative_error(found, exact) < 0.05
    codes, scale = quantize_rows(x)
    rounded = (codes.double() * scale.double().unsqueeze(1)) @ stored.dense().double().t() + bias
    assert relative_error(found, rounded) < 1e-6


def test_activations_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"activations \[2, 32\] do not fit a weight \[6, 64\]"):
        fp8_linear(draw(2, 32), quantize_weight(draw(6, 64)))


def test_a_cpu_says_why_it_has_no_fp8_products() -> None:
    assert "NVIDIA" in str(unsupported(quantize_weight(draw(16, 32))))
