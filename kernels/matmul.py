# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
# ruff: noqa: SIM108
"""Rows of activations on the matrix units, the weights decoded in registers on their way there.

The product is formed transposed, out^T = W x^T: the decoded weight is then the operand that Hopper's matrix
instruction takes from registers, its 64 rows are always filled, and few rows of x waste little. One row runs
here too: the matrix units take eight rows in the time that plain units take to convert one.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.device_tiles import ask_for, finish, row_constants, tile_rows, weight_block


@triton.jit(do_not_specialize=["M", "N_SPLITS", "SHARE", "AHEAD"])
def matmul(
    x_ptr,
    codes_ptr,
    scales_ptr,
    factor_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,
    ticket_ptr,
    M,
    N,
    K,
    N_SPLITS,
    SHARE,
    AHEAD,
    x_stride,
    out_stride,
    GROUP: tl.constexpr,
    FORMAT: tl.constexpr,
    REST: tl.constexpr,
    BIAS: tl.constexpr,
    SWIGLU: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN_K: tl.constexpr,
    FAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
    LATE: tl.constexpr,
    THREADS: tl.constexpr,
):
    """out[M, N] = x W^T; grid (tiles of M, tiles of N, N_SPLITS).

    ``x_ptr`` [M, K] with rows ``x_stride`` apart, ``out_ptr`` likewise; ``codes_ptr``, ``scales_ptr`` and
    ``factor_ptr`` as in ``TiledWeight``; REST is multiplied into each row's factor (1: there are no factors);
    SWIGLU writes silu(gate) * up [M, N/2]; SPLIT adds N_SPLITS parts of SHARE steps of K; EVEN_K promises that
    128 * BLOCKS divides K. With BLOCKS > 1 a step takes that many blocks of K, spread over the program's warps,
    whose sums meet at the end: more bytes in flight where there are few rows to divide.

    OVERLAP (sm_90): launched as a programmatic dependent launch, a program starts while the kernel before it still
    runs, and asks for its first AHEAD blocks of weights. What that kernel wrote, and may still be reading, is
    touched only after the wait; and since every program waits, kernels further back have ended too. LATE: the kernel
    behind may start once the weights have been read, not before.
    """
    # Tiles that share weights run side by side, so that these come from device memory once.
    tile = tl.program_id(1)
    split = tl.program_id(2)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    columns = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = tile_rows(tile, N, BLOCK_N, SWIGLU)
    if SPLIT:
        # Whoever comes last has nothing else to do while it would wait for them.
        factor, bias = row_constants(rows, factor_ptr, bias_ptr, REST, BIAS)
    # Few rows: what is missing is not read. Many: the last row is read again, which costs no predicates.
    MASK: tl.constexpr = BLOCK_M <= 32
    x_rows = (columns if MASK else tl.minimum(columns, M - 1)).to(tl.int64) * x_stride
    inside = columns < M
    steps = tl.cdiv(K, 128 * BLOCKS)
    if SPLIT:
        first = split * SHARE
        last = tl.minimum(first + SHARE, steps)
    else:
        first = 0
        last = steps
    if OVERLAP:
        ask_for(
            codes_ptr, scales_ptr, tile, first * BLOCKS, tl.minimum(last * BLOCKS, first * BLOCKS + AHEAD), N, K,
            GROUP, FORMAT, BLOCK_N, SWIGLU, THREADS,
        )  # fmt: skip
        gdc_wait()
        # Not before: where many kernels wait at once, their programs fill the multiprocessors unevenly.
        if not LATE:
            gdc_launch_dependents()
    if BLOCKS == 1:
        total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    else:
        total = tl.zeros([BLOCKS, BLOCK_N, BLOCK_M], tl.float32)
    for step in tl.range(first, last, num_stages=STAGES):
        if BLOCKS == 1:
            block = step
            column = tl.expand_dims(step * 128 + tl.arange(0, 128), -1)
            weight = weight_block(
                codes_ptr, scales_ptr, rows, block, N, K,
                GROUP, FORMAT, DTYPE, BLOCK_N, BLOCKS, EVEN_K, FAST,
            )  # fmt: skip
        else:
            block = (step * BLOCKS + tl.arange(0, BLOCKS))[:, None]
            column = tl.expand_dims(block * 128 + tl.arange(0, 128)[None, :], -1)
            # Behind the last block it is read again; the activations there are zeros.
            weight = weight_block(
                codes_ptr, scales_ptr, rows[None, :], tl.minimum(block, tl.cdiv(K, 128) - 1), N, K,
                GROUP, FORMAT, DTYPE, BLOCK_N, BLOCKS, EVEN_K, FAST,
            )  # fmt: skip
        at = x_ptr + x_rows + column
        if EVEN_K:
            if MASK:
                x = tl.load(at, mask=inside, other=0.0)
            else:
                x = tl.load(at)
        else:
            x = tl.load(at, mask=inside & (column < K), other=0.0)
        total = tl.dot(weight, x, total)
    if OVERLAP and LATE:
        gdc_launch_dependents()
    if BLOCKS > 1:
        total = tl.sum(total, 0)
    if not SPLIT:
        # Behind the loop: a register less in it counts for more than the wait, which other programs fill.
        factor, bias = row_constants(rows, factor_ptr, bias_ptr, REST, BIAS)
    slot = tile * tl.num_programs(0) + tl.program_id(0)
    finish(
        total, tile, slot, split, N_SPLITS, columns,
        factor, bias, out_ptr, partial_ptr, ticket_ptr, out_stride, M, N,
        REST, BIAS, SWIGLU, SPLIT, BLOCK_N, BLOCK_M, THREADS,
    )  # fmt: skip
