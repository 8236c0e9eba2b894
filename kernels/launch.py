"""Run a quantized linear in one given configuration; needs Triton, and a CUDA device or Triton's interpreter."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from kernels.arguments import decoding, partial_sums, rest, row_factors
from kernels.config import Config
from kernels.decoder_ops import swiglu
from kernels.decoder_triton import chain, overlaps
from kernels.direct import launch_direct
from kernels.early import fits as fits_early
from kernels.early import launch_early
from kernels.expand import expand
from kernels.hopper import fits, launch_hopper
from kernels.matmul import matmul
from kernels.tiles import BLOCK, TICKETS, TiledWeight
from kernels.wide import launch_wide

LONG = 1 << 25
"""Weights from which on reading them takes so long that a kernel behind, started meanwhile, is only in the way: its
own weights come at the cost of these.
"""


def _constants(weight: TiledWeight, x: Tensor, blocks: int = 1) -> dict[str, Any]:
    return {
        **decoding(weight),
        "EVEN_K": weight.columns % (BLOCK * blocks) == 0,
        "FAST": x.is_cuda,
    }


def launch(
    x: Tensor,
    weight: TiledWeight,
    bias: Tensor | None,
    config: Config,
    gated: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """``x W^T + bias``, or its halves as ``silu(gate) * up``, in one configuration.

    Args:
        x: bfloat16 or float16 [M, K], columns contiguous.
        weight: the weight [N, K]; for ``gated`` the rows of gate, then those of up.
        bias: [N] in ``x``'s dtype, or None.
        config: which kernel.
        gated: apply SwiGLU.
        out: where to write, columns contiguous; None allocates.

    Returns:
        [M, N], or [M, N/2] if gated, in ``x``'s dtype: ``out`` if it was given.
    """
    m, n = x.shape[0], weight.rows
    width = n // 2 if gated else n
    if out is None:
        out = torch.empty(m, width, dtype=x.dtype, device=x.device)
    if config.kernel == "direct":
        return launch_direct(x, weight, bias, config, gated, out)
    if config.wide and gated and fits(x, out):
        return launch_wide(x, weight, bias, config, True, out)
    if config.kernel != "matmul":
        if gated:
            both = torch.empty(m, n, dtype=x.dtype, device=x.device)
            return swiglu(launch(x, weight, bias, config, out=both), out)
        if config.kernel == "early" and fits_early(x, weight, config, out):
            return launch_early(x, weight, bias, config, out)
        if config.kernel == "hopper" and fits(x, out):
            return launch_hopper(x, weight, bias, config, out)
        return _through_scratch(x, weight, bias, config, out)
    tiles = triton.cdiv(width, config.block_n // 2) if gated else triton.cdiv(n, config.block_n)
    across = triton.cdiv(m, config.block_m)
    programs = tiles * across
    splits = config.splits if programs <= TICKETS else 1
    size = programs * splits * config.block_n * config.block_m if splits > 1 else 0
    tensors = (
        x,
        weight.codes,
        weight.scales,
        row_factors(weight),
        x if bias is None else bias,
        out,
        partial_sums(weight, size),
        weight.tickets,
    )
    early = config.ahead is not None and overlaps(x.device)
    constants = _constants(weight, x, config.blocks) | {
        "REST": rest(weight, x.dtype),
        "BIAS": bias is not None,
        "SWIGLU": gated,
        "SPLIT": splits > 1,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCKS": config.blocks,
        "STAGES": config.stages,
        "OVERLAP": early,
        "LATE": weight.rows * weight.columns >= LONG,
        "THREADS": 32 * config.warps,
        "num_warps": config.warps,
    }
    if early:
        constants["launch_pdl"] = True
    share = triton.cdiv(triton.cdiv(weight.columns, BLOCK * config.blocks), splits)
    matmul[(across, tiles, splits)](
        *tensors,
        m,
        n,
        weight.columns,
        splits,
        share,
        config.ahead or 0,
        x.stride(0),
        out.stride(0),
        **constants,
    )
    return out


def decode_rows(weight: TiledWeight, first: int, count: int, like: Tensor) -> Tensor:
    """Rows ``first`` .. ``first + count`` in ``like``'s dtype; NVFP4 without what is left to the sum."""
    out = torch.empty(count, weight.columns, dtype=like.dtype, device=like.device)
    rows = 32 if like.is_cuda else 16
    grid = (triton.cdiv(weight.columns, BLOCK), triton.cdiv(count, rows))
    expand[grid](
        weight.codes, weight.scales, out, first, count, weight.rows, weight.columns,
        **_constants(weight, like), **chain(like), BLOCK_N=rows, num_warps=4,
    )  # fmt: skip
    return out


def _through_scratch(
    x: Tensor, weight: TiledWeight, bias: Tensor | None, config: Config, out: Tensor
) -> Tensor:
    """Decode ``chunk`` rows at a time and let torch multiply."""
    chunk = config.chunk or weight.rows
    left = rest(weight, x.dtype)
    # Without a bias the addend is not read (beta is 0), but there has to be one.
    addend = x.new_empty(weight.rows) if bias is None else bias
    beta = 0 if bias is None else 1
    first = 0
    for rows, factor in weight.parts or ((weight.rows, 1.0),):
        for start in range(first, first + rows, chunk):
            stop = min(start + chunk, first + rows)
            dense = decode_rows(weight, start, stop - start, x).t()
            torch.addmm(addend[start:stop], x, dense, beta=beta, alpha=left * factor, out=out[:, start:stop])
        first += rows
    return out
