from __future__ import annotations

import pytest
import torch

from kernels.linear import quantized_linear
from kernels.packing import pack
from kernels.reference import dequantize


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_linear_equals_a_dense_one_over_the_dequantized_weight(
    bits: int, symmetric: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(bits)
    half = 1 << (bits - 1)
    codes = torch.randint(-half, half, (24, 96), generator=generator).to(torch.int8)
    zero = None if symmetric else torch.randint(-half, half, (24, 3), generator=generator).to(torch.int8)
    scale = (torch.rand(24, 3, generator=generator) + 0.1).to(torch.bfloat16)
    bias = torch.randn(24, generator=generator)
    x = torch.randn(2, 5, 96, generator=generator).to(dtype)
    packed_zero = None if zero is None else pack(zero, bits, dim=0)
    got = quantized_linear(x, pack(codes, bits), scale, packed_zero, bias, bits)
    weight = dequantize(codes, scale, zero)
    assert weight.dtype == torch.bfloat16
    assert torch.equal(got, torch.nn.functional.linear(x, weight.to(dtype), bias.to(dtype)))


def test_each_weight_is_code_minus_zero_times_the_scale_of_its_group() -> None:
    codes = torch.tensor([[1, 2, 3, 4]], dtype=torch.int8)
    weight = dequantize(codes, torch.tensor([[0.5, 2.0]]), torch.tensor([[1, -1]], dtype=torch.int8))
    assert weight.tolist() == [[0.0, 0.5, 8.0, 10.0]]
