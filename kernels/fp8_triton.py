# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Rounding rows of activations to E4M3 in one launch, the largest magnitude of a row found on the way; importing this
module needs triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _quantize_rows(x_ptr, codes_ptr, scale_ptr, K, x_stride, BLOCK: tl.constexpr, SWIGLU: tl.constexpr):
    """One row a program; BLOCK is at least K. SWIGLU: a row is K columns of gate and then K of up."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < K
    place = x_ptr + row.to(tl.int64) * x_stride + columns
    x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    if SWIGLU:
        # Rounded where ``decoder_triton`` rounds it.
        kind = x_ptr.dtype.element_ty
        up = tl.load(place + K, mask=inside, other=0.0).to(tl.float32)
        x = ((x * tl.sigmoid(x)).to(kind).to(tl.float32) * up).to(kind).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-20) / 448.0
    tl.store(scale_ptr + row, scale)
    # The division can round to a hair above 448, which E4M3 does not hold.
    codes = tl.minimum(tl.maximum(x / scale, -448.0), 448.0).to(tl.float8e4nv)
    tl.store(codes_ptr + row.to(tl.int64) * K + columns, codes, mask=inside)


def launch_quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """``kernels.fp8.quantize_rows``."""
    return _launch(x, x.shape[1], swiglu=False)


def launch_quantize_swiglu(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """``kernels.fp8.quantize_swiglu``."""
    return _launch(gate_up, gate_up.shape[1] // 2, swiglu=True)


def _launch(x: Tensor, k: int, *, swiglu: bool) -> tuple[Tensor, Tensor]:
    x = x if x.stride(1) == 1 else x.contiguous()
    m = len(x)
    codes = torch.empty(m, k, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(m, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(k)
    _quantize_rows[(m,)](
        x, codes, scale, k, x.stride(0), BLOCK=block, SWIGLU=swiglu, num_warps=max(1, min(8, block // 1024))
    )
    return codes, scale
