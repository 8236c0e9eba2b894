# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Many rows of activations: the weight written out once, for the vendor's matrix product to read."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.device_tiles import weight_block


@triton.jit
def expand(
    codes_ptr,
    scales_ptr,
    out_ptr,
    first_row,
    count,
    N,
    K,
    GROUP: tl.constexpr,
    FORMAT: tl.constexpr,
    EVEN_K: tl.constexpr,
    FAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Decode rows ``first_row`` to ``first_row + count`` into ``out`` [count, K]; grid (K/128, row tiles).

    For NVFP4 what is written lacks the factor that ``kernels.decode`` leaves to the sum. CHAINED starts while the
    kernel before it ends.
    """
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    local = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    block = tl.program_id(0)
    rows = tl.minimum(first_row + local, N - 1)
    if CHAINED:
        # The scratch memory may be what the kernel before still reads.
        tl.extra.cuda.gdc_wait()
    weight = weight_block(
        codes_ptr, scales_ptr, rows, block, N, K, GROUP, FORMAT, DTYPE, BLOCK_N, 1, EVEN_K, FAST
    )
    column = block * 128 + tl.arange(0, 128)
    at = out_ptr + local.to(tl.int64)[:, None] * K + column[None, :]
    # What is read next should still be in the L2 cache then.
    inside = (local < count)[:, None] & (column < K)[None, :]
    tl.store(at, weight, mask=inside, eviction_policy="evict_last")
