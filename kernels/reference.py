"""The pure-torch path of a group-quantized linear: what every faster kernel must agree with."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.packing import unpack


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Weights of int8 ``codes`` [N, K]: ``(codes - zero) * scale`` per row and group of ``K // G`` columns.

    Args:
        codes: int8 [N, K].
        scale: [N, G] in the dtype it is stored in, which is the dtype of the result: the product is rounded
            once, to it, as compressed-tensors does.
        zero: int8 [N, G], or None for a symmetric format.
    """
    rows, groups = scale.shape
    steps = codes.reshape(rows, groups, -1)
    if zero is not None:
        # Differences of 8-bit codes leave int8; int16 holds them, and bfloat16 holds them exactly.
        steps = steps.to(torch.int16) - zero.unsqueeze(-1)
    return steps.to(scale.dtype).mul_(scale.unsqueeze(-1)).view(rows, -1)


def dequantize_packed(packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, columns: int) -> Tensor:
    """Weights [N, ``columns``] in ``scale``'s dtype, from packed codes [N, words] and zeros [words, G]."""
    codes = unpack(packed, bits, columns)
    zeros = None if zero is None else unpack(zero, bits, scale.shape[0], dim=0)
    return dequantize(codes, scale, zeros)


def quantized_linear(
    x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, bits: int
) -> Tensor:
    """``x @ W.T + bias`` in ``x``'s dtype, ``W`` dequantized exactly as stored; x [..., K] to [..., N]."""
    weight = dequantize_packed(packed, scale, zero, bits, x.shape[-1])
    return torch.nn.functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
