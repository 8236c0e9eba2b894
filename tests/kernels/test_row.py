from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels import row
from kernels.arguments import RowNorm
from kernels.config import Config
from kernels.decoder_ops import rms_norm_reference
from kernels.linear import linear, linear_swiglu
from kernels.samples import int4
from kernels.tiles import tile

WEIGHT = int4(96, 256, 64, False, 1)
NORM = RowNorm(torch.linspace(-1, 2, 256), 1e-3)
BIAS = torch.linspace(-2, 2, 96)


@pytest.fixture
def x() -> torch.Tensor:
    return 5 * torch.randn(1, 256, generator=torch.Generator().manual_seed(0))


def test_without_a_kernel_it_is_the_norm_then_the_product_then_the_sum(x: torch.Tensor) -> None:
    normed = rms_norm_reference(x, NORM.weight, NORM.eps)
    found = row.linear_of_norm(x, NORM, WEIGHT, BIAS, torch.empty(1, 96))
    assert torch.equal(found, linear(normed, WEIGHT, BIAS))
    gated = row.linear_of_norm(x, NORM, WEIGHT, BIAS, torch.empty(1, 48), gated=True)
    assert torch.equal(gated, linear_swiglu(normed, WEIGHT, BIAS))
    residual = torch.randn(1, 96)
    wanted = residual + linear(x, WEIGHT, BIAS)
    assert row.add_linear(x, WEIGHT, BIAS, residual) is residual
    assert torch.equal(residual, wanted)
    assert not row.norms(WEIGHT) and not row.adds(WEIGHT)


@pytest.mark.parametrize(
    ("config", "norms", "adds"),
    [
        (Config("direct", 8, 16, 16, 4, 1), True, True),
        (Config("direct", 8, 16, 16, 4, 1, 2), False, True),
        (Config("matmul", 8, 32, 1, 2, 4, 1), False, False),
    ],
    ids=lambda value: value.label.replace(" ", "-") if isinstance(value, Config) else None,
)
def test_only_a_kernel_that_can_do_it_is_asked_to(
    config: Config, norms: bool, adds: bool, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = pytest.importorskip("kernels.direct", reason="needs the extra 'triton'")
    monkeypatch.setattr(row, "choose", lambda *case: config)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(direct, "launch_direct", lambda *given, **options: asked.append(options) or given[5])
    for name in ("linear", "linear_swiglu"):
        monkeypatch.setattr(
            row, name, lambda x, weight, bias, out=None: torch.zeros(1, 96) if out is None else out
        )
    weight, half = tile(WEIGHT), x.bfloat16()
    assert (row.norms(weight), row.adds(weight)) == (norms, adds)
    norm = RowNorm(NORM.weight.bfloat16(), NORM.eps)
    row.linear_of_norm(half, norm, weight, None, torch.empty(1, 96).bfloat16())
    assert asked == [{"norm": norm}] * norms
    asked.clear()
    row.add_linear(half, weight, None, torch.zeros(1, 96).bfloat16())
    assert asked == [{"add": True}] * adds
    asked.clear()
    row.add_linear(half.expand(2, -1), weight, None, torch.zeros(2, 96).bfloat16())
    assert not asked
