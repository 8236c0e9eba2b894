# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Rounding rows of activations to E4M3 in one launch, the largest magnitude of a row found on the way."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _quantize_rows(x_ptr, codes_ptr, scale_ptr, K, x_stride, BLOCK: tl.constexpr):
    """One row a program; BLOCK is at least K."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < K
    x = tl.load(x_ptr + row.to(tl.int64) * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-20) / 448.0
    tl.store(scale_ptr + row, scale)
    # The division can round to a hair above 448, which E4M3 does not hold.
    codes = tl.minimum(tl.maximum(x / scale, -448.0), 448.0).to(tl.float8e4nv)
    tl.store(codes_ptr + row.to(tl.int64) * K + columns, codes, mask=inside)


def launch_quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """``kernels.fp8.quantize_rows`` for ``x`` [M, K] with contiguous columns."""
    x = x if x.stride(1) == 1 else x.contiguous()
    m, k = x.shape
    codes = torch.empty(m, k, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(m, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(k)
    _quantize_rows[(m,)](
        x, codes, scale, k, x.stride(0), BLOCK=block, num_warps=max(1, min(8, block // 1024))
    )
    return codes, scale
