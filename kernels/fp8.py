"""Eight-bit floating point for weights and activations: twice bfloat16's arithmetic on Hopper, at a price.

A weight [N, K] is stored as E4M3 with one float32 scale per row (output channel), fixed when it is made; the
activations [M, K] are rounded to E4M3 anew at every call with one float32 scale per row (token). The product is
formed by the vendor's library with both scales applied to its float32 sums. Unlike the four-bit kernels, which
round only weights, this rounds activations too, to four significant bits.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.capability import capability
from kernels.decoder_ops import swiglu

LARGEST = 448.0
"""Of E4M3; what the largest element of a row becomes."""


@dataclass(frozen=True)
class Fp8Weight:
    """A weight [N, K]: ``codes`` float8_e4m3fn [N, K] times ``scale`` float32 [N]."""

    codes: Tensor
    scale: Tensor
    wide: Tensor | None = None
    """``codes`` as float32, where memory is no matter: what pure torch multiplies by."""

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
        return to_float(self.codes) * self.scale.unsqueeze(1)


def scales_of(x: Tensor) -> Tensor:
    """The scales float32 [M] that take the largest magnitude of each row of ``x`` [M, K] to E4M3's."""
    # A row of zeros has no scale; any positive one gives its zeros back.
    return x.float().abs().amax(dim=1).clamp_min(1e-20) / LARGEST


def to_codes(x: Tensor, scale: Tensor) -> Tensor:
    """``x`` over ``scale``, which broadcast, rounded to float8_e4m3fn, half to even; what is beyond it is cut off."""
    # The division can round to a hair above 448, which E4M3 does not hold.
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def to_float(codes: Tensor) -> Tensor:
    """The numbers float32 that ``codes`` float8_e4m3fn are."""
    if codes.device.type != "cpu":
        return codes.float()
    # torch converts them one by one there, at a quarter of the speed of looking them up.
    return _values().index_select(0, codes.view(torch.uint8).int().flatten()).view(codes.shape)


@functools.cache
def _values() -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


def quantize_rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """``quantize_rows`` in pure torch."""
    scale = scales_of(x)
    return to_codes(x, scale.unsqueeze(1)), scale


def round_rows(x: Tensor) -> Tensor:
    """``x`` [..., K] as it is worth once ``quantize_rows`` has rounded it, in its dtype."""
    codes, scale = quantize_rows_reference(x.reshape(-1, x.shape[-1]))
    return (to_float(codes) * scale.unsqueeze(1)).to(x.dtype).view(x.shape)


def in_one_launch(device: torch.device) -> bool:
    """Whether Triton can round to E4M3 on ``device``: an NVIDIA GPU of compute capability 8.9 or newer."""
    if device.type != "cuda" or not importlib.util.find_spec("triton"):
        return False
    return capability(device) >= (8, 9)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of ``x`` [M, K] as float8_e4m3fn [M, K] times float32 [M], the row's largest magnitude / 448.

    One launch where ``in_one_launch``; pure torch elsewhere.
    """
    if x.numel() and in_one_launch(x.device):
        from kernels.fp8_triton import launch_quantize_rows

        return launch_quantize_rows(x)
    return quantize_rows_reference(x)


def quantize_swiglu(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """``quantize_rows`` of ``decoder_ops.swiglu``: of ``silu(gate) * up`` for fused rows [M, 2 K], gate first.

    One launch where ``in_one_launch``, which neither writes nor reads the product itself.
    """
    if gate_up.numel() and in_one_launch(gate_up.device):
        from kernels.fp8_triton import launch_quantize_swiglu

        return launch_quantize_swiglu(gate_up)
    return quantize_rows_reference(swiglu(gate_up, gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)))


def quantize_weight(weight: Tensor) -> Fp8Weight:
    """``weight`` [N, K], any floating dtype, rounded to nearest with a scale per output channel."""
    return Fp8Weight(*quantize_rows_reference(weight))


def concatenate(weights: Sequence[Fp8Weight]) -> Fp8Weight:
    """Weights [N, K] of the same K as one, their rows behind one another."""
    codes = torch.cat([weight.codes.view(torch.uint8) for weight in weights]).view(torch.float8_e4m3fn)
    wide = [weight.wide for weight in weights if weight.wide is not None]
    scale = torch.cat([weight.scale for weight in weights])
    return Fp8Weight(codes, scale, torch.cat(wide) if len(wide) == len(weights) else None)


def no_units(device: torch.device) -> str | None:
    """Why ``device`` has no FP8 matrix units that take a scale a row, or None."""
    if device.type != "cuda" or torch.version.hip:
        return f"row-wise FP8 products are NVIDIA's, not {device.type}'s"
    if capability(device) < (9, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 9.0"
    return None


def unsupported(weight: Fp8Weight) -> str | None:
    """Why no FP8 matrix units can multiply by ``weight`` where it is, or None."""
    reason = no_units(weight.codes.device)
    if reason is not None:
        return reason
    if any(size % 16 for size in weight.shape):
        return f"{list(weight.shape)} is not in multiples of 16"
    return None


def multiply_reference(
    codes: Tensor, scale: Tensor, weight: Fp8Weight, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``multiply`` in pure torch, in float32: [M, N] in ``dtype``."""
    wide = to_float(weight.codes) if weight.wide is None else weight.wide
    out = (to_float(codes) @ wide.t()) * scale.unsqueeze(1) * weight.scale
    if bias is not None:
        out += bias.float()
    return out.to(dtype)


def multiply(codes: Tensor, scale: Tensor, weight: Fp8Weight, bias: Tensor | None, out: Tensor) -> Tensor:
    """Rows that ``quantize_rows`` made times ``weight``'s, plus ``bias``, written to ``out`` [M, N].

    On Hopper and newer the FP8 matrix units do it, into bfloat16, for weights whose K and N are multiples of 16;
    everything else runs in pure torch, to the same definition.
    """
    if out.dtype != torch.bfloat16 or not len(out) or unsupported(weight) is not None:
        return out.copy_(multiply_reference(codes, scale, weight, bias, out.dtype))
    found: Tensor = torch._scaled_mm(
        codes,
        weight.codes.t(),
        scale_a=scale.unsqueeze(1),
        scale_b=weight.scale.unsqueeze(0),
        bias=bias,
        out_dtype=out.dtype,
        use_fast_accum=True,
        out=out,
    )
    return found


def fp8_linear(x: Tensor, weight: Fp8Weight, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """``x W^T + bias`` with ``x`` [M, K] rounded to FP8 by rows: [M, N] in ``x``'s dtype, written to ``out`` if it is
    given; where it runs, ``multiply`` says.

    Raises:
        ValueError: ``x`` and ``weight`` do not fit.
    """
    rows, columns = weight.shape
    if x.dim() != 2 or x.shape[1] != columns:
        raise ValueError(
            f"activations {list(x.shape)} do not fit a weight {[rows, columns]}: wanted [M, {columns}]"
        )
    return multiply(*quantize_rows(x), weight, bias, x.new_empty(len(x), rows) if out is None else out)
