"""What the launches of all matmul kernels hand over alike, told from the weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.decode import INT4, NVFP4, NVFP4_REST
from kernels.tiles import TiledWeight


@dataclass(frozen=True)
class RowNorm:
    """RMSNorm of a row of activations before it is multiplied."""

    weight: Tensor
    """[K], in the activations' dtype."""
    eps: float


def rest(weight: TiledWeight, dtype: torch.dtype) -> float:
    """The power of two that ``kernels.decode``, for activations in ``dtype``, leaves to the sum."""
    return 1.0 if weight.factors is None else NVFP4_REST[str(dtype).removeprefix("torch.")]


def decoding(weight: TiledWeight) -> dict[str, Any]:
    """The constants that say how the words of ``weight`` are decoded."""
    return {"GROUP": weight.group, "FORMAT": INT4 if weight.factors is None else NVFP4}


def row_factors(weight: TiledWeight) -> Tensor:
    """The rows' factors; what a format without them leaves unread still needs a pointer."""
    return weight.scales if weight.factors is None else weight.factors


def partial_sums(weight: TiledWeight, count: int) -> Tensor:
    """Scratch memory for ``count`` sums of parts of K, float32; where there are none, any pointer."""
    device = weight.tickets.device
    return torch.empty(count, dtype=torch.float32, device=device) if count else weight.tickets


def weight_descriptors(weight: TiledWeight, rows: int) -> tuple[Any, Any]:
    """Descriptors by which Hopper's kernels copy the words and the scales of ``rows`` rows of weight at a time."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from kernels.hopper_matmul import SHARED_CODES, SHARED_SCALES

    codes, scales = weight.codes, weight.scales
    return (
        TensorDescriptor(codes, [codes.numel() // 16, 16], [16, 1], [rows, 16], SHARED_CODES.value),
        TensorDescriptor(scales, [scales.numel()], [1], [rows], SHARED_SCALES.value),
    )
