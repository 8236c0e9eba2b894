# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
# ruff: noqa: SIM108
"""One row of activations: products and sums in float32 on the plain units, no matrix unit, no shared memory."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.device_tiles import decode_block, finish, tile_rows


@triton.jit
def _times(weight, x_ptr, column, K, EVEN_K: tl.constexpr):
    """Float32 products of ``weight`` [rows, 16] with the activations of its columns."""
    if EVEN_K:
        x = tl.load(x_ptr + column)
    else:
        x = tl.load(x_ptr + column, mask=column < K, other=0.0)
    return weight.to(tl.float32) * x.to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["N_SPLITS"])
def gemv(
    x_ptr,
    codes_ptr,
    scales_ptr,
    factor_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,
    ticket_ptr,
    N,
    K,
    N_SPLITS,
    GROUP: tl.constexpr,
    FORMAT: tl.constexpr,
    REST: tl.constexpr,
    BIAS: tl.constexpr,
    SWIGLU: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN_K: tl.constexpr,
    FAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out[N] = W x; grid (tiles of BLOCK_N rows, N_SPLITS). Arguments as ``kernels.matmul.matmul``."""
    tile = tl.program_id(0)
    split = tl.program_id(1)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    rows = tile_rows(tile, N, BLOCK_N, SWIGLU)
    blocks = tl.cdiv(K, 128)
    steps = tl.cdiv(blocks, N_SPLITS)
    total = tl.zeros([BLOCK_N, 16], tl.float32)
    for block in tl.range(split * steps, tl.minimum((split + 1) * steps, blocks), num_stages=STAGES):
        n0, n1, n2, n3, n4, n5, n6, n7 = decode_block(
            codes_ptr, scales_ptr, rows, block, N, K, GROUP, FORMAT, DTYPE, EVEN_K, FAST
        )
        column = block * 128 + tl.arange(0, 16)
        total += _times(n0, x_ptr, column, K, EVEN_K)
        total += _times(n1, x_ptr, column + 16, K, EVEN_K)
        total += _times(n2, x_ptr, column + 32, K, EVEN_K)
        total += _times(n3, x_ptr, column + 48, K, EVEN_K)
        total += _times(n4, x_ptr, column + 64, K, EVEN_K)
        total += _times(n5, x_ptr, column + 80, K, EVEN_K)
        total += _times(n6, x_ptr, column + 96, K, EVEN_K)
        total += _times(n7, x_ptr, column + 112, K, EVEN_K)
    finish(
        tl.sum(total, 1)[:, None], tile, tile, split, N_SPLITS, tl.arange(0, 1),
        factor_ptr, bias_ptr, out_ptr, partial_ptr, ticket_ptr, N, 1, N,
        REST, BIAS, SWIGLU, SPLIT, BLOCK_N, 1,
    )  # fmt: skip
