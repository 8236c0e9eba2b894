"""Run a quantized linear in one given configuration; needs Triton, and a CUDA device or Triton's interpreter."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from kernels.config import Config
from kernels.decode import INT4, NVFP4, NVFP4_REST
from kernels.expand import expand, swiglu
from kernels.gemv import gemv
from kernels.matmul import matmul
from kernels.tiles import BLOCK, TICKETS, TiledWeight


def _rest(weight: TiledWeight, dtype: torch.dtype) -> float:
    """The power of two that ``kernels.decode`` leaves to the sum."""
    return 1.0 if weight.factors is None else NVFP4_REST[str(dtype).removeprefix("torch.")]


def _constants(weight: TiledWeight, x: Tensor) -> dict[str, Any]:
    return {
        "GROUP": weight.group,
        "FORMAT": INT4 if weight.factors is None else NVFP4,
        "EVEN_K": weight.columns % BLOCK == 0,
        "FAST": x.is_cuda,
    }


def launch(
    x: Tensor, weight: TiledWeight, bias: Tensor | None, config: Config, gated: bool = False
) -> Tensor:
    """``x W^T + bias``, or its halves as ``silu(gate) * up``, in one configuration.

    Args:
        x: bfloat16 or float16 [M, K], columns contiguous.
        weight: the weight [N, K]; for ``gated`` the rows of gate, then those of up.
        bias: [N] in ``x``'s dtype, or None.
        config: which kernel; ``gemv`` needs M = 1.
        gated: apply SwiGLU.

    Returns:
        [M, N], or [M, N/2] if gated, in ``x``'s dtype.
    """
    if config.kernel == "expand":
        out = _through_scratch(x, weight, bias, config)
        return gate(out) if gated else out
    m, n = x.shape[0], weight.rows
    width = n // 2 if gated else n
    tiles = triton.cdiv(n, config.block_n) if not gated else triton.cdiv(width, config.block_n // 2)
    programs = tiles * triton.cdiv(m, config.block_m)
    splits = config.splits if programs <= TICKETS else 1
    out = torch.empty(m, width, dtype=x.dtype, device=x.device)
    size = programs * splits * config.block_n * config.block_m if splits > 1 else 0
    partial = torch.empty(size, dtype=torch.float32, device=x.device) if size else weight.tickets
    # An argument that the configuration leaves unread still needs a pointer.
    tensors = (
        x,
        weight.codes,
        weight.scales,
        weight.scales if weight.factors is None else weight.factors,
        x if bias is None else bias,
        out,
        partial,
        weight.tickets,
    )
    constants = _constants(weight, x) | {
        "REST": _rest(weight, x.dtype),
        "BIAS": bias is not None,
        "SWIGLU": gated,
        "SPLIT": splits > 1,
        "BLOCK_N": config.block_n,
        "STAGES": config.stages,
        "num_warps": config.warps,
    }
    if config.kernel == "gemv":
        gemv[(programs, splits)](*tensors, n, weight.columns, splits, **constants)
    else:
        matmul[(programs, splits)](
            *tensors, m, n, weight.columns, splits, x.stride(0), **constants, BLOCK_M=config.block_m
        )
    return out


def decode_rows(weight: TiledWeight, first: int, count: int, like: Tensor) -> Tensor:
    """Rows ``first`` .. ``first + count`` in ``like``'s dtype; NVFP4 without what is left to the sum."""
    out = torch.empty(count, weight.columns, dtype=like.dtype, device=like.device)
    rows = 64 if like.is_cuda else 16
    grid = (triton.cdiv(count, rows), triton.cdiv(weight.columns, BLOCK))
    expand[grid](
        weight.codes, weight.scales, out, first, count, weight.rows, weight.columns,
        **_constants(weight, like), BLOCK_N=rows, num_warps=4,
    )  # fmt: skip
    return out


def _through_scratch(x: Tensor, weight: TiledWeight, bias: Tensor | None, config: Config) -> Tensor:
    """Decode ``chunk`` rows at a time and let torch multiply."""
    parts = weight.parts or ((weight.rows, 1.0),)
    chunk = config.chunk or weight.rows
    rest = _rest(weight, x.dtype)
    if chunk >= weight.rows and len(parts) == 1:
        dense = decode_rows(weight, 0, weight.rows, x)
        if rest == 1.0:
            return torch.nn.functional.linear(x, dense, bias)
        if bias is not None:
            return torch.addmm(bias, x, dense.t(), alpha=rest * parts[0][1])
        return torch.addmm(x.new_empty(1), x, dense.t(), beta=0, alpha=rest * parts[0][1])
    out = torch.empty(x.shape[0], weight.rows, dtype=x.dtype, device=x.device)
    first = 0
    for rows, factor in parts:
        for start in range(first, first + rows, chunk):
            count = min(chunk, first + rows - start)
            dense = decode_rows(weight, start, count, x)
            into = out[:, start : start + count]
            addend = x.new_empty(1) if bias is None else bias[start : start + count]
            beta = 0 if bias is None else 1
            torch.addmm(addend, x, dense.t(), beta=beta, alpha=rest * factor, out=into)
        first += rows
    return out


def gate(x: Tensor) -> Tensor:
    """``silu(x[:, :N/2]) * x[:, N/2:]`` of [M, N], rounded once."""
    m, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(m, width, dtype=x.dtype, device=x.device)
    swiglu[(m, triton.cdiv(width, 1024))](x, out, width, BLOCK=1024, num_warps=4)
    return out
