"""The NVFP4 quantizer: E2M1 codes, an E4M3 scale per 16 columns, one float32 global scale for a group of linears.

A weight is ``code * scale / global``. The global scale is a power of two, so every product and quotient is exact:
the weight that runs is the same number in float32 and in bfloat16, in whatever order a reader multiplies. Since
E4M3 is a floating format, nothing is lost by it: scales only have to stay clear of its ends. Linears that
runtimes fuse (q, k, v; gate, up) are stacked before they come here and so share one global scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.quantization.scheme import NVFP4, Scheme
from kernels.nvfp4 import GROUP, MAGNITUDES, dequantize_nvfp4

try:
    from kernels import rounding as kernels
except ImportError:
    kernels = None  # type: ignore[assignment]

GREATEST_CODE = MAGNITUDES[-1]
GREATEST_SCALE = 448.0
"""Of E4M3, byte 0x7E."""

HEADROOM = 4.0
"""The group with the greatest weight can still have its scale fitted to this code instead of the greatest."""

OFFSETS = range(-6, 9)
"""Steps of E4M3 around ``greatest weight / 6`` that are tried: 0.7 times to twice it. Four Over Six (arXiv
2512.02010) is the choice between two of them, 1 and 1.5 times."""

_ONE_BYTE = 1
"""The least scale, 2**-9: none is zero, so there is always something to divide by."""
_LAST_BYTE = 0x7E


@dataclass(frozen=True)
class Nvfp4Quantized:
    """A weight [N, K]: ``packed`` uint8 [N, K/2], ``scale`` float8_e4m3fn [N, K/16], ``global_scale`` float32 [1]."""

    packed: Tensor
    scale: Tensor
    global_scale: Tensor

    @property
    def scheme(self) -> Scheme:
        """Its format."""
        return NVFP4

    def dequantize(self) -> Tensor:
        """The weight bfloat16 [N, K] that runs; equal to its float32 value."""
        return dequantize_nvfp4(self.packed, self.scale, self.global_scale).bfloat16()

    def split(self, rows: Sequence[int]) -> list[Nvfp4Quantized]:
        """The weights that were stacked, each of so many of ``rows``; all keep the global scale."""
        sizes = list(rows)
        scales = self.scale.view(torch.uint8).split(sizes)
        return [
            Nvfp4Quantized(packed, scale.view(torch.float8_e4m3fn), self.global_scale)
            for packed, scale in zip(self.packed.split(sizes), scales, strict=True)
        ]


@dataclass(frozen=True)
class Nvfp4Grid:
    """The values that a weight [N, K] may take: ``scale`` float32 [N, K/16] of E4M3 values, ``global_scale`` [1]."""

    scale: Tensor
    global_scale: Tensor

    def encode(self, weight: Tensor) -> Nvfp4Quantized:
        """Round float32 ``weight`` [N, K] to the nearest code of each group's scale."""
        values = nearest_codes(self._steps(weight).flatten(-2))
        size = values.abs()
        # Magnitudes 0, 0.5 .. 2 are in steps of a half, 2 .. 4 of one, then there is 6.
        index = torch.where(size < 2, 2 * size, torch.where(size < 6, size + 2, 7.0)).to(torch.uint8)
        codes = index | (values < 0).to(torch.uint8) << 3
        packed = codes[:, 0::2] | codes[:, 1::2] << 4
        return Nvfp4Quantized(packed.contiguous(), self.scale.to(torch.float8_e4m3fn), self.global_scale)

    def nearest(self, weight: Tensor, column: int) -> Tensor:
        """What column ``column`` becomes if it holds ``weight`` float32 [N]: ``encode`` and ``dequantize`` of it."""
        scale = self.scale[:, column // GROUP]
        return nearest_codes(weight * self.global_scale / scale) * scale / self.global_scale

    def columns(self) -> kernels.Columns:
        """The same grid for the kernel that rounds blocks of columns."""
        return kernels.Columns(self.scale.t().contiguous(), None, self.global_scale, 0, 0, "e2m1")

    def error(self, weight: Tensor, h: Tensor) -> Tensor:
        """Squared error of each group [N, K/16] where column j counts ``h[j]``; ``h`` float32 [K/16, 16]."""
        runs = nearest_codes(self._steps(weight)) * self.scale.unsqueeze(-1) / self.global_scale
        return torch.einsum("ngj,gj->ng", (runs - weight.unflatten(-1, (-1, GROUP))).square_(), h)

    def _steps(self, weight: Tensor) -> Tensor:
        return weight.unflatten(-1, (-1, GROUP)) * self.global_scale / self.scale.unsqueeze(-1)


def nearest_codes(x: Tensor) -> Tensor:
    """The E2M1 value nearest to each of ``x``, float32; a tie goes to the even code, as in compressed-tensors."""
    size = x.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return ((x / step).round_() * step).clamp_(-GREATEST_CODE, GREATEST_CODE)


def global_scale(stacked: Tensor) -> Tensor:
    """The power of two float32 [1] that takes the scales of ``stacked`` [N, K] as high as E4M3 and headroom allow."""
    greatest = stacked.abs().amax().clamp(min=1e-30).double()
    return torch.exp2(torch.floor(torch.log2(GREATEST_SCALE * HEADROOM / greatest))).float().view(1)


def plain_grid(weight: Tensor) -> Nvfp4Grid:
    """The grid whose greatest code is the greatest weight of each group of float32 ``weight`` [N, K]."""
    factor = global_scale(weight)
    wanted = weight.unflatten(-1, (-1, GROUP)).abs().amax(-1) * factor / GREATEST_CODE
    return Nvfp4Grid(_scales(_bytes(wanted)), factor)


def searched_grid(weight: Tensor, importance: Tensor) -> Nvfp4Grid:
    """The grid that loses least of each group, where an error of column j counts ``importance[j]``.

    Every E4M3 scale in ``OFFSETS`` around the plain one is tried; a group takes another only if its weighted
    error falls.

    Args:
        weight: float32 [N, K].
        importance: float32 [K], not negative: the mean square of what each column multiplies.
    """
    h = importance.clamp(min=importance.mean() * 1e-6 + 1e-30).view(-1, GROUP)
    plain = plain_grid(weight)
    first = _bytes(plain.scale)
    if weight.is_cuda and kernels is not None:
        found = kernels.search_nvfp4(weight.contiguous(), h, first, plain.global_scale, OFFSETS)
        return replace(plain, scale=found)
    best, error = plain.scale, plain.error(weight, h)
    for offset in OFFSETS:
        scale = _scales((first + offset).clamp(_ONE_BYTE, _LAST_BYTE))
        found = replace(plain, scale=scale).error(weight, h)
        wins = found < error
        best, error = torch.where(wins, scale, best), torch.where(wins, found, error)
    return replace(plain, scale=best)


def _bytes(scale: Tensor) -> Tensor:
    """E4M3 bytes, as int16, of the values nearest to ``scale``; they are in the order of the values."""
    found = scale.clamp(max=GREATEST_SCALE).to(torch.float8_e4m3fn).view(torch.uint8)
    return found.to(torch.int16).clamp(_ONE_BYTE, _LAST_BYTE)


def _scales(found: Tensor) -> Tensor:
    """float32 values of E4M3 bytes."""
    return found.to(torch.uint8).view(torch.float8_e4m3fn).float()
