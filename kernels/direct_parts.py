# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disable-error-code="assignment,misc"
# ruff: noqa: SIM108
"""Parts of ``direct_matmul``: where words and activations lie in registers, and the end of a tile.

Words of a ``TiledWeight`` lie such that, decoded, they are the operand of a matrix instruction: every lane has four
neighbouring words of a block's row, so that it reads them as sixteen bytes. The columns of a block change their
numbers by that, and those of the activations with them.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from kernels.decode import decode_half
from kernels.device_tiles import rows_at


@gluon.constexpr_function
def turns(first: int, end: int, axis: int) -> list[list[int]]:
    """Bases of a layout of three dimensions: powers of two from ``first`` to under ``end`` along ``axis``."""
    found = []
    while first < end:
        found.append([first if axis == i else 0 for i in range(3)])
        first *= 2
    return found


@gluon.constexpr_function
def words_layout(blocks: int, rows: int, warps: int) -> gl.DistributedLinearLayout:
    """[blocks, rows, 16] words: a lane has four neighbours of each of rows g, g + 8, ...; a warp every ``warps``-th
    block.
    """
    registers = [*turns(1, 4, 2), *turns(8, rows, 1), *turns(warps, blocks, 0)]
    lanes = [*turns(4, 16, 2), *turns(1, 8, 1)]
    return gl.DistributedLinearLayout(registers, lanes, turns(1, warps, 0), [], [blocks, rows, 16])


@gluon.constexpr_function
def x_layout(blocks: int, rows: int, warps: int) -> gl.DistributedLinearLayout:
    """[blocks, 16, rows] activations: a lane has four neighbouring columns of each of rows n, n + 8, ..."""
    registers = [*turns(1, 4, 1), *turns(8, rows, 2), *turns(warps, blocks, 0)]
    lanes = [*turns(4, 16, 1), *turns(1, 8, 2)]
    return gl.DistributedLinearLayout(registers, lanes, turns(1, warps, 0), [], [blocks, 16, rows])


@gluon.jit
def operand(nibble, A: gl.constexpr):
    """A tile [BLOCKS, rows, 16] whose lanes have four neighbouring columns as the matrix instruction's operand,
    whose lanes have two and two: the columns change their numbers, as those of ``x_operand`` do, and nothing moves.
    """
    BLOCKS: gl.constexpr = nibble.shape[0]
    ROWS: gl.constexpr = nibble.shape[1]
    parted = nibble.reshape(BLOCKS, ROWS, 4, 2, 2).permute(0, 1, 3, 2, 4)
    return gl.convert_layout(gl.reshape(parted, [BLOCKS, ROWS, 16]), A, assert_trivial=True)


@gluon.jit
def x_operand(at, inside, EVEN: gl.constexpr, B: gl.constexpr):
    """The activations at ``at`` [BLOCKS, 16, rows] as the other operand; zeros where they are not ``inside``."""
    BLOCKS: gl.constexpr = at.shape[0]
    ROWS: gl.constexpr = at.shape[2]
    if EVEN:
        x = gl.load(at)
    else:
        x = gl.load(at, mask=inside, other=0.0)
    parted = x.reshape(BLOCKS, 4, 2, 2, ROWS).permute(0, 2, 1, 3, 4)
    return gl.convert_layout(gl.reshape(parted, [BLOCKS, 16, ROWS]), B, assert_trivial=True)


@gluon.jit
def weights_of(words, scales, HALF: gl.constexpr, FORMAT: gl.constexpr, DTYPE: gl.constexpr):
    """The weights of nibbles 0 to 3 (HALF 0) or 4 to 7 (1) of ``words``, [BLOCKS, rows, 16] each."""
    COUNT: gl.constexpr = len(scales)
    first = gl.expand_dims(scales[COUNT * HALF // 2], 2)
    second = gl.expand_dims(scales[COUNT * HALF // 2 + COUNT // 4], 2)
    return decode_half(words, first, first, second, second, HALF, FORMAT, DTYPE, True)


@gluon.constexpr_function
def sums_layout(warps: int, rows: int, columns: int, gated: bool) -> gl.DistributedLinearLayout:
    """[warps, rows, columns] sums of the warps: a thread has the parts of one sum or of a few, with ``gated`` those of
    a gate row and its up row; what threads there are beyond the sums share the parts of one among a warp's lanes.
    """
    parts = turns(1, warps, 0)
    places = [*turns(1, columns, 2), *turns(1, rows // 2 if gated else rows, 1)]
    within = max(0, min(5 + len(parts) - len(places), len(parts), 5))
    threads = parts[len(parts) - within :] + places
    threads += [[0, 0, 0]] * (5 + len(parts) - len(threads))
    registers = (
        parts[: len(parts) - within] + threads[5 + len(parts) :] + ([[0, rows // 2, 0]] if gated else [])
    )
    return gl.DistributedLinearLayout(
        registers, threads[:5], threads[5 : 5 + len(parts)], [], [warps, rows, columns]
    )


@gluon.jit
def warp_sums(total):
    """``total`` [BLOCKS, BLOCK_N, BLOCK_M] summed in each warp's registers: [warps, BLOCK_N, BLOCK_M]."""
    BLOCKS: gl.constexpr = total.shape[0]
    WARPS: gl.constexpr = gl.num_warps()
    if BLOCKS > WARPS:
        total = gl.sum(total.reshape(BLOCKS // WARPS, WARPS, total.shape[1], total.shape[2]), 0)
    return total


@gluon.jit
def row_constants(
    tile, factor_ptr, bias_ptr, N,
    REST: gl.constexpr, BIAS: gl.constexpr, SWIGLU: gl.constexpr, BLOCK_N: gl.constexpr, OUT: gl.constexpr,
):  # fmt: skip
    """What the sums of a tile's rows are multiplied by and what is added to them, if anything; to be read early."""
    row = rows_at(tile, gl.arange(0, BLOCK_N, gl.SliceLayout(1, OUT)), N, BLOCK_N, SWIGLU)
    factor = REST
    if REST != 1.0:
        factor = gl.load(factor_ptr + row) * REST
    bias = 0.0
    if BIAS:
        bias = gl.load(bias_ptr + row).to(gl.float32)
    return factor, bias


@gluon.jit
def places(
    tile, top, out_ptr, M, N, out_stride, OUT: gl.constexpr, SWIGLU: gl.constexpr, BLOCK_N: gl.constexpr,
    BLOCK_M: gl.constexpr,
):  # fmt: skip
    """Where the outputs of a tile of weight are for rows ``top`` and up of activations, and whether they exist;
    ``OUT`` is the layout of the sums.
    """
    WIDTH: gl.constexpr = BLOCK_N // 2 if SWIGLU else BLOCK_N
    place = tile * WIDTH + gl.arange(0, WIDTH, gl.SliceLayout(1, OUT))
    column = top + gl.arange(0, BLOCK_M, gl.SliceLayout(0, OUT))
    at = out_ptr + column.to(gl.int64)[None, :] * out_stride + place[:, None]
    end = N // 2 if SWIGLU else N
    return at, (place < end)[:, None] & (column < M)[None, :]


@gluon.jit
def finish(
    result, factor, bias, before, tile, top, out_ptr, M, N, out_stride,
    REST: gl.constexpr, BIAS: gl.constexpr, SWIGLU: gl.constexpr, ADD: gl.constexpr, DTYPE: gl.constexpr,
):  # fmt: skip
    """Store the sums ``result`` [BLOCK_N, BLOCK_M] of a tile of weight, for rows ``top`` and up of activations; with
    ADD on top of what was there ``before``.
    """
    BLOCK_N: gl.constexpr = result.shape[0]
    BLOCK_M: gl.constexpr = result.shape[1]
    if REST != 1.0:
        result = result * factor[:, None]
    if BIAS:
        result += bias[:, None]
    if SWIGLU:
        gate, up = gl.split(result.reshape(2, BLOCK_N // 2, BLOCK_M).permute(1, 2, 0))
        result = gate / (1.0 + gl.exp(-gate)) * up
    OUT: gl.constexpr = result.type.layout
    at, inside = places(tile, top, out_ptr, M, N, out_stride, OUT, SWIGLU, BLOCK_N, BLOCK_M)
    if ADD:
        # Rounded in between, as a block's output is before it is added.
        result = result.to(DTYPE).to(gl.float32) + before.to(gl.float32)
    gl.store(at, result.to(DTYPE), mask=inside)
