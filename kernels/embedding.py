"""Rows of a table of packed symmetric codes, decoded as they are gathered."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linear import no_kernels
from kernels.reference import dequantize_packed


def gather_reference(
    ids: Tensor, packed: Tensor, scale: Tensor, bits: int, columns: int, dtype: torch.dtype
) -> Tensor:
    """``gather`` in pure torch: the rows are gathered packed."""
    return dequantize_packed(packed[ids], scale[ids], None, bits, columns).to(dtype)


def gather(ids: Tensor, packed: Tensor, scale: Tensor, bits: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Rows [n, K] of ids int64 [n], in ``dtype``; the table itself is never decoded.

    Args:
        ids: rows of the table, on its device.
        packed: int32 [V, K*bits/32], code + 2**(bits-1) in each field, lowest first.
        scale: [V, K/g]; a value is ``code * scale``, rounded once to the scales' dtype.
        bits: 2 to 8; the kernel reads 4 and 8 with bfloat16 scales, torch the others.
        columns: K.
        dtype: of the result.
    """
    known = bits in (4, 8) and columns * bits % 32 == 0 and scale.dtype == torch.bfloat16
    if not known or not ids.numel() or no_kernels(packed.device):
        return gather_reference(ids, packed, scale, bits, columns, dtype)
    from kernels.embedding_triton import gather as launch

    return launch(ids.contiguous(), packed, scale, bits, dtype)
