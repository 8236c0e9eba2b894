"""Run ``early_matmul``: what it needs of tensors and device, what is worth trying, and its launch; needs Triton."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from kernels import hopper
from kernels.arguments import decoding, partial_sums, rest, row_factors
from kernels.config import Config
from kernels.decoder_triton import overlaps
from kernels.tiles import BLOCK, TICKETS, TiledWeight

ROWS = 64
"""Rows of weight of a tile: as many as the matrix instruction takes."""

LARGEST_SHARE = 6
"""Blocks of K of a program at most: their weights, decoded, are held in registers."""

LEAST_ROWS, MOST_ROWS = 9, 64
"""Rows of activations between which the kernel may be the fastest."""


def candidates(m: int, rows: int, columns: int, processors: int, device: torch.device) -> Iterator[Config]:
    """Configurations worth timing for ``m`` rows of activations and a weight [``rows``, ``columns``]."""
    if not hopper.available(device) or not LEAST_ROWS <= m <= MOST_ROWS:
        return
    blocks, tiles = triton.cdiv(columns, BLOCK), triton.cdiv(rows, ROWS)
    fit = max(16, triton.next_power_of_2(m))
    # Two small tiles of activations can be better than one: their sums are formed by twice as many programs.
    for block_m in (fit, fit // 2) if fit > 16 else (fit,):
        for splits in range(1, 9):
            share = triton.cdiv(blocks, splits)
            programs = triton.cdiv(m, block_m) * tiles * splits
            # All programs run at once, or the decoding of the others would not be early.
            if share <= LARGEST_SHARE and triton.cdiv(blocks, share) == splits and programs <= 2 * processors:
                yield Config("early", block_m, ROWS, share, 4, 1, splits)


def fits(x: Tensor, weight: TiledWeight, config: Config, out: Tensor) -> bool:
    """Whether the kernel can read ``x``, and has a ticket for every tile of ``out``."""
    tiles = triton.cdiv(x.shape[0], config.block_m) * triton.cdiv(weight.rows, ROWS)
    return hopper.fits(x, out) and tiles <= TICKETS


def launch_early(x: Tensor, weight: TiledWeight, bias: Tensor | None, config: Config, out: Tensor) -> Tensor:
    """``out = x W^T + bias``; arguments as ``kernels.launch.launch``, such that it ``fits``."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from kernels.early_matmul import SHARED_X, early_matmul

    m, n, k = x.shape[0], weight.rows, weight.columns
    across, tiles = triton.cdiv(m, config.block_m), triton.cdiv(n, ROWS)
    blocks = triton.cdiv(k, BLOCK)
    splits = triton.cdiv(blocks, config.blocks)
    sums = across * tiles * splits * ROWS * config.block_m if splits > 1 else 0
    early_matmul[(across, tiles, splits)](
        TensorDescriptor(x, [m, k], [x.stride(0), 1], [config.block_m, BLOCK], SHARED_X.value),
        weight.codes,
        weight.scales,
        row_factors(weight),
        x if bias is None else bias,
        out,
        partial_sums(weight, sums),
        weight.tickets,
        m,
        n,
        k,
        out.stride(0),
        **decoding(weight),
        REST=rest(weight, x.dtype),
        BIAS=bias is not None,
        SPLITS=splits,
        BLOCK_M=config.block_m,
        BLOCK_N=ROWS,
        BLOCKS=config.blocks,
        OVERLAP=overlaps(x.device),
        num_warps=4,
        launch_pdl=True,
    )
    return out
