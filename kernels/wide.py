"""Launches ``wide_matmul``: the largest tiles, for a thousand rows of activations and more on a Hopper GPU."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from kernels.arguments import decoding, rest, row_factors, weight_descriptors
from kernels.config import Config
from kernels.tiles import BLOCK, TiledWeight

# Rows of activations, rows of weight, warps, slots for half a step's activations. What 256 rows divide badly is what
# the others are for: 2304 rows of a picture of 768 x 768 and 2048 rows of weight are 128 tiles of 288 x 128, which the
# 132 multiprocessors of an H100 take at once; of 256 x 128 they are 144, and the second turn has little to do.
TILES = ((288, 128, 8, 5), (256, 128, 8, 5), (192, 128, 8, 6))

SHARED = 227 * 1024 - 1024
"""Bytes of shared memory of a program, but for barriers and alignment."""

PIECE = 32
"""Rows of activations whose results leave at once, if a tile's rows are a power of two."""


def powers(block_m: int) -> tuple[int, int]:
    """``block_m`` rows of activations as two powers of two, of which Triton makes its tensors; the second may be 0."""
    most = 1 << block_m.bit_length() - 1
    return most, block_m - most


def launch_wide(
    x: Tensor, weight: TiledWeight, bias: Tensor | None, config: Config, gated: bool, out: Tensor
) -> Tensor:
    """``out = x W^T + bias``, or its halves gated; arguments as ``kernels.launch.launch``, ``x`` and ``out`` such that
    they ``fits``.
    """
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from kernels.hopper_matmul import SHARED_X
    from kernels.wide_matmul import wide_matmul

    m, n, k = x.shape[0], weight.rows, weight.columns
    block_m, block_n = config.block_m, config.block_n
    most, more = powers(block_m)
    piece = more or PIECE
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    width, columns = n // (1 + gated), block_n // (1 + gated)
    tiles = triton.cdiv(m, block_m) * triton.cdiv(width, columns)
    words = BLOCK // (64 if weight.factors is not None else weight.group)
    stages = config.stages
    # The more words of scales a step has, the fewer steps there is room for.
    room = SHARED - 4 * piece * columns
    while BLOCK * block_m * stages + block_n * (64 + 4 * words) * -(-stages // 2) > room:
        stages -= 1
    wide_matmul[(min(tiles, processors),)](
        TensorDescriptor(x, [m, k], [x.stride(0), 1], [most, BLOCK // 2], SHARED_X.value),
        TensorDescriptor(x, [m, k], [x.stride(0), 1], [more or most, BLOCK // 2], SHARED_X.value),
        *weight_descriptors(weight, columns),
        TensorDescriptor(out, [m, width], [out.stride(0), 1], [piece, columns], SHARED_X.value),
        row_factors(weight),
        x if bias is None else bias,
        m,
        n,
        k,
        **decoding(weight),
        REST=rest(weight, x.dtype),
        BIAS=bias is not None,
        BLOCK_M=most,
        MORE=more,
        BLOCK_N=block_n,
        STAGES=-(-stages // 2),
        X_STAGES=stages,
        SWIGLU=gated,
        num_warps=config.warps,
        launch_pdl=True,
    )
    return out
