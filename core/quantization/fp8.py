"""The FP8 quantizer: E4M3 codes with a float32 scale per row (output channel).

Activations are rounded to E4M3 too when the weight runs (``kernels.fp8``). Their rows have scales of their own, found
anew each time, so there is nothing about them to choose. Losses count what it costs (``Rounding.seen``); the hidden
states that ``streams`` carries along do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.quantization.scheme import FP8, Scheme
from kernels.fp8 import Fp8Weight, scales_of, to_codes

try:
    from kernels import rounding as kernels
except ImportError:
    kernels = None  # type: ignore[assignment]

SHARES = tuple(2.0 ** (eighths / 8) for eighths in range(8))
"""Multiples of the plain scale that are tried. E4M3's steps double with every power of two, so that beyond twice the
plain scale they would come round again; below it, the greatest weight would be cut off."""


@dataclass(frozen=True)
class Fp8Quantized:
    """A weight [N, K]: ``codes`` float8_e4m3fn [N, K], ``scale`` float32 [N, 1]."""

    codes: Tensor
    scale: Tensor

    @property
    def scheme(self) -> Scheme:
        """Its format."""
        return FP8

    def dequantize(self) -> Tensor:
        """The weight float32 [N, K] that runs."""
        return Fp8Weight(self.codes, self.scale.view(-1)).dense()

    def split(self, rows: Sequence[int]) -> list[Fp8Quantized]:
        """The weights that were stacked, each of so many of ``rows``."""
        sizes = list(rows)
        parts = zip(self.codes.split(sizes), self.scale.split(sizes), strict=True)
        return [Fp8Quantized(codes, scale) for codes, scale in parts]


@dataclass(frozen=True)
class Fp8Grid:
    """The values that a weight [N, K] may take: ``scale`` float32 [N, 1]."""

    scale: Tensor

    def encode(self, weight: Tensor) -> Fp8Quantized:
        """Round float32 ``weight`` [N, K] to the nearest codes."""
        return Fp8Quantized(to_codes(weight, self.scale), self.scale)

    def nearest(self, weight: Tensor, column: int) -> Tensor:
        """What a column becomes if it holds ``weight`` float32 [N]: ``encode`` and ``dequantize`` of it."""
        return self.encode(weight.unsqueeze(1)).dequantize().squeeze(1)

    def columns(self) -> kernels.Columns:
        """The same grid for the kernel that rounds blocks of columns."""
        return kernels.Columns(self.scale.t().contiguous(), None, None, 0, 0, "e4m3")

    def error(self, weight: Tensor, importance: Tensor) -> Tensor:
        """Squared error of each row [N] where column j counts ``importance[j]``."""
        return (self.encode(weight).dequantize() - weight).square_() @ importance


def plain_grid(weight: Tensor) -> Fp8Grid:
    """The grid whose greatest code is the greatest weight of each row of float32 ``weight`` [N, K]."""
    return Fp8Grid(scales_of(weight).unsqueeze(1))


def searched_grid(weight: Tensor, importance: Tensor) -> Fp8Grid:
    """The grid that loses least of each row, of the plain one and the others of ``SHARES``.

    Args:
        weight: float32 [N, K].
        importance: float32 [K], not negative: the mean square of what each column multiplies.
    """
    h = importance.clamp(min=importance.mean() * 1e-6 + 1e-30)
    plain = plain_grid(weight).scale
    grids = [Fp8Grid(plain * share) for share in SHARES]
    # argmin takes the first of those that lose alike: the plain one stays unless another is better.
    best = torch.stack([grid.error(weight, h) for grid in grids]).argmin(0)
    return Fp8Grid(plain * torch.tensor(SHARES, device=plain.device)[best].unsqueeze(1))
