"""Run ``hopper_matmul``: what it needs of tensors and device, and its launch; needs Triton."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from kernels.arguments import decoding, partial_sums, rest, row_factors, weight_descriptors
from kernels.capability import capability
from kernels.config import Config
from kernels.tiles import BLOCK, TICKETS, TiledWeight
from kernels.wide import TILES as WIDE_TILES
from kernels.wide import launch_wide

# Rows of activations, rows of weight, warps, stages of a tile.
TILES = (
    (128, 128, 8, 4),
    (128, 128, 4, 4),
    (64, 128, 4, 4),
    (64, 128, 8, 4),
    (128, 64, 4, 4),
    (64, 64, 4, 4),
    (64, 64, 4, 3),
    (64, 64, 4, 6),
    (32, 128, 4, 6),
    (32, 128, 8, 6),
    (32, 64, 4, 4),
    (32, 64, 4, 6),
)

SMALL = 64 * 64
"""Outputs of a tile whose sum leaves its program half of the registers."""

SPLITS = (1, 2, 3, 4, 6, 8)
"""Parts into which K can be divided."""


def available(device: torch.device) -> bool:
    """Whether ``device`` has the matrix instruction that the kernel is written for."""
    return capability(device) == (9, 0)


def _aligned(x: Tensor) -> bool:
    """Whether the copy engine can address the rows of ``x``: all at multiples of 16 bytes."""
    return x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0


def fits(x: Tensor, out: Tensor) -> bool:
    """Whether the kernel can read ``x`` and write ``out`` where they are."""
    return available(x.device) and _aligned(x) and _aligned(out)


def candidates(m: int, rows: int, columns: int, processors: int, device: torch.device) -> Iterator[Config]:
    """Configurations worth timing for ``m`` rows of activations and a weight [``rows``, ``columns``]."""
    if not available(device):
        return
    steps = triton.cdiv(columns, BLOCK)
    for block_m, block_n, warps, stages in TILES:
        if block_m >= 2 * m or block_m < min(m, 64):
            continue
        tiles = triton.cdiv(m, block_m) * triton.cdiv(rows, block_n)
        for splits in SPLITS:
            # A multiprocessor runs one program; a part of K should have two steps at least.
            enough = 2 * tiles * splits >= processors
            if enough and (splits == 1 or (tiles * splits <= processors and steps >= 2 * splits)):
                yield Config("hopper", block_m, block_n, 1, warps, stages, splits)
    for block_m, block_n, warps, stages in WIDE_TILES:
        if m >= 512 and 2 * triton.cdiv(m, block_m) * triton.cdiv(rows, block_n) >= processors:
            yield Config("hopper", block_m, block_n, 1, warps, stages, 1)


def launch_hopper(x: Tensor, weight: TiledWeight, bias: Tensor | None, config: Config, out: Tensor) -> Tensor:
    """``out = x W^T + bias``; arguments as ``kernels.launch.launch``, ``x`` and ``out`` such that they ``fits``."""
    if config.wide:
        return launch_wide(x, weight, bias, config, False, out)
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from kernels.hopper_matmul import SHARED_X, hopper_matmul

    m, n, k = x.shape[0], weight.rows, weight.columns
    block_m, block_n = config.block_m, config.block_n
    tiles = triton.cdiv(m, block_m) * triton.cdiv(n, block_n)
    splits = 1
    if config.splits > 1 and tiles <= TICKETS:
        # As many parts as there are when each but the last takes a full share of the steps.
        steps = triton.cdiv(k, BLOCK)
        splits = triton.cdiv(steps, triton.cdiv(steps, config.splits))
    sums = tiles * splits * block_n * block_m if splits > 1 else 0
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    # One program on each multiprocessor, for all tiles in turn; two small ones were never faster. But a small one
    # takes half of the registers only, so that the next kernel's can be there before it ends.
    programs = min(tiles * splits, processors)
    small = config.warps == 4 and block_m * block_n <= SMALL
    hopper_matmul[(programs,)](
        TensorDescriptor(x, [m, k], [x.stride(0), 1], [block_m, BLOCK], SHARED_X.value),
        *weight_descriptors(weight, block_n),
        TensorDescriptor(out, [m, n], [out.stride(0), 1], [block_m, block_n], SHARED_X.value),
        row_factors(weight),
        x if bias is None else bias,
        partial_sums(weight, sums),
        weight.tickets,
        m,
        n,
        k,
        splits,
        **decoding(weight),
        REST=rest(weight, x.dtype),
        BIAS=bias is not None,
        SPLIT=splits > 1,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        STAGES=config.stages,
        num_warps=config.warps,
        launch_pdl=True,
        **({"maxnreg": 128} if small else {}),
    )
    return out
