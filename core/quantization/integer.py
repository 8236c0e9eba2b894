"""The integer quantizer: the one that the search scores, the files store and the runtime undoes.

Semantics are those of compressed-tensors (``calculate_qparams``): the range of a group always includes
zero, the zero point is rounded and clamped, a weight is ``(code - zero) * scale``. The scale is rounded to
the dtype it is stored in before zeros and codes are chosen, so that both suit the scale that will be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.quantization.scheme import CHANNEL, Scheme
from kernels.reference import dequantize

try:
    from kernels import rounding as kernels
except ImportError:
    kernels = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Quantized:
    """A weight [N, K] as codes int8 [N, K], scales [N, K/g] in the stored dtype, zeros int8 [N, K/g] or
    None.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    scheme: Scheme

    def dequantize(self) -> Tensor:
        """The weight [N, K] that runs, in the scales' dtype."""
        return dequantize(self.codes, self.scale, self.zero)

    def split(self, rows: Sequence[int]) -> list[Quantized]:
        """The weights that were stacked, each of so many of ``rows``."""
        sizes = list(rows)
        zeros = [None] * len(sizes) if self.zero is None else self.zero.split(sizes)
        parts = zip(self.codes.split(sizes), self.scale.split(sizes), zeros, strict=True)
        return [Quantized(codes, scale, zero, self.scheme) for codes, scale, zero in parts]


@dataclass(frozen=True)
class IntegerGrid:
    """The values that a weight [N, K] may take: its scales [N, K/g] and zeros int8 [N, K/g] or None, codes free."""

    scale: Tensor
    zero: Tensor | None
    scheme: Scheme

    def encode(self, weight: Tensor) -> Quantized:
        """Round float32 ``weight`` [N, K] to the nearest code of each group's scale and zero."""
        codes = self._codes(in_groups(weight, self.scheme), slice(None), 1)
        return Quantized(codes.to(torch.int8).flatten(-2), self.scale, self.zero, self.scheme)

    def nearest(self, weight: Tensor, column: int) -> Tensor:
        """What column ``column`` becomes if it holds ``weight`` float32 [N]: ``encode`` and ``dequantize`` of it."""
        group = 0 if self.scheme.group_size == CHANNEL else column // self.scheme.group_size
        steps = self._codes(weight, group, 0)
        if self.zero is not None:
            steps = steps - self.zero[:, group]
        # The product is rounded once to the scales' dtype, as kernels.reference does.
        return (steps.to(self.scale.dtype) * self.scale[:, group]).float()

    def columns(self) -> kernels.Columns:
        """The same grid for the kernel that rounds blocks of columns; scales must be bfloat16."""
        zero = None if self.zero is None else self.zero.t().float().contiguous()
        scale = self.scale.t().float().contiguous()
        return kernels.Columns(scale, zero, None, self.scheme.code_min, self.scheme.code_max)

    def _codes(self, weight: Tensor, groups: int | slice, spread: int) -> Tensor:
        """Codes as float32 of ``weight``: [N] of one group, or [N, G, g] of all with ``spread`` 1."""
        scale = self.scale[:, groups].float()
        steps = weight / (scale.unsqueeze(-1) if spread else scale)
        if self.zero is not None:
            zero = self.zero[:, groups].float()
            steps = steps + (zero.unsqueeze(-1) if spread else zero)
        return steps.round_().clamp_(self.scheme.code_min, self.scheme.code_max)


def in_groups(weight: Tensor, scheme: Scheme) -> Tensor:
    """``weight`` [N, K] as [N, K/g, g]."""
    return weight.unflatten(-1, (-1, scheme.width(weight.shape[-1])))


def limits(weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Least and greatest weight of each group [N, K/g] of float32 ``weight`` [N, K], zero included."""
    groups = in_groups(weight, scheme)
    return groups.amin(-1).clamp(max=0.0), groups.amax(-1).clamp(min=0.0)


def grid_of(low: Tensor, high: Tensor, scheme: Scheme, scale_dtype: torch.dtype) -> IntegerGrid:
    """The grid whose groups span ``low`` to ``high`` [N, K/g], with scales in ``scale_dtype``."""
    span = scheme.code_max - scheme.code_min
    wide = torch.maximum(-low, high) * 2 if scheme.symmetric else high - low
    # A group of zeros, or one whose step underflows, still needs a step to divide by.
    scale = (wide / span).to(scale_dtype).clamp(min=torch.finfo(scale_dtype).tiny)
    if scheme.symmetric:
        return IntegerGrid(scale, None, scheme)
    zero = torch.round(scheme.code_min - low / scale.float()).clamp(scheme.code_min, scheme.code_max)
    return IntegerGrid(scale, zero.to(torch.int8), scheme)


def plain_grid(weight: Tensor, scheme: Scheme, scale_dtype: torch.dtype = torch.bfloat16) -> IntegerGrid:
    """The grid that spans the range of each group of float32 ``weight`` [N, K], K a multiple of the group."""
    return grid_of(*limits(weight, scheme), scheme, scale_dtype)


def quantize(weight: Tensor, scheme: Scheme, scale_dtype: torch.dtype = torch.bfloat16) -> Quantized:
    """Quantize float32 ``weight`` [N, K] by the range of each group."""
    return plain_grid(weight, scheme, scale_dtype).encode(weight)


SHARES = tuple(1.0 - 0.03 * step for step in range(21))
"""Shares of a symmetric group's range that are tried, 1 down to 0.4."""

SIDES = tuple(1.0 - 0.12 * step for step in range(6))
"""Shares of each side of an asymmetric group's range, tried in all pairs."""

REFITS = 3
"""How often scales are fitted anew to the codes they led to."""


def searched_grid(
    weight: Tensor, importance: Tensor, scheme: Scheme, scale_dtype: torch.dtype = torch.bfloat16
) -> IntegerGrid:
    """The grid that loses least of each group, where an error of column j counts ``importance[j]``.

    Ranges with either end drawn towards zero are tried, then scales are fitted to the codes by least squares;
    a group takes a change only if its weighted error falls, so none ends above that of ``plain_grid``.

    Args:
        weight: float32 [N, K].
        importance: float32 [K], not negative: the mean square of what each column multiplies.
        scheme: the stored format.
        scale_dtype: dtype of the scales.
    """
    h = in_groups(importance.clamp(min=importance.mean() * 1e-6 + 1e-30), scheme)
    sides = (
        [(share, share) for share in SHARES] if scheme.symmetric else [(a, b) for a in SIDES for b in SIDES]
    )
    if weight.is_cuda and kernels is not None and kernels.fits(h.shape[-1]):
        shares = torch.tensor(sides, device=weight.device)
        found = kernels.search_integers(
            weight.contiguous(), h, shares, scheme.code_min, scheme.code_max, scheme.symmetric, REFITS
        )
        return IntegerGrid(*found, scheme)
    groups = in_groups(weight, scheme)
    low, high = limits(weight, scheme)
    best = grid_of(low, high, scheme, scale_dtype)
    error = _error(best, groups, h)
    for below, above in sides[1:]:
        best, error = _better(best, error, grid_of(low * below, high * above, scheme, scale_dtype), groups, h)
    for _ in range(REFITS):
        steps = in_groups(best.encode(weight).codes, scheme).float()
        if best.zero is not None:
            steps -= best.zero.float().unsqueeze(-1)
        top, bottom = (h * groups * steps).sum(-1), (h * steps * steps).sum(-1)
        fitted = (top / bottom.clamp(min=1e-30)).to(scale_dtype)
        fitted = torch.where(fitted > 0, fitted, best.scale)
        best, error = _better(best, error, replace(best, scale=fitted), groups, h)
    return best


def _error(grid: IntegerGrid, groups: Tensor, h: Tensor) -> Tensor:
    """Weighted squared error of each group [N, K/g] of ``groups`` [N, K/g, g]: that of ``encode`` and
    ``dequantize``, without the way through small integers.
    """
    scale = grid.scale.float().unsqueeze(-1)
    steps = groups / scale
    if grid.zero is not None:
        steps += grid.zero.unsqueeze(-1)
    steps.round_().clamp_(grid.scheme.code_min, grid.scheme.code_max)
    if grid.zero is not None:
        steps -= grid.zero.unsqueeze(-1)
    runs = steps.mul_(scale)
    if grid.scale.dtype != runs.dtype:
        runs = runs.to(grid.scale.dtype).float()
    return torch.einsum("ngj,gj->ng", runs.sub_(groups).square_(), h)


def _better(
    best: IntegerGrid, error: Tensor, other: IntegerGrid, groups: Tensor, h: Tensor
) -> tuple[IntegerGrid, Tensor]:
    """Group by group whichever loses less."""
    found = _error(other, groups, h)
    wins = found < error
    scale = torch.where(wins, other.scale, best.scale)
    zero = None
    if best.zero is not None and other.zero is not None:
        zero = torch.where(wins, other.zero, best.zero)
    return IntegerGrid(scale, zero, best.scheme), torch.where(wins, found, error)
