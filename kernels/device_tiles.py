# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""What the Triton kernels share: loading a tile of weights and of activations, and writing a tile of results."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.decode import INT4, decode

_ASK = tl.constexpr("prefetch.global.L2 [$1];\nmov.b32 $0, 0;")


@triton.jit
def rows_at(tile, local, N, BLOCK_N: tl.constexpr, SWIGLU: tl.constexpr):
    """Rows of the weight at the places ``local`` of tile number ``tile``."""
    if SWIGLU:
        pair = tile * (BLOCK_N // 2) + local % (BLOCK_N // 2)
        rows = tl.minimum(pair, N // 2 - 1) + (local // (BLOCK_N // 2)) * (N // 2)
    else:
        # Rows behind the last one repeat it: they are computed and not stored.
        rows = tl.minimum(tile * BLOCK_N + local, N - 1)
    return rows


@triton.jit
def tile_rows(tile, N, BLOCK_N: tl.constexpr, SWIGLU: tl.constexpr):
    """Rows of the weight in tile number ``tile``; with SWIGLU half of them gate rows, half their up rows."""
    return rows_at(tile, tl.arange(0, BLOCK_N), N, BLOCK_N, SWIGLU)


@triton.jit
def ask_for(
    codes_ptr,
    scales_ptr,
    tile,
    first,
    last,
    N,
    K,
    GROUP: tl.constexpr,
    FORMAT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SWIGLU: tl.constexpr,
    THREADS: tl.constexpr,
):
    """Start bringing blocks ``first`` to ``last`` of a tile's weights into the L2 cache.

    Nothing is read into the program, so no earlier kernel has to be waited for.
    """
    lane = tl.arange(0, THREADS)
    # In sectors of 32 bytes, which are 8 words: a row of a block is two.
    SECTORS: tl.constexpr = 2 * BLOCK_N
    end = last * SECTORS
    for start in range(first * SECTORS, end, THREADS):
        sector = tl.minimum(start + lane, end - 1)
        row = rows_at(tile, sector % SECTORS // 2, N, BLOCK_N, SWIGLU)
        at = codes_ptr + (sector // SECTORS * N + row) * 16 + sector % 2 * 8
        tl.inline_asm_elementwise(_ASK, "=r,l", [at], tl.int32, is_pure=False, pack=1)
    PER_WORD: tl.constexpr = GROUP if FORMAT == INT4 else 64
    WORDS: tl.constexpr = 128 // PER_WORD
    SHARE: tl.constexpr = BLOCK_N // 8
    end = tl.minimum(last * WORDS, tl.cdiv(K, PER_WORD)) * SHARE
    for start in range(first * WORDS * SHARE, end, THREADS):
        sector = tl.minimum(start + lane, end - 1)
        row = rows_at(tile, sector % SHARE * 8, N, BLOCK_N, SWIGLU)
        at = scales_ptr + sector // SHARE * N + row
        tl.inline_asm_elementwise(_ASK, "=r,l", [at], tl.int32, is_pure=False, pack=1)


@triton.jit
def _scale_words(
    scales_ptr, rows, block, part: tl.constexpr, N, K, PER_WORD: tl.constexpr, EVEN_K: tl.constexpr
):
    """The words of columns ``PER_WORD * part`` and up of a block, [..., 1]; zeros behind the last column."""
    index = block * (128 // PER_WORD) + part + rows * 0
    if EVEN_K:
        words = tl.load(scales_ptr + index * N + rows)
    else:
        words = tl.load(scales_ptr + index * N + rows, mask=index * PER_WORD < K, other=0)
    return tl.expand_dims(words, -1)


@triton.jit
def weight_block(
    codes_ptr,
    scales_ptr,
    rows,
    block,
    N,
    K,
    GROUP: tl.constexpr,
    FORMAT: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr,
    EVEN_K: tl.constexpr,
    FAST: tl.constexpr,
):
    """Decode blocks of 128 columns, their columns in order.

    Either ``rows`` [BLOCK_N] of one ``block``: a tile [BLOCK_N, 128]; or ``rows`` [1, BLOCK_N] of ``block``
    [BLOCKS, 1]: [BLOCKS, BLOCK_N, 128]. EVEN_K promises that every block is whole.
    """
    words = tl.load(codes_ptr + tl.expand_dims(block * (N * 16) + rows * 16, -1) + tl.arange(0, 16))
    # Columns whose scales are in one word. A pass loads each word once and reads it for all its nibbles.
    PER_WORD: tl.constexpr = GROUP if FORMAT == INT4 else 64
    s0 = _scale_words(scales_ptr, rows, block, 0, N, K, PER_WORD, EVEN_K)
    if PER_WORD == 128:
        s2, s4, s6 = s0, s0, s0
    else:
        s4 = _scale_words(scales_ptr, rows, block, 64 // PER_WORD, N, K, PER_WORD, EVEN_K)
        if PER_WORD == 64:
            s2, s6 = s0, s4
        else:
            s2 = _scale_words(scales_ptr, rows, block, 1, N, K, PER_WORD, EVEN_K)
            s6 = _scale_words(scales_ptr, rows, block, 3, N, K, PER_WORD, EVEN_K)
    n0, n1, n2, n3, n4, n5, n6, n7 = decode(words, s0, s0, s2, s2, s4, s4, s6, s6, FORMAT, DTYPE, FAST)
    # In the registers of a matrix operand the eight tiles already lie in order: the joins move nothing.
    even = tl.join(tl.join(n0, n4), tl.join(n2, n6))
    odd = tl.join(tl.join(n1, n5), tl.join(n3, n7))
    if BLOCKS == 1:
        weight = tl.reshape(tl.permute(tl.join(even, odd), [0, 2, 3, 4, 1]), [BLOCK_N, 128])
    else:
        weight = tl.reshape(tl.permute(tl.join(even, odd), [0, 1, 3, 4, 5, 2]), [BLOCKS, BLOCK_N, 128])
    return weight


@triton.jit
def row_constants(rows, factor_ptr, bias_ptr, REST: tl.constexpr, BIAS: tl.constexpr):
    """What the sums of ``rows`` are multiplied by, besides REST, and what is added to them, if anything.

    As they are stored: who reads them early would wait for them if they were computed with.
    """
    factor = 1.0
    if REST != 1.0:
        factor = tl.load(factor_ptr + rows)
    bias = 0.0
    if BIAS:
        bias = tl.load(bias_ptr + rows)
    return factor, bias


@triton.jit
def _write(
    total,
    tile,
    columns,
    factor,
    bias,
    out_ptr,
    out_stride,
    M,
    N,
    REST: tl.constexpr,
    BIAS: tl.constexpr,
    SWIGLU: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Scale float32 ``total`` [BLOCK_N, BLOCK_M] by rows, add their bias, gate if asked and store it as out[m, n]."""
    if REST != 1.0:
        total = total * (factor * REST)[:, None]
    if BIAS:
        total += bias.to(tl.float32)[:, None]
    if SWIGLU:
        pairs = tl.permute(tl.reshape(total, [2, BLOCK_N // 2, BLOCK_M]), [1, 2, 0])
        gate, up = tl.split(pairs)
        result = gate / (1.0 + tl.exp(-gate)) * up
        place = tile * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        width = N // 2
    else:
        result = total
        place = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        width = N
    inside = (place < width)[:, None] & (columns < M)[None, :]
    at = columns.to(tl.int64)[None, :] * out_stride + place[:, None]
    tl.store(out_ptr + at, result.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def finish(
    total,
    tile,
    slot,
    split,
    splits,
    columns,
    factor,
    bias,
    out_ptr,
    partial_ptr,
    ticket_ptr,
    out_stride,
    M,
    N,
    REST: tl.constexpr,
    BIAS: tl.constexpr,
    SWIGLU: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    THREADS: tl.constexpr,
):
    """Write a tile; with SPLIT, the last of ``splits`` programs of tile ``slot`` adds their parts in order.

    ``factor`` and ``bias`` as ``row_constants`` tells them; ``ticket_ptr`` holds a zero per slot before and after;
    ``partial_ptr`` float32 [slots, splits, BLOCK_N, BLOCK_M]. The order of addition is fixed, so results do not
    change from call to call.
    """
    if SPLIT:
        SIZE: tl.constexpr = BLOCK_N * BLOCK_M
        inner = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        base = partial_ptr + slot.to(tl.int64) * splits * SIZE
        tl.store(base + split * SIZE + inner, total)
        # Every thread's part must be on its way before the one thread that draws the ticket releases it.
        tl.debug_barrier()
        ticket = tl.atomic_add(ticket_ptr + slot, 1, sem="acq_rel", scope="gpu")
        if ticket == splits - 1:
            whole = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            # As many loads under way at once as the registers hold.
            ROUND: tl.constexpr = max(1, min(8, 64 * THREADS // SIZE))
            for start in range(0, splits, ROUND):
                for i in tl.static_range(ROUND):
                    left = splits - start - i
                    # .cg: from the L2 cache, where the other programs' parts are; not from a stale L1.
                    at = base + (start + i) * SIZE + inner
                    whole += tl.load(at, mask=inner < left * SIZE, other=0.0, cache_modifier=".cg")
            tl.store(ticket_ptr + slot, 0)
            _write(
                whole, tile, columns, factor, bias, out_ptr, out_stride, M, N,
                REST, BIAS, SWIGLU, BLOCK_N, BLOCK_M,
            )  # fmt: skip
    else:
        _write(
            total, tile, columns, factor, bias, out_ptr, out_stride, M, N,
            REST, BIAS, SWIGLU, BLOCK_N, BLOCK_M,
        )  # fmt: skip
