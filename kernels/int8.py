"""Eight-bit weights as they are stored: one launch for few rows, pieces of the weight for many.

The head of a variant has 151,936 rows and is read once a token, so its kernel reads the words as they lie in the
files: no repacking, and no second copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.reference import dequantize_packed

GEMV_ROWS = 8
"""Up to so many rows of activations every row has programs of its own, which read the weight from the cache: on an
H100 a row takes 0.16 ms for the released head, and pieces 2.2 ms whatever their number (bf16: 0.22 ms)."""

PIECE = 16384
"""Rows of the weight that are decoded at a time for more."""


@dataclass(frozen=True)
class Int8Weight:
    """Symmetric eight-bit integers with a scale per row and group of columns.

    ``packed`` int32 [N, K/4], lowest byte first, code + 128 in each; ``scale`` [N, K/g], bfloat16 as a rule. A weight
    is ``code * scale``, rounded once to the scales' dtype (compressed-tensors' ``pack-quantized``).
    """

    packed: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows N and columns K."""
        return self.packed.shape[0], self.packed.shape[1] * 4

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.shape[1] // self.scale.shape[1]

    @property
    def label(self) -> str:
        """For records and tables, for example ``int8-sym-g64``."""
        return f"int8-sym-g{self.group}"

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        return self.packed.nbytes + self.scale.nbytes

    def dense(self) -> Tensor:
        """The weight [N, K] that runs, in the scales' dtype."""
        return dequantize_packed(self.packed, self.scale, None, 8, self.shape[1])


def unsupported(weight: Int8Weight) -> str | None:
    """Why the kernel cannot read ``weight``, or None if it can."""
    if weight.scale.dtype != torch.bfloat16:
        return f"scales in {weight.scale.dtype}, wanted torch.bfloat16"
    if weight.group % 4:
        return f"groups of {weight.group} columns, wanted a multiple of 4"
    if not (weight.packed.is_contiguous() and weight.scale.is_contiguous()):
        return "codes or scales are not contiguous"
    return None


def linear(x: Tensor, weight: Int8Weight, bias: Tensor | None, out: Tensor) -> Tensor:
    """``x W^T + bias`` for rows x [M, K], contiguous along the columns, written to ``out`` [M, N]."""
    if x.shape[0] <= GEMV_ROWS:
        from kernels.int8_triton import gemv

        return gemv(x, weight.packed, weight.scale, bias, out)
    for start in range(0, weight.shape[0], PIECE):
        rows = slice(start, start + PIECE)
        dense = Int8Weight(weight.packed[rows], weight.scale[rows]).dense().to(x.dtype)
        addend = None if bias is None else bias[rows]
        out[:, rows] = torch.nn.functional.linear(x, dense, addend)
    return out
