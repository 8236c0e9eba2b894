"""Eight-bit floating point for weights and activations: twice bfloat16's arithmetic on Hopper, at a price.

A weight [N, K] is stored as E4M3 with one float32 scale per row (output channel), fixed when it is made; the
activations [M, K] are rounded to E4M3 anew at every call with one float32 scale per row (token). The product is
formed by the vendor's library with both scales applied to its float32 sums. Unlike the four-bit kernels, which
round only weights, this rounds activations too, to four significant bits.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.capability import capability

LARGEST = 448.0
"""Of E4M3; what the largest element of a row becomes."""


@dataclass(frozen=True)
class Fp8Weight:
    """A weight [N, K]: ``codes`` float8_e4m3fn [N, K] times ``scale`` float32 [N]."""

    codes: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows N and columns K."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        return self.codes.nbytes + self.scale.nbytes

    def dense(self) -> Tensor:
        """The weight float32 [N, K] that runs."""
        return self.codes.float() * self.scale.unsqueeze(1)


def quantize_rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """``quantize_rows`` in pure torch."""
    wide = x.float()
    # A row of zeros has no scale; any positive one gives its zeros back.
    scale = wide.abs().amax(dim=1).clamp_min(1e-20) / LARGEST
    codes = (wide / scale.unsqueeze(1)).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return codes, scale


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of ``x`` [M, K] as float8_e4m3fn [M, K] times float32 [M], the row's largest magnitude / 448.

    One launch on an NVIDIA GPU with Triton; pure torch elsewhere.
    """
    if x.is_cuda and importlib.util.find_spec("triton") and x.numel():
        from kernels.fp8_triton import launch_quantize_rows

        return launch_quantize_rows(x)
    return quantize_rows_reference(x)


def quantize_weight(weight: Tensor) -> Fp8Weight:
    """``weight`` [N, K], any floating dtype, rounded to nearest with a scale per output channel."""
    return Fp8Weight(*quantize_rows_reference(weight))


def supported(device: torch.device) -> str | None:
    """Why ``fp8_linear`` cannot use FP8 matrix units on ``device``, or None."""
    if device.type != "cuda" or torch.version.hip:
        return f"row-wise FP8 products are NVIDIA's, not {device.type}'s"
    if capability(device) < (9, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 9.0"
    return None


def fp8_linear_reference(x: Tensor, weight: Fp8Weight, bias: Tensor | None = None) -> Tensor:
    """``fp8_linear`` in pure torch: both operands rounded, multiplied in float32."""
    codes, scale = quantize_rows_reference(x)
    out = (codes.float() @ weight.codes.float().t()) * scale.unsqueeze(1) * weight.scale
    if bias is not None:
        out += bias.float()
    return out.to(x.dtype)


def fp8_linear(x: Tensor, weight: Fp8Weight, bias: Tensor | None = None) -> Tensor:
    """``x W^T + bias`` with ``x`` [M, K] rounded to FP8 by rows: [M, N] in ``x``'s dtype.

    On Hopper and newer the FP8 matrix units multiply bfloat16 activations whose K and N are multiples of 16;
    everything else runs in pure torch, to the same definition.

    Raises:
        ValueError: ``x`` and ``weight`` do not fit.
    """
    rows, columns = weight.shape
    if x.dim() != 2 or x.shape[1] != columns:
        raise ValueError(
            f"activations {list(x.shape)} do not fit a weight {[rows, columns]}: wanted [M, {columns}]"
        )
    fits = x.dtype == torch.bfloat16 and rows % 16 == 0 and columns % 16 == 0 and x.shape[0] > 0
    if not fits or supported(x.device) is not None:
        return fp8_linear_reference(x, weight, bias)
    codes, scale = quantize_rows(x)
    return torch._scaled_mm(
        codes,
        weight.codes.t(),
        scale_a=scale.unsqueeze(1),
        scale_b=weight.scale.unsqueeze(0),
        bias=bias,
        out_dtype=x.dtype,
        use_fast_accum=True,
    )
