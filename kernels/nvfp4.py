"""NVFP4 weights as compressed-tensors' ``nvfp4-pack-quantized`` stores them, decoded exactly in pure torch.

A code is ``sign << 3 | index`` into the E2M1 magnitudes; two codes lie in a byte, the even column in the low
nibble. A weight is ``code * scale / global_scale``: the scale is an E4M3 number per 16 columns, the global
scale a float32 number per tensor that *divides*. ``code * scale`` has at most six significant bits, so it is
exact in bfloat16 and in float16: only the division is ever rounded.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

GROUP = 16
"""Columns that share a scale."""

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""E2M1: the values of codes 0 to 7; codes 8 to 15 are their negatives."""


@functools.cache
def code_values(device: torch.device) -> Tensor:
    """The value of each of the 16 codes, float32 on ``device``; made once, for a copy from the host cannot be
    captured in a CUDA graph.
    """
    return torch.tensor([*MAGNITUDES, *(-m for m in MAGNITUDES)], device=device)


def products(packed: Tensor, scale: Tensor) -> Tensor:
    """``code * scale``, exactly, before the division by the global scale.

    Args:
        packed: uint8 [N, K/2], the even column in the low nibble.
        scale: float8_e4m3fn [N, K/16].

    Returns:
        float32 [N, K].
    """
    values = code_values(packed.device)
    codes = torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)
    groups = values[codes.int()].unflatten(-1, (-1, GROUP))
    return (groups * scale.float().unsqueeze(-1)).flatten(-2)


def dequantize_nvfp4(packed: Tensor, scale: Tensor, global_scale: Tensor) -> Tensor:
    """Weights float32 [N, K] of ``packed`` uint8 [N, K/2], ``scale`` float8_e4m3fn [N, K/16] and
    ``global_scale`` float32 [1], which divides.
    """
    return products(packed, scale) / global_scale.float()
