# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disable-error-code="assignment,misc,var-annotated"
# ruff: noqa: SIM108
"""Few rows of activations, in Triton's Gluon dialect: weights go from memory into the registers that multiply.

Where a weight is read for a handful of rows, most of the time goes to what is around the reading: copies through
shared memory, their addresses, barriers, and waiting for the kernel before. Here every lane reads the words whose
nibbles are its part of the matrix instruction's operand, sixteen bytes at a time, and has the first of them under
way before the kernel before has ended. The warps of a program take blocks of K in turn; only their sums meet in
shared memory, once.
"""

from __future__ import annotations

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from kernels.decode import INT4
from kernels.device_tiles import rows_at
from kernels.direct_parts import (
    finish,
    operand,
    places,
    row_constants,
    sums_layout,
    warp_sums,
    weights_of,
    words_layout,
    x_layout,
    x_operand,
)
from kernels.gluon_names import barrier

_REINTERPRETS = gl.constexpr(hasattr(gl.shared_memory_descriptor, "reinterpret"))

_FENCE = gl.constexpr("bar.warp.sync 0xffffffff;\nmov.b32 $0, $1;")


@gluon.constexpr_function
def _whole(count: int) -> int:
    """The power of two that is not under ``count``."""
    return 1 << (count - 1).bit_length()


@gluon.jit
def _read(
    codes_ptr, scales_ptr, first, last, rows, N, K,
    PER_WORD: gl.constexpr, EVEN: gl.constexpr, BLOCKS: gl.constexpr, WORDS: gl.constexpr,
):  # fmt: skip
    """Words and scales of blocks ``first`` and up; unless EVEN, the one before ``last`` in place of those behind."""
    COUNT: gl.constexpr = 128 // PER_WORD
    block = first + gl.arange(0, BLOCKS, gl.SliceLayout(1, gl.SliceLayout(2, WORDS)))
    if not EVEN:
        block = gl.minimum(block, last - 1)
    inner = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, WORDS)))
    at = codes_ptr + block[:, None, None] * (N * 16) + (rows[None, :, None] * 16 + inner[None, None, :])
    words = gl.load(at)
    scales = ()
    for i in gl.static_range(COUNT):
        index = block * COUNT + i
        if not EVEN:
            # The last block may be cut: its last words of scales may not exist.
            index = gl.minimum(index, gl.cdiv(K, PER_WORD) - 1)
        scales += (gl.load(scales_ptr + index[:, None] * N + rows[None, :]),)
    return words, scales


@gluon.jit
def _row_columns(begin, last, K, BLOCKS: gl.constexpr, STEPS: gl.constexpr):
    """The columns of one row of activations that a program reads, those of a step nibble by nibble, and whether there
    are such columns: [8 times a power of two, BLOCKS, 16] in one dimension.
    """
    SIZE: gl.constexpr = _whole(STEPS) * BLOCKS * 128
    WARPS: gl.constexpr = gl.num_warps()
    place = gl.arange(0, SIZE, gl.BlockedLayout([min(8, SIZE // (32 * WARPS))], [32], [WARPS], [0]))
    block = begin + place // (128 * BLOCKS) * BLOCKS + place // 16 % BLOCKS
    column = block * 128 + place // (16 * BLOCKS) % 8 * 16 + place % 16
    return column, (block < last) & (column < K)


@gluon.jit
def _columns(at, inside, EVEN: gl.constexpr, FRESH: gl.constexpr):
    """What is at ``at``, zeros where that is not ``inside``. FRESH: from the L2 cache, for a kernel may write there
    while others that read it are still around, and an L1 keep what was.
    """
    if EVEN:
        if FRESH:
            x = gl.load(at, cache_modifier=".cg")
        else:
            x = gl.load(at)
    else:
        if FRESH:
            x = gl.load(at, mask=inside, other=0.0, cache_modifier=".cg")
        else:
            x = gl.load(at, mask=inside, other=0.0)
    return x


@gluon.jit
def _shared_row(x, BLOCKS: gl.constexpr):
    """A row of activations in shared memory [*, BLOCKS, 16]."""
    SIZE: gl.constexpr = x.shape[0]
    x_s = gl.allocate_shared_memory(
        x.dtype, [SIZE // (16 * BLOCKS), BLOCKS, 16], gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    )
    PLAIN: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    if _REINTERPRETS:
        x_s.reinterpret(x_s.dtype, [SIZE], PLAIN).store(x)
    else:
        x_s._reinterpret(x_s.dtype, [SIZE], PLAIN).store(x)
    barrier()
    return x_s


@gluon.jit
def _multiply(
    total, words, scales, x_ptr, x_s, step, first, last, columns, M, K, x_stride,
    FORMAT: gl.constexpr, ONE: gl.constexpr, EVEN: gl.constexpr, X: gl.constexpr,
):  # fmt: skip
    """``total`` [BLOCKS, BLOCK_N, BLOCK_M] and the products of a step, of blocks ``first`` and up before ``last``."""
    BLOCKS: gl.constexpr = total.shape[0]
    MMA: gl.constexpr = total.type.layout
    A: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    B: gl.constexpr = gl.DotOperandLayout(1, MMA, 2)
    DTYPE: gl.constexpr = x_ptr.dtype.element_ty
    # Rows behind the last repeat it: computed and not stored.
    row = gl.minimum(columns, M - 1).to(gl.int64) * x_stride
    block = first + gl.arange(0, BLOCKS, gl.SliceLayout(1, gl.SliceLayout(2, X)))
    inner = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, X)))
    column = block[:, None, None] * 128 + inner[None, :, None]
    at = x_ptr + row[None, None, :] + column
    for half in gl.static_range(2):
        # By halves: the scales of all eight nibbles, made ready at once, would take registers from other programs.
        weights = weights_of(words, scales, half, FORMAT, DTYPE)
        for j in gl.static_range(4):
            if ONE:
                x = x_s.index(step * 8 + half * 4 + j).load(gl.SliceLayout(2, X))
                x = gl.reshape(x.reshape(BLOCKS, 4, 2, 2).permute(0, 2, 1, 3), [BLOCKS, 16])
                x = gl.expand_dims(gl.convert_layout(x, gl.SliceLayout(2, B), assert_trivial=True), 2)
                x = x.broadcast_to(BLOCKS, 16, total.shape[2])
            else:
                inside = (block < last)[:, None, None] & (column + 64 * half + 16 * j < K)
                x = x_operand(at + 64 * half + 16 * j, inside, EVEN, B)
            total = mma_v2(operand(weights[j], A), x, total)
    return total


@gluon.jit(do_not_specialize=["M", "SPLITS", "SHARE"])
def direct_matmul(
    x_ptr, norm_ptr, codes_ptr, scales_ptr, factor_ptr, bias_ptr, out_ptr, partial_ptr, ticket_ptr, M, N, K, SPLITS,
    SHARE, x_stride, out_stride, eps,
    GROUP: gl.constexpr, FORMAT: gl.constexpr, REST: gl.constexpr, BIAS: gl.constexpr, SWIGLU: gl.constexpr,
    SPLIT: gl.constexpr, EVEN: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCKS: gl.constexpr,
    STEPS: gl.constexpr, WHOLE: gl.constexpr, LOOP: gl.constexpr, ONE: gl.constexpr, NORM: gl.constexpr,
    ADD: gl.constexpr, OVERLAP: gl.constexpr,
):  # fmt: skip
    """out[M, N] = x W^T; grid (tiles of M, tiles of N, SPLITS), arguments as in ``matmul``.

    A program takes SHARE blocks of K in STEPS steps of BLOCKS, a power of two and at least one for each warp. WHOLE
    promises that the first so many steps are whole in every program, EVEN that all are. All steps are read before the
    first is used or, with LOOP, one ahead of the one that is used. ONE: there is one row of activations, and it goes
    through shared memory, so that no step waits for its part of it. NORM, where it is ONE and no SPLIT: x is normed on
    its way, x / sqrt(mean x^2 + eps) times ``norm_ptr`` [K]. ADD: the product is added to what is in ``out``.
    """
    WARPS: gl.constexpr = gl.num_warps()
    WORDS: gl.constexpr = words_layout(BLOCKS, BLOCK_N, WARPS)
    X: gl.constexpr = x_layout(BLOCKS, BLOCK_M, WARPS)
    MMA: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1, 1], [1, 16, 8])
    PER_WORD: gl.constexpr = GROUP if FORMAT == INT4 else 64
    DTYPE: gl.constexpr = x_ptr.dtype.element_ty
    tile = gl.program_id(1)
    split = gl.program_id(2)
    local = gl.arange(0, BLOCK_N, gl.SliceLayout(0, gl.SliceLayout(2, WORDS)))
    rows = rows_at(tile, local, N, BLOCK_N, SWIGLU)
    begin = split * SHARE
    last = gl.minimum(begin + SHARE, gl.cdiv(K, 128))
    held = ()
    for i in gl.static_range(1 if LOOP else STEPS):
        first = begin + i * BLOCKS
        held += (_read(codes_ptr, scales_ptr, first, last, rows, N, K, PER_WORD, EVEN, BLOCKS, WORDS),)
    SUMS: gl.constexpr = sums_layout(WARPS, BLOCK_N, BLOCK_M, SWIGLU)
    OUT: gl.constexpr = gl.SliceLayout(0, SUMS)
    factor, bias = row_constants(tile, factor_ptr, bias_ptr, N, REST, BIAS, SWIGLU, BLOCK_N, OUT)
    if ONE:
        row_columns, inside = _row_columns(begin, last, K, BLOCKS, STEPS)
        FULL: gl.constexpr = EVEN and _whole(STEPS) == STEPS
        if NORM:
            gain = _columns(norm_ptr + row_columns, inside, FULL, False)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        # Not before: where many kernels wait at once, their programs fill the multiprocessors unevenly.
        tl.extra.cuda.gdc_launch_dependents()
    top = gl.program_id(0) * BLOCK_M
    columns = top + gl.arange(0, BLOCK_M, gl.SliceLayout(0, gl.SliceLayout(1, X)))
    total = gl.zeros([BLOCKS, BLOCK_N, BLOCK_M], gl.float32, MMA)
    before = None
    if ADD:
        kept, exists = places(tile, top, out_ptr, M, N, out_stride, OUT, SWIGLU, BLOCK_N, BLOCK_M)
        before = gl.load(kept, mask=exists, other=0.0, cache_modifier=".cg")
    x_s = None
    if ONE:
        x = _columns(x_ptr + row_columns, inside, FULL, NORM)
        if NORM:
            # Rounded where the model's own module rounds.
            wide = x.to(gl.float32)
            wide *= gl.rsqrt(gl.sum(wide * wide, 0) / K + eps)
            x = (wide.to(DTYPE).to(gl.float32) * gain.to(gl.float32)).to(DTYPE)
        x_s = _shared_row(x, BLOCKS)
    if LOOP:
        words, scales = held[0]
        for step in range(0, STEPS - 1):
            block = begin + step * BLOCKS
            after = block + BLOCKS
            ahead = _read(codes_ptr, scales_ptr, after, last, rows, N, K, PER_WORD, EVEN, BLOCKS, WORDS)
            # Left alone, the assembler moves these loads to where their registers are free: behind their use.
            gl.inline_asm_elementwise(_FENCE, "=r,r", [step], dtype=gl.int32, is_pure=False, pack=1)
            total = _multiply(
                total, words, scales, x_ptr, x_s, step, block, last, columns, M, K, x_stride,
                FORMAT, ONE, WHOLE >= STEPS - 1, X,
            )  # fmt: skip
            words, scales = ahead
        step = STEPS - 1
        total = _multiply(
            total, words, scales, x_ptr, x_s, step, begin + step * BLOCKS, last, columns, M, K, x_stride,
            FORMAT, ONE, EVEN, X,
        )  # fmt: skip
    else:
        for i in gl.static_range(STEPS):
            words, scales = held[i]
            total = _multiply(
                total, words, scales, x_ptr, x_s, i, begin + i * BLOCKS, last, columns, M, K, x_stride,
                FORMAT, ONE, i < WHOLE, X,
            )  # fmt: skip
    sums_s = gl.allocate_shared_memory(
        gl.float32, [WARPS, BLOCK_N, BLOCK_M], gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0]), warp_sums(total)
    )
    barrier()
    result = gl.sum(sums_s.load(SUMS), 0)
    final = True
    if SPLIT:
        SIZE: gl.constexpr = BLOCK_N * BLOCK_M
        n = gl.arange(0, BLOCK_N, gl.SliceLayout(1, OUT))
        m = gl.arange(0, BLOCK_M, gl.SliceLayout(0, OUT))
        slot = tile * gl.num_programs(0) + gl.program_id(0)
        part_ptr = partial_ptr + gl.cast(slot * SPLITS, gl.int64) * SIZE + (n[:, None] * BLOCK_M + m[None, :])
        gl.store(part_ptr + split * SIZE, result)
        # Every thread's part must be on its way before the one thread that draws the ticket releases it.
        barrier()
        final = gl.atomic_add(ticket_ptr + slot, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
        if final:
            # All parts in their order, whichever came last: the same sum every time. .cg: from the L2 cache, where
            # the other programs' parts are; not from a stale L1.
            result = gl.load(part_ptr, cache_modifier=".cg")
            for part in range(1, SPLITS):
                result += gl.load(part_ptr + part * SIZE, cache_modifier=".cg")
            gl.store(ticket_ptr + slot, 0)
    if final:
        finish(
            result, factor, bias, before, tile, top, out_ptr, M, N, out_stride, REST, BIAS, SWIGLU, ADD, DTYPE
        )
