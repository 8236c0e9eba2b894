from __future__ import annotations

import pytest
import torch

from kernels import cpu_int4
from kernels.samples import exact, int4, relative_error
from kernels.weights import Int4Weight


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [False, True])
def test_torchs_product_is_the_references(group: int, symmetric: bool) -> None:
    weight = int4(80, 384, group, symmetric, group)
    packed = cpu_int4.pack(weight)
    bias = torch.linspace(-2, 2, 80)
    for m in (1, 3, 16, 64, 70):
        x = torch.randn(m, 384, generator=torch.Generator().manual_seed(m)).bfloat16()
        for addend in (None, bias):
            assert relative_error(cpu_int4.linear(x, packed, addend), exact(x, weight, addend)) < 4e-3
    assert cpu_int4.linear(x.view(2, 35, 384), packed, None).shape == (2, 35, 80)


def test_every_code_and_zero_is_where_it_belongs() -> None:
    weight = int4(32, 256, 64, False, 5)
    found = cpu_int4.linear(torch.eye(256).bfloat16(), cpu_int4.pack(weight), None).float().t()
    wanted = weight.dense().float()
    # Less than the smallest scale: no code stands for its neighbour, though torch rounds where we do not.
    assert (found - wanted).abs().max() < 0.003


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (int4(27, 64, 64, False, 1), "27 rows in groups of 64"),
        (int4(32, 48, 16, True, 1), "32 rows in groups of 16"),
        (
            Int4Weight(int4(32, 64, 64, True, 1).packed, torch.ones(32, 1).half(), None),
            "scales in torch.float16",
        ),
    ],
)
def test_what_torch_cannot_read_is_refused(weight: Int4Weight, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cpu_int4.pack(weight)
