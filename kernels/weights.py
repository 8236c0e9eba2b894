"""Quantized weights as they lie in a variant's files, and their concatenation into fused ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import nvfp4
from kernels.packing import pack, unpack
from kernels.reference import dequantize_packed


@dataclass(frozen=True)
class Int4Weight:
    """Four-bit integers with a scale, and if asymmetric a zero point, per row and group of columns.

    ``packed`` int32 [N, K/8], lowest nibble first, code + 8 in each; ``scale`` [N, K/g], bfloat16 as a rule;
    ``zero`` int32 [ceil(N/8), K/g], zero + 8 packed along the rows, or None. This is compressed-tensors'
    ``pack-quantized``; a weight is ``(code - zero) * scale``, rounded once to the scales' dtype.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows N and columns K."""
        return self.packed.shape[0], self.packed.shape[1] * 8

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.shape[1] // self.scale.shape[1]

    @property
    def label(self) -> str:
        """For records and tables, for example ``int4-asym-g64``."""
        return f"int4-{'sym' if self.zero is None else 'asym'}-g{self.group}"

    def dense(self) -> Tensor:
        """The weight [N, K] that runs, in the scales' dtype."""
        return dequantize_packed(self.packed, self.scale, self.zero, 4, self.shape[1])


@dataclass(frozen=True)
class Nvfp4Weight:
    """E2M1 codes with an E4M3 scale per 16 columns and a float32 global scale that divides.

    ``packed`` uint8 [N, K/2], the even column in the low nibble; ``scale`` float8_e4m3fn [N, K/16];
    ``global_scales`` holds one (rows, global scale) per part of a fused weight, in the order of the rows.
    """

    packed: Tensor
    scale: Tensor
    global_scales: tuple[tuple[int, float], ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows N and columns K."""
        return self.packed.shape[0], self.packed.shape[1] * 2

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return nvfp4.GROUP

    @property
    def label(self) -> str:
        """For records and tables."""
        return "nvfp4"

    def divisors(self) -> Tensor:
        """The global scale of each row, float32 [N, 1]."""
        parts = [torch.full((rows, 1), value) for rows, value in self.global_scales]
        return torch.cat(parts).to(self.packed.device)

    def dense(self) -> Tensor:
        """The weight float32 [N, K] that runs."""
        return nvfp4.products(self.packed, self.scale) / self.divisors()


StoredWeight = Int4Weight | Nvfp4Weight


def concatenate_int4(weights: Sequence[Int4Weight]) -> Int4Weight:
    """One weight whose rows are those of ``weights`` in turn: q, k, v or gate, up in one launch.

    Raises:
        ValueError: the columns, groups or scale dtypes differ, or only some have zero points.
    """
    _check_alike(weights)
    if len({weight.scale.dtype for weight in weights}) > 1:
        raise ValueError("fusing linears whose scales have different dtypes: " + _labels(weights))
    # Zeros of eight rows share a word, so rows of a part that are no multiple of 8 leave a gap: pack anew.
    zeros = [unpack(weight.zero, 4, weight.shape[0], dim=0) for weight in weights if weight.zero is not None]
    return Int4Weight(
        torch.cat([weight.packed for weight in weights]),
        torch.cat([weight.scale for weight in weights]),
        pack(torch.cat(zeros), 4, dim=0) if zeros else None,
    )


def concatenate_nvfp4(weights: Sequence[Nvfp4Weight]) -> Nvfp4Weight:
    """As ``concatenate_int4``; each part keeps its global scale, equal neighbours are merged.

    Raises:
        ValueError: the columns differ.
    """
    _check_alike(weights)
    parts: list[tuple[int, float]] = []
    for rows, value in (part for weight in weights for part in weight.global_scales):
        if parts and parts[-1][1] == value:
            parts[-1] = (parts[-1][0] + rows, value)
        else:
            parts.append((rows, value))
    # torch has no cat of 8-bit floats on every device; their bytes always concatenate.
    scale = torch.cat([weight.scale.view(torch.uint8) for weight in weights]).view(torch.float8_e4m3fn)
    return Nvfp4Weight(torch.cat([weight.packed for weight in weights]), scale, tuple(parts))


def _labels(weights: Sequence[StoredWeight]) -> str:
    return ", ".join(f"{list(weight.shape)} {weight.label}" for weight in weights)


def _check_alike(weights: Sequence[StoredWeight]) -> None:
    if len({(weight.shape[1], weight.label) for weight in weights}) != 1:
        raise ValueError(
            f"only linears of one format over the same columns can be fused, found {_labels(weights)}"
        )
