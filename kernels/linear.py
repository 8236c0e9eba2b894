"""Which implementation of the quantized linear runs on which device."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import reference

REFERENCE = "torch-reference"


def kernel_path(device: torch.device) -> str:
    """Name of the implementation that ``quantized_linear`` uses on ``device``, for run manifests."""
    return f"{REFERENCE}:{device.type}"


def quantized_linear(
    x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, bits: int
) -> Tensor:
    """A linear layer over packed group-quantized weights; shapes and dtypes as in ``kernels.reference``."""
    return reference.quantized_linear(x, packed, scale, zero, bias, bits)
