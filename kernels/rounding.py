# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Triton kernels of the search for grids and of GPTQ's inner loop; importing this module needs triton.

What they must agree with, in pure torch, are ``searched_grid`` of ``core.quantization.integer`` and ``.nvfp4``, and the
loop of ``core.quantization.gptq``: the same candidates in the same order, numbers rounded at the same places. Sums are
taken in another order, so candidates that differ by less than float32 can tell may come out the other way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Rows of a weight that one program of ``compensate_block`` takes."""


@triton.jit
def _nearest_integer(x):
    # Half to even; beyond 2^22 the sum keeps no fraction, and what is there is clamped after.
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _to_bfloat16(x):
    """float32 rounded to bfloat16, half to even, kept as float32."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _nearest_e2m1(x):
    size = tl.abs(x)
    step = tl.where(size < 2, 0.5, tl.where(size < 4, 1.0, 2.0))
    inverse = tl.where(size < 2, 2.0, tl.where(size < 4, 1.0, 0.5))
    return tl.minimum(tl.maximum(_nearest_integer(x * inverse) * step, -6.0), 6.0)


@triton.jit
def _nearest_e4m3(x):
    """Half to even in the fourth significant bit, or in steps of 2**-9 where that would be finer; at most 448."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -1048576
    # 2**-6 and more have all four.
    rounded = tl.where(
        tl.abs(x) < 0.015625, _nearest_integer(x * 512) / 512, bits.to(tl.float32, bitcast=True)
    )
    return tl.minimum(tl.maximum(rounded, -448.0), 448.0)


@triton.jit
def _steps(x, scale, zero, CODE_MIN: tl.constexpr, CODE_MAX: tl.constexpr):
    """Codes less zero of x [T, g] for scales and zeros [T]."""
    code = _nearest_integer(tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape)) + zero[:, None])
    return tl.minimum(tl.maximum(code, CODE_MIN), CODE_MAX) - zero[:, None]


@triton.jit
def _integer_error(x, h, scale, zero, CODE_MIN: tl.constexpr, CODE_MAX: tl.constexpr):
    runs = _to_bfloat16(_steps(x, scale, zero, CODE_MIN, CODE_MAX) * scale[:, None])
    return tl.sum((runs - x) * (runs - x) * h, 1)


@triton.jit
def _search_integers(weight, importance, shares, scales, zeros, total, groups, candidates, tiny,
                     G: tl.constexpr, TILE: tl.constexpr, CODE_MIN: tl.constexpr, CODE_MAX: tl.constexpr,
                     SYMMETRIC: tl.constexpr, REFITS: tl.constexpr):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = index < total
    lane = tl.arange(0, G)
    x = tl.load(weight + index[:, None] * G + lane[None, :], mask=inside[:, None], other=0.0)
    h = tl.load(importance + (index % groups)[:, None] * G + lane[None, :])
    low = tl.minimum(tl.min(x, 1), 0.0)
    high = tl.maximum(tl.max(x, 1), 0.0)
    SPAN: tl.constexpr = CODE_MAX - CODE_MIN
    best = tl.zeros([TILE], tl.float32) + float("inf")
    best_scale = tl.zeros([TILE], tl.float32)
    best_zero = tl.zeros([TILE], tl.float32)
    for candidate in range(candidates):
        bottom = low * tl.load(shares + 2 * candidate)
        top = high * tl.load(shares + 2 * candidate + 1)
        wide = tl.maximum(-bottom, top) * 2 if SYMMETRIC else top - bottom
        scale = tl.maximum(_to_bfloat16(tl.div_rn(wide, tl.zeros([TILE], tl.float32) + SPAN)), tiny)
        zero = tl.zeros([TILE], tl.float32)
        if not SYMMETRIC:
            zero = _nearest_integer(CODE_MIN - tl.div_rn(bottom, scale))
            zero = tl.minimum(tl.maximum(zero, CODE_MIN), CODE_MAX)
        error = _integer_error(x, h, scale, zero, CODE_MIN, CODE_MAX)
        wins = error < best
        best = tl.where(wins, error, best)
        best_scale = tl.where(wins, scale, best_scale)
        best_zero = tl.where(wins, zero, best_zero)
    for _ in range(REFITS):
        steps = _steps(x, best_scale, best_zero, CODE_MIN, CODE_MAX)
        weighed = h * steps
        fitted = _to_bfloat16(
            tl.div_rn(tl.sum(weighed * x, 1), tl.maximum(tl.sum(weighed * steps, 1), 1e-30))
        )
        fitted = tl.where(fitted > 0, fitted, best_scale)
        error = _integer_error(x, h, fitted, best_zero, CODE_MIN, CODE_MAX)
        wins = error < best
        best = tl.where(wins, error, best)
        best_scale = tl.where(wins, fitted, best_scale)
    tl.store(scales + index, best_scale, mask=inside)
    if not SYMMETRIC:
        tl.store(zeros + index, best_zero.to(tl.int8), mask=inside)


def fits(group: int) -> bool:
    """Whether groups of so many columns can be searched by kernel."""
    return 16 <= group <= 256 and group & (group - 1) == 0


def _tile(group: int) -> int:
    return max(8, 2048 // group)


def search_integers(
    weight: Tensor,
    importance: Tensor,
    shares: Tensor,
    code_min: int,
    code_max: int,
    symmetric: bool,
    refits: int,
) -> tuple[Tensor, Tensor | None]:
    """Scales and zeros that lose least of each group.

    Args:
        weight: float32 [N, K], contiguous.
        importance: float32 [K/g, g], what an error of a column counts.
        shares: float32 [C, 2], shares of a range's ends that are tried; the first of those that lose least is kept.
        code_min: least code; ``code_max`` the greatest.
        symmetric: no zeros.
        refits: how often a scale is fitted to its codes.

    Returns:
        Scales bfloat16 [N, K/g] and zeros int8 [N, K/g] or None.
    """
    groups, size = importance.shape
    shape = (weight.shape[0], groups)
    scales = torch.empty(shape, dtype=torch.float32, device=weight.device)
    zeros = torch.empty(shape, dtype=torch.int8, device=weight.device)
    total, tile = scales.numel(), _tile(size)
    _search_integers[(triton.cdiv(total, tile),)](
        weight, importance.contiguous(), shares, scales, zeros, total, groups, len(shares),
        torch.finfo(torch.bfloat16).tiny, G=size, TILE=tile, CODE_MIN=code_min, CODE_MAX=code_max,
        SYMMETRIC=symmetric, REFITS=refits, num_warps=4,
    )  # fmt: skip
    return scales.bfloat16(), None if symmetric else zeros


@triton.jit
def _search_nvfp4(weight, importance, first, table, factor, scales, total, groups,
                  LEAST: tl.constexpr, COUNT: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = index < total
    lane = tl.arange(0, 16)
    x = tl.load(weight + index[:, None] * 16 + lane[None, :], mask=inside[:, None], other=0.0)
    h = tl.load(importance + (index % groups)[:, None] * 16 + lane[None, :])
    start = tl.load(first + index, mask=inside, other=1).to(tl.int32)
    # A power of two: products and quotients with it are exact.
    raise_by = tl.load(factor)
    lifted = x * raise_by
    best = tl.zeros([TILE], tl.float32) + float("inf")
    best_scale = tl.zeros([TILE], tl.float32)
    # The plain scale comes first, as it is kept where no other loses less.
    for candidate in range(COUNT + 1):
        offset = tl.where(candidate == 0, 0, LEAST + candidate - 1)
        scale = tl.load(table + tl.minimum(tl.maximum(start + offset, 1), 126))
        code = _nearest_e2m1(tl.div_rn(lifted, tl.broadcast_to(scale[:, None], x.shape)))
        miss = tl.div_rn(code * scale[:, None], tl.zeros_like(x) + raise_by) - x
        error = tl.sum(miss * miss * h, 1)
        wins = error < best
        best = tl.where(wins, error, best)
        best_scale = tl.where(wins, scale, best_scale)
    tl.store(scales + index, best_scale, mask=inside)


def search_nvfp4(weight: Tensor, importance: Tensor, first: Tensor, factor: Tensor, offsets: range) -> Tensor:
    """E4M3 scales, as float32 [N, K/16], that lose least of each group.

    Args:
        weight: float32 [N, K], contiguous.
        importance: float32 [K/16, 16], what an error of a column counts.
        first: int16 [N, K/16], E4M3 bytes of the plain scales.
        factor: float32 [1], the global scale.
        offsets: steps of E4M3 around the plain scale that are tried.
    """
    table = torch.arange(127, dtype=torch.uint8, device=weight.device).view(torch.float8_e4m3fn).float()
    scales = torch.empty(first.shape, dtype=torch.float32, device=weight.device)
    total, tile = scales.numel(), _tile(16)
    _search_nvfp4[(triton.cdiv(total, tile),)](
        weight, importance.contiguous(), first.contiguous(), table, factor, scales, total, first.shape[1],
        LEAST=offsets.start, COUNT=len(offsets), TILE=tile, num_warps=4,
    )  # fmt: skip
    return scales


@dataclass(frozen=True)
class Columns:
    """A grid by column, for ``compensate_block``."""

    scale: Tensor
    """float32 [G, N], contiguous."""
    zero: Tensor | None
    """float32 [G, N], contiguous; None where there are no zeros."""
    factor: Tensor | None
    """float32 [1], the global scale of NVFP4, which divides; None for integers."""
    code_min: int
    code_max: int
    element: str = "int"
    """What codes are: ``int``, ``e2m1`` (NVFP4) or ``e4m3`` (FP8)."""


@triton.jit
def _compensate(work, factor, groups, scales, zeros, lift, errors, N, K, start,
                COUNT: tl.constexpr, ROWS: tl.constexpr, ZERO: tl.constexpr, ELEMENT: tl.constexpr,
                CODE_MIN: tl.constexpr, CODE_MAX: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < N
    done = tl.arange(0, BLOCK)
    found = tl.zeros([BLOCK, ROWS], tl.float32)
    raise_by = 1.0
    if ELEMENT == "e2m1":
        raise_by = tl.load(lift)
    for i in range(COUNT):
        # What the columns before took from this one; those behind it have no error yet.
        shares = tl.load(factor + (start + done).to(tl.int64) * K + start + i, mask=done < i, other=0.0)
        own = tl.load(factor + (start + i).to(tl.int64) * K + start + i)
        place = work + (start + i).to(tl.int64) * N + rows
        x = tl.load(place, mask=inside, other=0.0) - tl.sum(shares[:, None] * found, 0)
        tl.store(place, x, mask=inside)
        group = tl.load(groups + start + i).to(tl.int64) * N
        scale = tl.load(scales + group + rows, mask=inside, other=1.0)
        if ELEMENT == "e2m1":
            code = _nearest_e2m1(tl.div_rn(x * raise_by, scale))
            runs = tl.div_rn(code * scale, tl.zeros_like(scale) + raise_by)
        elif ELEMENT == "e4m3":
            runs = _nearest_e4m3(tl.div_rn(x, scale)) * scale
        else:
            zero = tl.zeros_like(scale)
            if ZERO:
                zero = tl.load(zeros + group + rows, mask=inside, other=0.0)
            code = _nearest_integer(tl.div_rn(x, scale) + zero)
            runs = _to_bfloat16((tl.minimum(tl.maximum(code, CODE_MIN), CODE_MAX) - zero) * scale)
        error = (x - runs) / own
        found = tl.where((done == i)[:, None], error[None, :], found)
    place = errors + done[:, None].to(tl.int64) * N + rows[None, :]
    tl.store(place, found, mask=(done < COUNT)[:, None] & inside[None, :])


def compensate_block(
    work: Tensor, factor: Tensor, groups: Tensor, columns: Columns, start: int, stop: int, block: int
) -> Tensor:
    """Round columns ``start`` to ``stop``, each making up for the errors of those before it in the block.

    Args:
        work: float32 [K, N], a column of the weight a row; those of the block become what is rounded to nearest.
        factor: float32 [K, K], upper triangular, contiguous.
        groups: int32 [K], the group of each column.
        columns: the grid.
        start: first column.
        stop: behind the last, at most ``block`` on.
        block: a power of two.

    Returns:
        Errors float32 [stop - start, N], each over its column's diagonal element.
    """
    count, outputs = work.shape
    errors = torch.empty(stop - start, outputs, device=work.device)
    _compensate[(triton.cdiv(outputs, ROWS),)](
        work, factor, groups, columns.scale, columns.zero, columns.factor, errors, outputs, count, start,
        COUNT=stop - start, ROWS=ROWS, ZERO=columns.zero is not None, ELEMENT=columns.element,
        CODE_MIN=columns.code_min, CODE_MAX=columns.code_max, BLOCK=block, num_warps=1,
    )  # fmt: skip
    return errors
