# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disable-error-code="assignment,misc,var-annotated"
"""A thousand rows of activations and more on a Hopper GPU, in Triton's Gluon dialect.

As ``hopper_matmul``, but with tiles as large as registers allow. What decoding costs there is not time that the
matrix units could not fill, but registers that it reads and writes while they do: so a weight, once decoded, is
multiplied by twice as many rows of activations, and decoded one nibble at a time, four behind the one that is
multiplied. Activations are copied in halves of 64 columns, for whole steps of 128 would leave room for two.
"""

from __future__ import annotations

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernels.decode import INT4, decode_half
from kernels.gluon_names import barrier, copy, send
from kernels.hopper_matmul import (
    SHARED_CODES,
    SHARED_SCALES,
    SHARED_X,
    before,
    finished,
    half_scales,
    load_weight,
    wrapped,
)


@gluon.jit
def _load_rows(
    x_desc, more_desc, x_s, more_s, ready, slot, top, column, BLOCK_M: gl.constexpr, MORE: gl.constexpr
):  # fmt: skip
    """Half a step's activations of a tile into ``slot``."""
    bar = ready.index(slot)
    mbarrier.expect(bar, (BLOCK_M + MORE) * 128)
    copy(x_desc, [top, column], bar, x_s.index(slot))
    if MORE > 0:
        copy(more_desc, [top + BLOCK_M, column], bar, more_s.index(slot))


@gluon.jit
def _load_gated(codes_desc, scales_desc, codes_s, scales_s, ready, slot, step, row, N, WORDS: gl.constexpr):
    """A step's words and scales of rows of gate from ``row`` on, and behind them those of up."""
    ROWS: gl.constexpr = codes_desc.block_shape[0]
    bar = ready.index(slot)
    for part in gl.static_range(2):
        at = part * (N // 2) + row
        copy(codes_desc, [step * N + at, 0], bar, codes_s.index(slot).slice(part * ROWS, ROWS))
        for i in gl.static_range(WORDS):
            words = scales_s.index(slot * WORDS + i).slice(part * ROWS, ROWS)
            copy(scales_desc, [(step * WORDS + i) * N + at], bar, words)


@gluon.jit
def _load_any(
    codes_desc, scales_desc, codes_s, scales_s, ready, slot, step, row, N, WORDS: gl.constexpr, SWIGLU: gl.constexpr
):  # fmt: skip
    if SWIGLU:
        _load_gated(codes_desc, scales_desc, codes_s, scales_s, ready, slot, step, row, N, WORDS)
    else:
        load_weight(codes_desc, scales_desc, codes_s, scales_s, ready, slot, step, row, N, WORDS)


@gluon.jit
def _produce(
    x_desc, more_desc, codes_desc, scales_desc, x_s, more_s, codes_s, scales_s, ready, free, x_ready, x_free,
    items, tiles_m, steps, N,
    WORDS: gl.constexpr, BLOCK_M: gl.constexpr, MORE: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
    X_STAGES: gl.constexpr, SWIGLU: gl.constexpr,
):  # fmt: skip
    """Fill both rings in the order in which ``_consume`` empties them.

    The first steps' words and scales are asked for while the kernel before may still run; the activations, which it
    may be writing, only once it has ended.
    """
    SIZE: gl.constexpr = BLOCK_N * (64 + 4 * WORDS)
    COLUMNS: gl.constexpr = BLOCK_N // 2 if SWIGLU else BLOCK_N
    first = gl.program_id(0)
    early = gl.minimum(steps, STAGES)
    for i in range(0, early):
        mbarrier.expect(ready.index(i), SIZE)
        row = first // tiles_m * COLUMNS
        _load_any(codes_desc, scales_desc, codes_s, scales_s, ready, i, i, row, N, WORDS, SWIGLU)
    tl.extra.cuda.gdc_wait()
    slot = early % STAGES
    phase = early // STAGES
    x_slot = 0
    x_phase = 0
    for item in range(first, items, gl.num_programs(0)):
        row = item // tiles_m * COLUMNS
        top = item % tiles_m * (BLOCK_M + MORE)
        done = gl.where(item == first, early, 0)
        for step in range(0, steps):
            if step >= done:
                mbarrier.wait(free.index(slot), phase ^ 1)
                mbarrier.expect(ready.index(slot), SIZE)
                _load_any(
                    codes_desc, scales_desc, codes_s, scales_s, ready, slot, step, row, N, WORDS, SWIGLU
                )
                slot, phase = wrapped(slot + 1, phase, STAGES)
            for half in gl.static_range(2):
                mbarrier.wait(x_free.index(x_slot), x_phase ^ 1)
                column = step * 128 + half * 64
                _load_rows(x_desc, more_desc, x_s, more_s, x_ready, x_slot, top, column, BLOCK_M, MORE)
                x_slot, x_phase = wrapped(x_slot + 1, x_phase, X_STAGES)


@gluon.jit
def _interleaved(weight, A: gl.constexpr):
    """Rows of gate and behind them as many of up, in turns of 8: a thread that has a row of gate has its row of up. The
    registers stay as they are.
    """
    ROWS: gl.constexpr = weight.shape[0]
    weight = gl.permute(gl.reshape(weight, [2, ROWS // 16, 8, 16]), (1, 0, 2, 3))
    return gl.convert_layout(gl.reshape(weight, [ROWS, 16]), A, assert_trivial=True)


@gluon.jit
def _multiply(
    weight, x_s, more_s, slot, i: gl.constexpr, total, more, use_acc, words, A: gl.constexpr, A_MORE: gl.constexpr,
    SWIGLU: gl.constexpr,
):  # fmt: skip
    """A nibble's weights times the ``i``-th 16 columns of a slot; and wait until what was multiplied four nibbles ago
    has been read. Only then may registers be written again that it was read from, so the words that the weights in
    them are decoded from have to pass the wait, too.
    """
    if SWIGLU:
        weight = _interleaved(weight, A)
    x = x_s.index(slot).permute((1, 0)).slice(16 * i, 16)
    total = warpgroup_mma(weight, x, total, use_acc=use_acc, is_async=True)
    if A_MORE is not None:
        # The same registers: only what is multiplied by them has another width.
        weight = gl.convert_layout(weight, A_MORE, assert_trivial=True)
        few = more_s.index(slot).permute((1, 0)).slice(16 * i, 16)
        more = warpgroup_mma(weight, few, more, use_acc=use_acc, is_async=True)
        total, more, words = warpgroup_mma_wait(8, deps=(total, more, words))
    else:
        total, words = warpgroup_mma_wait(4, deps=(total, words))
    return total, more, words


@gluon.jit
def _turn(
    n0, n1, n2, n3, words, s0, s2, x_s, more_s, slot, total, more, use_acc,
    HALF: gl.constexpr, FORMAT: gl.constexpr, DTYPE: gl.constexpr, A: gl.constexpr, A_MORE: gl.constexpr,
    SWIGLU: gl.constexpr,
):  # fmt: skip
    """Multiply the weights of half a step, and meanwhile decode nibbles 0 to 3 (HALF 0) or 4 to 7 (1) of ``words``.

    The matrix units have the products of four nibbles before them at any time.
    """
    total, more, words = _multiply(n0, x_s, more_s, slot, 0, total, more, use_acc, words, A, A_MORE, SWIGLU)
    m0, _, _, _ = decode_half(words, s0, s0, s2, s2, HALF, FORMAT, DTYPE, True)
    total, more, words = _multiply(n1, x_s, more_s, slot, 1, total, more, True, words, A, A_MORE, SWIGLU)
    _, m1, _, _ = decode_half(words, s0, s0, s2, s2, HALF, FORMAT, DTYPE, True)
    total, more, words = _multiply(n2, x_s, more_s, slot, 2, total, more, True, words, A, A_MORE, SWIGLU)
    _, _, m2, _ = decode_half(words, s0, s0, s2, s2, HALF, FORMAT, DTYPE, True)
    total, more, words = _multiply(n3, x_s, more_s, slot, 3, total, more, True, words, A, A_MORE, SWIGLU)
    _, _, _, m3 = decode_half(words, s0, s0, s2, s2, HALF, FORMAT, DTYPE, True)
    return m0, m1, m2, m3, total, more


@gluon.jit
def _gated(result):
    """SwiGLU of sums whose rows are those of gate and up in turns of 8."""
    ROWS: gl.constexpr = result.shape[0]
    WIDTH: gl.constexpr = result.shape[1]
    gate, up = gl.split(gl.permute(gl.reshape(result, [ROWS // 16, 2, 8, WIDTH]), (0, 2, 3, 1)))
    return gl.reshape(gate / (1.0 + gl.exp(-gate)) * up, [ROWS // 2, WIDTH])


@gluon.jit
def _pieces(result, PIECE: gl.constexpr):
    """``result`` [rows of weight, rows of activations] in pieces of PIECE rows of activations, where it is."""
    ROWS: gl.constexpr = result.shape[0]
    WIDTH: gl.constexpr = result.shape[1]
    if WIDTH == PIECE:
        return (result,)
    else:
        first, second = gl.split(gl.permute(gl.reshape(result, [ROWS, 2, WIDTH // 2]), (0, 2, 1)))
        return _pieces(first, PIECE) + _pieces(second, PIECE)


@gluon.jit
def _consume(
    out_desc, factor_ptr, bias_ptr, x_s, more_s, codes_s, scales_s, out_s, ready, free, x_ready, x_free,
    items, tiles_m, steps, N,
    WORDS: gl.constexpr, FORMAT: gl.constexpr, REST: gl.constexpr, BIAS: gl.constexpr,
    BLOCK_M: gl.constexpr, MORE: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, X_STAGES: gl.constexpr,
    SWIGLU: gl.constexpr,
):  # fmt: skip
    """Multiply, and send results, tile after tile."""
    DTYPE: gl.constexpr = out_desc.dtype
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_M, 16])
    # Nibble i of a step's words are its columns 16 i to 16 i + 15: one matrix instruction's operand as they are.
    A: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    # As A, but in the order in which gate's and up's rows are in shared memory: in ``_interleaved`` they change names.
    WORDS_LAYOUT: gl.constexpr = (
        gl.DistributedLinearLayout(
            [[0, 1], [BLOCK_N // 2, 0], [0, 8]], [[0, 2], [0, 4], [1, 0], [2, 0], [4, 0]],
            [[8, 0], [16, 0], [32, 0]], [], [BLOCK_N, 16],
        ) if SWIGLU else A
    )  # fmt: skip
    ROWS: gl.constexpr = gl.SliceLayout(1, WORDS_LAYOUT)
    COLUMNS: gl.constexpr = BLOCK_N // 2 if SWIGLU else BLOCK_N
    # Where MORE is 0 the sum is not used.
    WIDTH: gl.constexpr = MORE if MORE > 0 else 16
    MMA_MORE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, WIDTH, 16])
    A_MORE: gl.constexpr = gl.DotOperandLayout(0, MMA_MORE, 2) if MORE > 0 else None
    PIECE: gl.constexpr = out_desc.block_shape[0]
    slot = 0
    phase = 0
    x_slot = 0
    x_phase = 0
    total = gl.zeros([BLOCK_N, BLOCK_M], gl.float32, MMA)
    more = gl.zeros([BLOCK_N, WIDTH], gl.float32, MMA_MORE)
    tl.extra.cuda.gdc_wait()
    # Only now, so that no kernel behind sits where one before this has yet to run.
    tl.extra.cuda.gdc_launch_dependents()
    mbarrier.wait(ready.index(0), 0)
    words = codes_s.index(0).load(WORDS_LAYOUT)
    s0, s2 = half_scales(scales_s, 0, 0, WORDS, ROWS)
    n0, n1, n2, n3 = decode_half(words, s0, s0, s2, s2, 0, FORMAT, DTYPE, True)
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        row = item // tiles_m * COLUMNS
        top = item % tiles_m * (BLOCK_M + MORE)
        # Read here, so that they have come when the sums are known: nothing would be left to do meanwhile. And not
        # computed with, or they would be waited for at once.
        rows = gl.arange(0, BLOCK_N, gl.SliceLayout(1, MMA))
        if SWIGLU:
            rows = gl.minimum(row + rows // 16 * 8 + rows % 8, N // 2 - 1) + rows // 8 % 2 * (N // 2)
        else:
            rows = gl.minimum(row + rows, N - 1)
        factor = None
        if REST != 1.0:
            factor = gl.load(factor_ptr + rows)
        bias = None
        if BIAS:
            bias = gl.load(bias_ptr + rows)
        for step in range(0, steps):
            s4, s6 = half_scales(scales_s, slot, 1, WORDS, ROWS)
            mbarrier.wait(x_ready.index(x_slot), x_phase)
            n4, n5, n6, n7, total, more = _turn(
                n0, n1, n2, n3, words, s4, s6, x_s, more_s, x_slot, total, more, step > 0,
                1, FORMAT, DTYPE, A, A_MORE, SWIGLU,
            )  # fmt: skip
            # All words and scales of this step and the activations behind this half have been read by now; what was
            # issued here goes on.
            barrier()
            mbarrier.arrive(free.index(slot), count=1)
            mbarrier.arrive(x_free.index(before(x_slot, X_STAGES)), count=1, pred=step > 0)
            x_slot, x_phase = wrapped(x_slot + 1, x_phase, X_STAGES)
            # The step behind, also of another tile. Behind the very last: itself, for nothing.
            on = gl.where((step + 1 < steps) | (item + gl.num_programs(0) < items), 1, 0)
            slot, phase = wrapped(slot + on, phase, STAGES)
            mbarrier.wait(ready.index(slot), phase)
            words = codes_s.index(slot).load(WORDS_LAYOUT)
            s0, s2 = half_scales(scales_s, slot, 0, WORDS, ROWS)
            mbarrier.wait(x_ready.index(x_slot), x_phase)
            n0, n1, n2, n3, total, more = _turn(
                n4, n5, n6, n7, words, s0, s2, x_s, more_s, x_slot, total, more, True,
                0, FORMAT, DTYPE, A, A_MORE, SWIGLU,
            )  # fmt: skip
            barrier()
            mbarrier.arrive(x_free.index(before(x_slot, X_STAGES)), count=1)
            x_slot, x_phase = wrapped(x_slot + 1, x_phase, X_STAGES)
        if MORE > 0:
            total, more = warpgroup_mma_wait(0, deps=(total, more))
        else:
            total = warpgroup_mma_wait(0, deps=(total,))
        barrier()
        mbarrier.arrive(x_free.index(before(x_slot, X_STAGES)), count=1)
        result = finished(total, factor, bias, REST, BIAS)
        rest = finished(more, factor, bias, REST, BIAS)
        if SWIGLU:
            result = _gated(result)
            rest = _gated(rest)
        pieces = _pieces(result, PIECE)
        if MORE > 0:
            pieces += (rest,)
        for i in gl.static_range((BLOCK_M + MORE) // PIECE):
            # The piece that was here must have left; it is written by these threads, read by the engine.
            tma.store_wait(1 if i > 0 else 0)
            barrier()
            out_s.index(i % 2).permute((1, 0)).store(pieces[i].to(DTYPE))
            fence_async_shared()
            barrier()
            send(out_desc, [top + i * PIECE, row], out_s.index(i % 2))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["M"])
def wide_matmul(
    x_desc, more_desc, codes_desc, scales_desc, out_desc, factor_ptr, bias_ptr, M, N, K,
    GROUP: gl.constexpr, FORMAT: gl.constexpr, REST: gl.constexpr, BIAS: gl.constexpr,
    BLOCK_M: gl.constexpr, MORE: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, X_STAGES: gl.constexpr,
    SWIGLU: gl.constexpr,
):  # fmt: skip
    """out[M, N] = x W^T; grid: any number of programs, each taking tiles in turn.

    A tile is BLOCK_N rows of weight times BLOCK_M and MORE rows of activations, two powers of two of which MORE may be
    0, so that M divides into as many tiles as fill the device. ``x_desc`` describes [M, K] in blocks of BLOCK_M rows
    and 64 columns, ``more_desc`` of MORE rows; ``out_desc`` [M, N] in pieces of rows that divide BLOCK_M and are MORE,
    if there is MORE; the other arguments are as in ``hopper_matmul``. There are STAGES slots for words and scales of
    128 columns, X_STAGES for activations of 64. SWIGLU: as in ``matmul``; a tile is half gate and half up, and
    ``codes_desc`` and ``scales_desc`` describe blocks of BLOCK_N / 2 rows, which is 64.
    """
    DTYPE: gl.constexpr = out_desc.dtype
    WORDS: gl.constexpr = 128 // (GROUP if FORMAT == INT4 else 64)
    PIECE: gl.constexpr = out_desc.block_shape[0]
    x_s = gl.allocate_shared_memory(DTYPE, [X_STAGES, BLOCK_M, 64], SHARED_X)
    more_s = gl.allocate_shared_memory(DTYPE, [X_STAGES, MORE, 64], SHARED_X) if MORE > 0 else x_s
    codes_s = gl.allocate_shared_memory(gl.int32, [STAGES, BLOCK_N, 16], SHARED_CODES)
    scales_s = gl.allocate_shared_memory(gl.int32, [STAGES * WORDS, BLOCK_N], SHARED_SCALES)
    COLUMNS: gl.constexpr = BLOCK_N // 2 if SWIGLU else BLOCK_N
    out_s = gl.allocate_shared_memory(DTYPE, [2, PIECE, COLUMNS], SHARED_X)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    x_ready = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    x_free = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(free.index(i), count=1)
    for i in gl.static_range(X_STAGES):
        mbarrier.init(x_ready.index(i), count=1)
        mbarrier.init(x_free.index(i), count=1)
    fence_async_shared()
    tiles_m = gl.cdiv(M, BLOCK_M + MORE)
    items = tiles_m * gl.cdiv(N // 2 if SWIGLU else N, COLUMNS)
    steps = gl.cdiv(K, 128)
    gl.warp_specialize(
        [
            (_consume, (out_desc, factor_ptr, bias_ptr, x_s, more_s, codes_s, scales_s, out_s, ready, free, x_ready,
                        x_free, items, tiles_m, steps, N, WORDS, FORMAT, REST, BIAS, BLOCK_M, MORE, BLOCK_N, STAGES,
                        X_STAGES, SWIGLU)),
            (_produce, (x_desc, more_desc, codes_desc, scales_desc, x_s, more_s, codes_s, scales_s, ready, free,
                        x_ready, x_free, items, tiles_m, steps, N, WORDS, BLOCK_M, MORE, BLOCK_N, STAGES, X_STAGES,
                        SWIGLU)),
        ],
        [1],
        [24],
    )  # fmt: skip
