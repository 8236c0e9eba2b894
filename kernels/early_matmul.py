# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disable-error-code="assignment,misc,var-annotated"
"""Some rows of activations and a small weight on a Hopper GPU, in Triton's Gluon dialect.

A weight that fits into the registers of all multiprocessors together can be read and decoded before the kernel
before has ended. When the activations are known, all that is left is to copy them and to multiply. As in
``hopper_matmul`` the product is formed transposed, the decoded weight being the operand in registers.
"""

from __future__ import annotations

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernels.decode import INT4, decode
from kernels.gluon_names import barrier, copy

SHARED_X = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
"""Of activations [rows, 128]."""


@gluon.jit
def _decoded(
    codes_ptr, scales_ptr, block, row, N, K, GROUP: gl.constexpr, FORMAT: gl.constexpr, DTYPE: gl.constexpr,
    A: gl.constexpr,
):  # fmt: skip
    """The weights of a block's eight nibbles, [rows, 16] each, in rows ``row``."""
    PER_WORD: gl.constexpr = GROUP if FORMAT == INT4 else 64
    COUNT: gl.constexpr = 128 // PER_WORD
    block = gl.minimum(block, gl.cdiv(K, 128) - 1)
    inner = gl.arange(0, 16, gl.SliceLayout(0, A))
    words = gl.load(codes_ptr + block * (N * 16) + (row[:, None] * 16 + inner[None, :]))
    scales = ()
    for i in gl.static_range(COUNT):
        # The last block may be cut: its last words of scales may not exist.
        index = gl.minimum(block * COUNT + i, gl.cdiv(K, PER_WORD) - 1)
        scales += (gl.load(scales_ptr + index * N + row)[:, None],)
    s0, s2, s4, s6 = scales[0], scales[COUNT // 4], scales[COUNT // 2], scales[3 * COUNT // 4]
    return decode(words, s0, s0, s2, s2, s4, s4, s6, s6, FORMAT, DTYPE, True)


@gluon.jit(do_not_specialize=["M"])
def early_matmul(
    x_desc, codes_ptr, scales_ptr, factor_ptr, bias_ptr, out_ptr, partial_ptr, ticket_ptr, M, N, K, out_stride,
    GROUP: gl.constexpr, FORMAT: gl.constexpr, REST: gl.constexpr, BIAS: gl.constexpr, SPLITS: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCKS: gl.constexpr, OVERLAP: gl.constexpr,
):  # fmt: skip
    """out[M, N] = x W^T; grid (tiles of M, tiles of N, SPLITS), a program taking BLOCKS blocks of K.

    ``x_desc`` describes [M, K]; the other arguments as in ``matmul``, but ``partial_ptr`` is float32 [tiles of N, tiles
    of M, SPLITS, BLOCK_M, BLOCK_N].
    """
    DTYPE: gl.constexpr = x_desc.dtype
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_M, 16])
    A: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    # A thread stores eight neighbours; a warp as much of a row of the result as fills sectors.
    OUT: gl.constexpr = gl.BlockedLayout([8, 1], [4, 8], [2, gl.num_warps() // 2], [0, 1])
    tile = gl.program_id(1)
    split = gl.program_id(2)
    top = gl.program_id(0) * BLOCK_M
    # Rows behind the last repeat it: computed and not stored.
    row = gl.minimum(tile * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(1, A)), N - 1)
    weights = ()
    for i in gl.static_range(BLOCKS):
        weights += _decoded(codes_ptr, scales_ptr, split * BLOCKS + i, row, N, K, GROUP, FORMAT, DTYPE, A)
    n = tile * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(1, OUT))
    known = gl.minimum(n, N - 1)
    factor = REST
    if REST != 1.0:
        factor = gl.load(factor_ptr + known)[:, None] * REST
    bias = 0.0
    if BIAS:
        bias = gl.load(bias_ptr + known).to(gl.float32)[:, None]
    # Each piece apart, or the compiler has the warps meet between two copies.
    x_s = ()
    ready = ()
    for i in gl.static_range(BLOCKS):
        x_s += (gl.allocate_shared_memory(DTYPE, [BLOCK_M, 128], SHARED_X),)
        ready += (gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout()),)
        mbarrier.init(ready[i], count=1)
    fence_async_shared()
    for i in gl.static_range(BLOCKS):
        mbarrier.expect(ready[i], BLOCK_M * 256)
    if OVERLAP:
        # Always so. But the assembler does not know, and leaves before the branch what it would move behind the wait:
        # with Triton 3.6 all decoding of NVFP4.
        if N > 0:
            tl.extra.cuda.gdc_wait()
        # Not before: where many kernels wait at once, their programs fill the multiprocessors unevenly.
        tl.extra.cuda.gdc_launch_dependents()
    for i in gl.static_range(BLOCKS):
        # Columns behind the last are zeros, whatever they are multiplied by.
        copy(x_desc, [top, (split * BLOCKS + i) * 128], ready[i], x_s[i])
    total = gl.zeros([BLOCK_N, BLOCK_M], gl.float32, MMA)
    for i in gl.static_range(BLOCKS):
        mbarrier.wait(ready[i], 0)
        x = x_s[i].permute((1, 0))
        for j in gl.static_range(8):
            total = warpgroup_mma(
                weights[8 * i + j], x.slice(16 * j, 16), total, use_acc=i + j > 0, is_async=True
            )
    total = warpgroup_mma_wait(0, deps=(total,))
    m = gl.arange(0, BLOCK_M, gl.SliceLayout(0, OUT))
    last = True
    if SPLITS > 1:
        slot = tile * gl.num_programs(0) + gl.program_id(0)
        SIZE: gl.constexpr = BLOCK_N * BLOCK_M
        base = partial_ptr + gl.cast(slot * SPLITS, gl.int64) * SIZE
        at = gl.arange(0, BLOCK_N, gl.SliceLayout(1, MMA))[:, None]
        at += gl.arange(0, BLOCK_M, gl.SliceLayout(0, MMA))[None, :] * BLOCK_N
        gl.store(base + split * SIZE + at, total)
        # Every thread's part must be on its way before the one thread that draws the ticket releases it.
        barrier()
        last = gl.atomic_add(ticket_ptr + slot, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
        result = gl.zeros([BLOCK_N, BLOCK_M], gl.float32, OUT)
        if last:
            # All parts in their order, whichever came last: the same sum every time. .cg: from the L2 cache, where
            # the other programs' parts are; not from a stale L1.
            part = base + gl.arange(0, BLOCK_N, gl.SliceLayout(1, OUT))[:, None] + m[None, :] * BLOCK_N
            for i in gl.static_range(SPLITS):
                result += gl.load(part + i * SIZE, cache_modifier=".cg")
            gl.store(ticket_ptr + slot, 0)
    else:
        result = gl.convert_layout(total, OUT)
    if last:
        if REST != 1.0:
            result = result * factor
        if BIAS:
            result += bias
        column = top + m
        place = out_ptr + column.to(gl.int64)[None, :] * out_stride + n[:, None]
        gl.store(place, result.to(DTYPE), mask=(n < N)[:, None] & (column < M)[None, :])
