"""The integer quantizer: the one that the search scores, the files store and the runtime undoes.

Semantics are those of compressed-tensors (``calculate_qparams``): the range of a group always includes
zero, the zero point is rounded and clamped, a weight is ``(code - zero) * scale``. The scale is rounded to
the dtype it is stored in before zeros and codes are chosen, so that both suit the scale that will be used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.quantization.scheme import Scheme
from kernels.reference import dequantize


@dataclass(frozen=True)
class Quantized:
    """A weight [N, K] as codes int8 [N, K], scales [N, K/g] in the stored dtype, zeros int8 [N, K/g] or
    None.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    scheme: Scheme

    def dequantize(self) -> Tensor:
        """The weight [N, K] that runs, in the scales' dtype."""
        return dequantize(self.codes, self.scale, self.zero)


def fit_range(weight: Tensor, scheme: Scheme, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Scales and zeros from the least and greatest weight of each group.

    Args:
        weight: float32 [N, K], K a multiple of the group.
        scheme: bits, group and symmetry.
        scale_dtype: dtype the scales are stored in, bfloat16 as a rule.

    Returns:
        scales [N, K/g] in ``scale_dtype``; zeros int8 [N, K/g], or None if symmetric.
    """
    groups = weight.unflatten(-1, (-1, scheme.group_size))
    low = groups.amin(-1).clamp(max=0.0)
    high = groups.amax(-1).clamp(min=0.0)
    span = scheme.code_max - scheme.code_min
    wide = torch.maximum(-low, high) * 2 if scheme.symmetric else high - low
    # A group of zeros, or one whose step underflows, still needs a step to divide by.
    scale = (wide / span).to(scale_dtype).clamp(min=torch.finfo(scale_dtype).tiny)
    if scheme.symmetric:
        return scale, None
    zero = torch.round(scheme.code_min - low / scale.float()).clamp(scheme.code_min, scheme.code_max)
    return scale, zero.to(torch.int8)


def encode(weight: Tensor, scale: Tensor, zero: Tensor | None, scheme: Scheme) -> Quantized:
    """Round float32 ``weight`` [N, K] to the nearest code of each group's scale and zero."""
    steps = weight.unflatten(-1, (-1, scheme.group_size)) / scale.float().unsqueeze(-1)
    if zero is not None:
        steps += zero.float().unsqueeze(-1)
    codes = steps.round_().clamp_(scheme.code_min, scheme.code_max).to(torch.int8)
    return Quantized(codes.flatten(-2), scale, zero, scheme)


def quantize(weight: Tensor, scheme: Scheme, scale_dtype: torch.dtype = torch.bfloat16) -> Quantized:
    """Quantize float32 ``weight`` [N, K] by the range of each group."""
    scale, zero = fit_range(weight, scheme, scale_dtype)
    return encode(weight, scale, zero, scheme)


def roundtrip(weight: Tensor, scheme: Scheme, scale_dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """What ``weight`` [N, K] becomes when stored and read back, as float32."""
    return quantize(weight, scheme, scale_dtype).dequantize().float()
