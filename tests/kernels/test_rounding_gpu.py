"""The kernels of the range search and of GPTQ on a CUDA device: ``pytest -m gpu tests/kernels``."""

from __future__ import annotations

import pytest
import torch

from core.quantization import fp8, gptq, integer, nvfp4
from core.quantization.gptq import Grid
from core.quantization.scheme import FP8, NVFP4, Scheme

pytestmark = pytest.mark.gpu


def draw(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    x = torch.randn(4 * columns, columns // 4, generator=generator)
    x = x @ torch.randn(columns // 4, columns, generator=generator)
    x *= torch.exp(torch.randn(columns, generator=generator))
    return weight, x.t() @ x / len(x)


def searched(weight: torch.Tensor, importance: torch.Tensor, scheme: Scheme) -> Grid:
    if scheme == FP8:
        return fp8.searched_grid(weight, importance)
    if scheme == NVFP4:
        return nvfp4.searched_grid(weight, importance)
    return integer.searched_grid(weight, importance, scheme)


@pytest.mark.parametrize(
    "scheme",
    [Scheme(4, 64, False), Scheme(4, 128, True), Scheme(3, 32, False), Scheme(8, 64, False), NVFP4, FP8],
    ids=lambda scheme: scheme.label,
)
def test_device_and_host_find_the_same_grid_and_lose_as_little(scheme: Scheme) -> None:
    weight, moments = draw(384, 512)
    losses, scales = [], []
    for device in ("cpu", "cuda"):
        w, h = weight.to(device), moments.to(device)
        grid = searched(w, h.diagonal(), scheme)
        found = grid.encode(gptq.compensate(w, h, grid).weight).dequantize().float()  # type: ignore[attr-defined]
        change = found - w
        plain = grid.encode(w).dequantize().float() - w  # type: ignore[attr-defined]
        losses.append([float(((d @ h) * d).sum()) for d in (change, plain)])
        scales.append(grid.scale.float().cpu())  # type: ignore[attr-defined]
    # Up to how a device divides: FP8's scales are float32.
    assert float(scales[0].isclose(scales[1], rtol=1e-6, atol=0).float().mean()) > 0.999
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.02)
    assert losses[1][0] < 0.8 * losses[1][1]
