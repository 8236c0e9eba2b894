from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels import fp8
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


@pytest.mark.parametrize(("found", "once"), [((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_gpus_without_e4m3_round_in_pure_torch(
    found: tuple[int, int], once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton compiles no conversion to it for an A100."""
    pytest.importorskip("triton", reason="needs the extra 'triton'")
    monkeypatch.setattr(fp8, "capability", lambda device: found)
    assert fp8.in_one_launch(torch.device("cuda")) == once
    assert not fp8.in_one_launch(torch.device("cpu"))


def test_fused_weights_keep_their_wide_codes_if_all_have_them() -> None:
    parts = [quantize_weight(draw(rows, 32, rows)) for rows in (6, 4)]
    assert fp8.concatenate(parts).wide is None
    held = fp8.concatenate([replace(part, wide=fp8.to_float(part.codes)) for part in parts])
    assert held.wide is not None and torch.equal(held.wide, fp8.to_float(held.codes))
    assert torch.equal(held.dense(), torch.cat([part.dense() for part in parts]))


def test_rounded_rows_are_worth_what_is_multiplied() -> None:
    x = draw(6, 48).view(2, 3, 48)
    codes, scale = quantize_rows(x.view(6, 48))
    assert torch.equal(fp8.round_rows(x).view(6, 48), codes.float() * scale.unsqueeze(1))


def test_a_cpu_says_why_it_has_no_fp8_products() -> None:
    assert "NVIDIA" in str(unsupported(quantize_weight(draw(16, 32))))
