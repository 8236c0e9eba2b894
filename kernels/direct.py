"""Run ``direct_matmul``: what it needs of a device, what is worth trying, and its launch; needs Triton."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from kernels.arguments import RowNorm, decoding, partial_sums, rest, row_factors
from kernels.capability import capability
from kernels.config import Config
from kernels.decoder_triton import overlaps
from kernels.tiles import BLOCK, TICKETS, TiledWeight

# Rows of weight, blocks a step, warps, steps held at once, most registers of a thread (0: as the compiler likes). With
# 168 a multiprocessor has room for three programs of four warps, with one more for two.
TILES = (
    (16, 16, 4, 1, 0),
    (16, 16, 4, 1, 128),
    (16, 16, 4, 1, 168),
    (16, 8, 4, 3, 128),
    (16, 8, 2, 2, 0),
    (16, 8, 4, 1, 0),
    (16, 8, 2, 1, 0),
    (16, 4, 1, 1, 0),
    (32, 8, 4, 1, 0),
    (32, 4, 2, 1, 0),
)

MOST_ROWS = 16
"""Rows of activations up to which the kernel may be the fastest."""


def available(device: torch.device) -> bool:
    """Whether ``device`` has the instructions that the kernel is made of: an NVIDIA GPU, sm_80 or newer."""
    return capability(device) >= (8, 0)


def candidates(m: int, rows: int, columns: int, processors: int, device: torch.device) -> Iterator[Config]:
    """Configurations worth timing for ``m`` rows of activations and a weight [``rows``, ``columns``]."""
    if not available(device) or m > MOST_ROWS:
        return
    blocks = triton.cdiv(columns, BLOCK)
    for block_n, step, warps, stages, registers in TILES:
        tiles = triton.cdiv(rows, block_n)
        for splits in (1, 2, 3, 4):
            share = triton.cdiv(blocks, splits)
            # Parts of K only where there are multiprocessors for them, and of steps that are mostly full.
            if splits > 1 and (tiles * splits > 4 * processors or share < 16):
                continue
            if triton.cdiv(share, step) * step <= 1.25 * share:
                yield Config(
                    "direct", max(8, triton.next_power_of_2(m)), block_n, step, warps, stages, splits,
                    registers=registers,
                )  # fmt: skip


@dataclass(frozen=True)
class Division:
    """How a product is divided among programs, and each one's part of K into steps."""

    grid: tuple[int, int, int]
    """Tiles of activations, tiles of weight, parts of K."""
    share: int
    """Blocks of K of a part."""
    constants: dict[str, int | bool]
    """What ``direct_matmul`` is compiled for."""


def division(weight: TiledWeight, config: Config, gated: bool, m: int) -> Division:
    """How ``config`` divides ``weight`` and ``m`` rows of activations."""
    tiles = triton.cdiv(weight.rows // 2 if gated else weight.rows, config.block_n // (1 + gated))
    across = triton.cdiv(m, config.block_m)
    blocks = triton.cdiv(weight.columns, BLOCK)
    share = triton.cdiv(blocks, config.splits) if tiles * across <= TICKETS else blocks
    splits = triton.cdiv(blocks, share)
    steps = triton.cdiv(share, config.blocks)
    constants = {
        "SPLIT": splits > 1,
        "EVEN": weight.columns % (BLOCK * share) == 0 and share % config.blocks == 0,
        "STEPS": steps,
        "WHOLE": (weight.columns // BLOCK - (splits - 1) * share) // config.blocks,
        "LOOP": steps > config.stages,
    }
    return Division((across, tiles, splits), share, constants)


def launch_direct(
    x: Tensor,
    weight: TiledWeight,
    bias: Tensor | None,
    config: Config,
    gated: bool,
    out: Tensor,
    norm: RowNorm | None = None,
    add: bool = False,
) -> Tensor:
    """``out = x W^T + bias``, or its halves gated; arguments as ``kernels.launch.launch``.

    With ``norm``, for one row and a ``config`` with one part of K, of the normed row; with ``add`` on top of what is in
    ``out``.
    """
    from kernels.direct_matmul import direct_matmul

    m, n, k = x.shape[0], weight.rows, weight.columns
    divided = division(weight, config, gated, m)
    sums = math.prod(divided.grid) * config.block_n * config.block_m if divided.constants["SPLIT"] else 0
    early = overlaps(x.device)
    direct_matmul[divided.grid](
        x,
        x if norm is None else norm.weight,
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
        divided.grid[2],
        divided.share,
        x.stride(0),
        out.stride(0),
        0.0 if norm is None else norm.eps,
        **decoding(weight),
        REST=rest(weight, x.dtype),
        BIAS=bias is not None,
        SWIGLU=gated,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCKS=config.blocks,
        ONE=m == 1,
        NORM=norm is not None,
        ADD=add,
        OVERLAP=early,
        **divided.constants,
        num_warps=config.warps,
        **({"launch_pdl": True} if early else {}),
        **({"maxnreg": config.registers} if config.registers else {}),
    )
    return out
