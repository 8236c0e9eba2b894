"""The kernels of the range search and of GPTQ on the CPU, by Triton's interpreter: run by test_interpreted.

The reference of each is the pure-torch way that core.quantization takes on a CPU.
"""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from core.quantization import fp8, gptq, integer, nvfp4
from core.quantization.scheme import Scheme
from kernels import rounding

SCHEMES = [
    Scheme(4, 64, False),
    Scheme(4, 32, True),
    Scheme(5, 128, False),
    Scheme(8, 64, False),
    Scheme(2, 16, False),
]


def draw(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights with groups of zeros and of one sign, and second moments of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    weight[0, :64] = 0
    weight[1] = weight[1].abs() + 0.05
    x = torch.randn(300, columns // 4, generator=generator)
    x = x @ torch.randn(columns // 4, columns, generator=generator)
    x *= torch.exp(torch.randn(columns, generator=generator))
    return weight, x.t() @ x / 300


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_integer_ranges_are_those_of_the_reference(scheme: Scheme) -> None:
    weight, moments = draw(19, 256)
    importance = moments.diagonal()
    wanted = integer.searched_grid(weight, importance, scheme)
    pairs = [(a, b) for a in integer.SIDES for b in integer.SIDES]
    sides = [(s, s) for s in integer.SHARES] if scheme.symmetric else pairs
    h = importance.view(-1, scheme.group_size)
    scale, zero = rounding.search_integers(
        weight, h, torch.tensor(sides), scheme.code_min, scheme.code_max, scheme.symmetric, integer.REFITS
    )
    assert torch.equal(scale, wanted.scale)
    assert (zero is None) == (wanted.zero is None)
    assert zero is None or wanted.zero is None or torch.equal(zero, wanted.zero)


def test_nvfp4_scales_are_those_of_the_reference() -> None:
    weight, moments = draw(19, 256)
    wanted = nvfp4.searched_grid(weight, moments.diagonal())
    plain = nvfp4.plain_grid(weight)
    first = plain.scale.to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int16)
    h = moments.diagonal().reshape(-1, 16)
    found = rounding.search_nvfp4(weight, h, first, plain.global_scale, nvfp4.OFFSETS)
    assert torch.equal(found, wanted.scale)


@pytest.mark.parametrize("kind", ["asym", "sym", "nvfp4", "fp8"])
def test_compensated_weights_are_those_of_the_reference(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = draw(19, 160)
    scheme = Scheme(4, 32, kind == "sym")
    floats = {"nvfp4": nvfp4.plain_grid, "fp8": fp8.plain_grid}
    grid: gptq.Grid = floats[kind](weight) if kind in floats else integer.plain_grid(weight, scheme)
    wanted = gptq.compensate(weight, moments, grid).weight
    monkeypatch.setattr(gptq, "_by_columns", gptq._by_kernel)
    found = gptq.compensate(weight, moments, grid).weight
    # A value near the middle between two codes may fall to either side; its row differs from there on.
    same = (found - wanted).abs().amax(1) < 1e-5
    assert float(same.float().mean()) > 0.8
    assert not torch.equal(found, weight)


@triton.jit
def _round(x, out, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(out + at, rounding._nearest_e4m3(tl.load(x + at)))


def test_e4m3_is_rounded_as_torch_rounds_it() -> None:
    """All its numbers, what lies half way between two of them, and what lies beside that."""
    values = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (values[1:] + values[:-1]) / 2
    x = torch.cat([values, middles, middles * (1 + 2.0**-20), middles * (1 - 2.0**-20), values * 1.03])[:512]
    x = torch.cat([x, -x])
    found = torch.empty_like(x)
    _round[(1,)](x, found, COUNT=len(x))
    assert torch.equal(found, x.clamp(-448, 448).to(torch.float8_e4m3fn).float())
