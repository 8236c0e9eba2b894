"""What MLX makes of the weights that are written for it, against our own reference, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.formats.compressed_tensors import to_tensors
from core.formats.mlx_weights import Form, Rounding, affine, expanded, form_of, nvfp4
from core.quantization import integer
from core.quantization import nvfp4 as nvfp4_quantizer
from core.quantization.scheme import CHANNEL, NVFP4, Scheme
from kernels.packing import unpack

mx: Any = pytest.importorskip("mlx.core", reason="needs the extra 'mlx'")
mx.set_default_device(mx.cpu)

ROWS, COLUMNS = 24, 384


def array(tensor: Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:
        return mx.array(tensor.view(torch.uint16).numpy()).view(mx.bfloat16)
    return mx.array(tensor.numpy())


def tensor(found: Any) -> Tensor:
    return torch.tensor(np.array(found.astype(mx.float32)))


def dequantized(tensors: dict[str, Tensor], form: Form) -> Tensor:
    """What MLX computes in float32, where nothing of a code times a bfloat16 scale is rounded."""
    biases = None if form.mode == "nvfp4" else array(tensors["biases"]).astype(mx.float32)
    scales = array(tensors["scales"])
    scales = scales if form.mode == "nvfp4" else scales.astype(mx.float32)
    return tensor(
        mx.dequantize(
            array(tensors["weight"]),
            scales,
            biases,
            group_size=form.group_size,
            bits=form.bits,
            mode=form.mode,
        )
    )


def stored(weight: Any) -> dict[str, Tensor]:
    return {key.rpartition(".")[2]: value for key, value in to_tensors("w", weight).items()}


def random_weight(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, COLUMNS, generator=generator) * 0.05 + 0.01


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 96, 128, 192, CHANNEL])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_integers_keep_their_codes(bits: int, group: int, symmetric: bool) -> None:
    scheme = Scheme(bits, group, symmetric)
    made = integer.quantize(random_weight(), scheme)
    form = form_of(scheme, COLUMNS)
    assert form is not None and (form.mode, form.bits) == ("affine", 8 if bits == 7 else bits)
    rounding = Rounding()
    tensors = affine(stored(made), scheme, COLUMNS, form, rounding)
    assert tensors["scales"].shape == tensors["biases"].shape == (ROWS, COLUMNS // form.group_size)
    assert sum(each.nbytes for each in tensors.values()) == form.nbytes((ROWS, COLUMNS))
    found = dequantized(tensors, form)

    width = scheme.width(COLUMNS)
    scale = made.scale.float().repeat_interleave(width, dim=1)
    zero = torch.zeros_like(scale) if made.zero is None else made.zero.float().repeat_interleave(width, dim=1)
    if symmetric or bits == 7:
        assert torch.equal(found, (made.codes.float() - zero) * scale)
        assert torch.equal(found.bfloat16(), made.dequantize()), "rounded once, as ours is"
        assert rounding.linears == 0
        return
    # The very codes, and a bias that is the zero point's product rounded to bfloat16.
    middle = 1 << (bits - 1)
    bias = (-(zero + middle) * scale).bfloat16().float()
    assert torch.equal(found, (made.codes.float() + middle) * scale + bias)
    words = tensors["weight"].view(torch.int32)
    assert torch.equal(unpack(words, bits, COLUMNS), made.codes)
    steps = (found - (made.codes.float() - zero) * scale) / scale
    assert float(steps.abs().max()) == pytest.approx(rounding.worst, abs=1e-6)
    assert float(steps.square().mean().sqrt()) == pytest.approx(rounding.rms, rel=1e-4)
    assert rounding.worst <= (1 << bits) * 2.0**-8, "half a unit in the last of eight bits"


def test_nvfp4_is_carried_exactly() -> None:
    made = nvfp4_quantizer.plain_grid(random_weight()).encode(random_weight())
    form = form_of(NVFP4, COLUMNS)
    assert form == Form("nvfp4", 4, 16)
    tensors = nvfp4(stored(made))
    found = dequantized(tensors, form) * tensors["output_scale"]
    assert torch.equal(found.bfloat16(), made.dequantize())
    assert torch.equal(tensors["scales"], made.scale.view(torch.uint8))
    assert torch.equal(tensors["weight"].view(torch.uint8), made.packed)


@pytest.mark.parametrize("group", [8, 16, 48])
def test_groups_that_mlx_lacks_have_no_form(group: int) -> None:
    assert form_of(Scheme(4, group, symmetric=False), COLUMNS) is None


@pytest.mark.parametrize("symmetric", [True, False])
def test_expanded_weights_are_those_that_run(monkeypatch: pytest.MonkeyPatch, symmetric: bool) -> None:
    monkeypatch.setattr("core.formats.mlx_weights.ROWS", 10)
    scheme = Scheme(4, 16, symmetric)
    made = integer.quantize(random_weight(), scheme)
    assert torch.equal(expanded(stored(made), scheme, COLUMNS), made.dequantize())
