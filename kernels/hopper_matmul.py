# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Some hundred rows of activations on a Hopper GPU: a persistent matmul in Triton's Gluon dialect.

The product is formed transposed, out^T = W x^T, the decoded weight being the operand that the matrix instruction
takes from registers. One warp copies words of weights, scales and activations ahead into a ring in shared memory;
the other warps decode half a step of 128 columns while the matrix units still work on the half before, so that
decoding costs little as long as a tile has many rows of activations.
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

SHARED_X = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
"""Of activations and results [rows, columns]."""

SHARED_CODES = gl.constexpr(gl.NVMMASharedLayout(64, 32, 2))
"""Of the words [rows, 16] of a block."""

SHARED_SCALES = gl.constexpr(gl.NVMMASharedLayout(0, 32, 1))
"""Of scales [rows]."""


@gluon.jit
def _place(item, tiles_m, steps, share, splits):
    """Tile of N, tile of M, first step and the one behind the last of ``item``; M is fastest but for splits."""
    tile = item // splits
    begin = item % splits * share
    return tile // tiles_m, tile % tiles_m, begin, gl.minimum(begin + share, steps)


@gluon.jit
def before(slot, STAGES: gl.constexpr):
    """The slot before ``slot``. Not a variable that follows it: Triton does not see that a loop carries one that
    equals another at its start.
    """
    return gl.where(slot == 0, STAGES - 1, slot - 1)


@gluon.jit
def wrapped(slot, phase, STAGES: gl.constexpr):
    """``slot`` of a ring and its phase, where ``slot`` may be just behind the last: the first again, a turn later."""
    if slot == STAGES:
        slot = 0
        phase ^= 1
    return slot, phase


@gluon.jit
def _produce(
    x_desc, codes_desc, scales_desc, x_s, codes_s, scales_s, ready, free, items, tiles_m, steps, share, splits, N,
    WORDS: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Fill the ring, slot after slot, in the order in which ``_consume`` empties it.

    The first steps' words and scales are asked for while the kernel before may still run; the activations, which it
    may be writing, only once it has ended.
    """
    SIZE: gl.constexpr = BLOCK_M * 256 + BLOCK_N * (64 + 4 * WORDS)
    tile_n, tile_m, begin, end = _place(gl.program_id(0), tiles_m, steps, share, splits)
    early = gl.minimum(end - begin, STAGES)
    for i in range(0, early):
        mbarrier.expect(ready.index(i), SIZE)
        load_weight(
            codes_desc, scales_desc, codes_s, scales_s, ready, i, begin + i, tile_n * BLOCK_N, N, WORDS
        )
    tl.extra.cuda.gdc_wait()
    for i in range(0, early):
        copy(x_desc, [tile_m * BLOCK_M, (begin + i) * 128], ready.index(i), x_s.index(i))
    slot = early % STAGES
    phase = early // STAGES
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        tile_n, tile_m, begin, end = _place(item, tiles_m, steps, share, splits)
        done = gl.where(item == gl.program_id(0), early, 0)
        for step in range(begin + done, end):
            mbarrier.wait(free.index(slot), phase ^ 1)
            bar = ready.index(slot)
            mbarrier.expect(bar, SIZE)
            load_weight(
                codes_desc, scales_desc, codes_s, scales_s, ready, slot, step, tile_n * BLOCK_N, N, WORDS
            )
            copy(x_desc, [tile_m * BLOCK_M, step * 128], bar, x_s.index(slot))
            slot, phase = wrapped(slot + 1, phase, STAGES)


@gluon.jit
def load_weight(
    codes_desc, scales_desc, codes_s, scales_s, ready, slot, step, row, N, WORDS: gl.constexpr
):  # fmt: skip
    """A step's words and scales of a tile from ``row`` on into ``slot``."""
    bar = ready.index(slot)
    # Rows behind a block's last are the next block's: computed and not stored. Behind the tensor: zeros.
    copy(codes_desc, [step * N + row, 0], bar, codes_s.index(slot))
    for i in gl.static_range(WORDS):
        copy(scales_desc, [(step * WORDS + i) * N + row], bar, scales_s.index(slot * WORDS + i))


@gluon.jit
def half_scales(scales_s, slot, HALF: gl.constexpr, WORDS: gl.constexpr, ROWS: gl.constexpr):
    """The words with the scales of the first two and of the last two nibbles of half a step."""
    at = slot * WORDS + HALF * (WORDS // 2)
    first = gl.expand_dims(scales_s.index(at).load(ROWS), 1)
    last = first
    if WORDS == 4:
        last = gl.expand_dims(scales_s.index(at + 1).load(ROWS), 1)
    return first, last


@gluon.jit
def finished(total, factor, bias, REST: gl.constexpr, BIAS: gl.constexpr):
    """Sums with their rows' factors and biases."""
    ROWS: gl.constexpr = gl.SliceLayout(1, total.type.layout)
    if REST != 1.0:
        total = total * (gl.convert_layout(factor, ROWS) * REST)[:, None]
    if BIAS:
        total += gl.convert_layout(bias, ROWS).to(gl.float32)[:, None]
    return total


@gluon.jit
def _consume(
    out_desc, factor_ptr, bias_ptr, partial_ptr, ticket_ptr, x_s, codes_s, scales_s, out_s, ready, free,
    items, tiles_m, steps, share, splits, N,
    WORDS: gl.constexpr, FORMAT: gl.constexpr, REST: gl.constexpr, BIAS: gl.constexpr, SPLIT: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    DTYPE: gl.constexpr = out_desc.dtype
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_M, 16])
    # Nibble i of a step's words are its columns 16 i to 16 i + 15: one matrix instruction's operand as they are.
    A: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    ROWS: gl.constexpr = gl.SliceLayout(1, A)
    OUT_ROWS: gl.constexpr = gl.SliceLayout(1, MMA)
    SIZE: gl.constexpr = BLOCK_N * BLOCK_M
    slot = 0
    phase = 0
    total = gl.zeros([BLOCK_N, BLOCK_M], gl.float32, MMA)
    tl.extra.cuda.gdc_wait()
    # Only now, so that no kernel behind sits where one before this has yet to run.
    tl.extra.cuda.gdc_launch_dependents()
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        tile_n, tile_m, begin, end = _place(item, tiles_m, steps, share, splits)
        # Read here, so that they have come when the sums are known: nothing would be left to do meanwhile. And not
        # computed with, or they would be waited for at once.
        rows = gl.minimum(tile_n * BLOCK_N + gl.arange(0, BLOCK_N, OUT_ROWS), N - 1)
        factor = None
        if REST != 1.0:
            factor = gl.load(factor_ptr + rows)
        bias = None
        if BIAS:
            bias = gl.load(bias_ptr + rows)
        for step in range(begin, end):
            mbarrier.wait(ready.index(slot), phase)
            words = codes_s.index(slot).load(A)
            s0, s2 = half_scales(scales_s, slot, 0, WORDS, ROWS)
            s4, s6 = half_scales(scales_s, slot, 1, WORDS, ROWS)
            n0, n1, n2, n3 = decode_half(words, s0, s0, s2, s2, 0, FORMAT, DTYPE, True)
            x = x_s.index(slot).permute((1, 0))
            total = warpgroup_mma(n0, x.slice(0, 16), total, use_acc=step > begin, is_async=True)
            total = warpgroup_mma(n1, x.slice(16, 16), total, is_async=True)
            total = warpgroup_mma(n2, x.slice(32, 16), total, is_async=True)
            total = warpgroup_mma(n3, x.slice(48, 16), total, is_async=True)
            # The step before has been read by now; what was issued here goes on. Only now may registers be written
            # that its second half was read from, so the words of this one's have to pass the wait too.
            total, words = warpgroup_mma_wait(4, deps=(total, words))
            barrier()
            mbarrier.arrive(free.index(before(slot, STAGES)), count=1, pred=step > begin)
            n4, n5, n6, n7 = decode_half(words, s4, s4, s6, s6, 1, FORMAT, DTYPE, True)
            total = warpgroup_mma(n4, x.slice(64, 16), total, is_async=True)
            total = warpgroup_mma(n5, x.slice(80, 16), total, is_async=True)
            total = warpgroup_mma(n6, x.slice(96, 16), total, is_async=True)
            total = warpgroup_mma(n7, x.slice(112, 16), total, is_async=True)
            # The registers of the first half are free for the next step's.
            total = warpgroup_mma_wait(4, deps=(total,))
            slot, phase = wrapped(slot + 1, phase, STAGES)
        total = warpgroup_mma_wait(0, deps=(total,))
        barrier()
        mbarrier.arrive(free.index(before(slot, STAGES)), count=1)
        last = True
        if SPLIT:
            tile = item // splits
            inner = gl.arange(0, BLOCK_N, OUT_ROWS)[:, None] * BLOCK_M
            inner += gl.arange(0, BLOCK_M, gl.SliceLayout(0, MMA))[None, :]
            base = partial_ptr + gl.cast(tile * splits, gl.int64) * SIZE
            gl.store(base + item % splits * SIZE + inner, total)
            # Every thread's part must be on its way before the one thread that draws the ticket releases it.
            barrier()
            last = gl.atomic_add(ticket_ptr + tile, 1, sem="acq_rel", scope="gpu") == splits - 1
            if last:
                # All parts in their order, whichever came last: the same sum every time. .cg: from the L2 cache,
                # where the other programs' parts are; not from a stale L1.
                total = gl.load(base + inner, cache_modifier=".cg")
                for part in range(1, splits):
                    total += gl.load(base + part * SIZE + inner, cache_modifier=".cg")
                gl.store(ticket_ptr + tile, 0)
        if last:
            result = finished(total, factor, bias, REST, BIAS)
            # The tile before must have left the staging memory; it is written by these threads, read by the engine.
            tma.store_wait(0)
            barrier()
            out_s.permute((1, 0)).store(result.to(DTYPE))
            fence_async_shared()
            barrier()
            send(out_desc, [tile_m * BLOCK_M, tile_n * BLOCK_N], out_s)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["M", "SPLITS"])
def hopper_matmul(
    x_desc, codes_desc, scales_desc, out_desc, factor_ptr, bias_ptr, partial_ptr, ticket_ptr, M, N, K, SPLITS,
    GROUP: gl.constexpr, FORMAT: gl.constexpr, REST: gl.constexpr, BIAS: gl.constexpr, SPLIT: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """out[M, N] = x W^T; grid: any number of programs, each taking tiles (and halves of K) in turn.

    ``x_desc`` describes [M, K], ``codes_desc`` [blocks * N, 16], ``scales_desc`` all scale words in a row,
    ``out_desc`` [M, N]; ``factor_ptr``, REST and BIAS as in ``matmul``; SPLITS divides K, none of the parts empty; if
    SPLIT, ``partial_ptr`` is float32 [tiles, SPLITS, BLOCK_N, BLOCK_M] and ``ticket_ptr`` a zero per tile before and
    after.
    """
    DTYPE: gl.constexpr = out_desc.dtype
    WORDS: gl.constexpr = 128 // (GROUP if FORMAT == INT4 else 64)
    x_s = gl.allocate_shared_memory(DTYPE, [STAGES, BLOCK_M, 128], SHARED_X)
    codes_s = gl.allocate_shared_memory(gl.int32, [STAGES, BLOCK_N, 16], SHARED_CODES)
    scales_s = gl.allocate_shared_memory(gl.int32, [STAGES * WORDS, BLOCK_N], SHARED_SCALES)
    out_s = gl.allocate_shared_memory(DTYPE, [BLOCK_M, BLOCK_N], SHARED_X)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(free.index(i), count=1)
    fence_async_shared()
    tiles_m = gl.cdiv(M, BLOCK_M)
    items = tiles_m * gl.cdiv(N, BLOCK_N) * SPLITS
    steps = gl.cdiv(K, 128)
    share = gl.cdiv(steps, SPLITS)
    gl.warp_specialize(
        [
            (_consume, (out_desc, factor_ptr, bias_ptr, partial_ptr, ticket_ptr, x_s, codes_s, scales_s, out_s, ready,
                        free, items, tiles_m, steps, share, SPLITS, N, WORDS, FORMAT, REST, BIAS, SPLIT, BLOCK_M,
                        BLOCK_N, STAGES)),
            (_produce, (x_desc, codes_desc, scales_desc, x_s, codes_s, scales_s, ready, free, items, tiles_m, steps,
                        share, SPLITS, N, WORDS, BLOCK_M, BLOCK_N, STAGES)),
        ],
        [1],
        [24],
    )  # fmt: skip
