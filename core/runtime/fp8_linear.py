"""A linear layer in FP8, weights and activations, as ``core.quantization.fp8`` makes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from core.formats.compressed_tensors import CODES, SCALE
from core.quantization.scheme import FP8, Scheme
from kernels import fp8
from kernels import linear as kernel
from kernels.fp8 import Fp8Weight


def fp8_path(device: torch.device, reason: str | None) -> str:
    """Name of the implementation that runs FP8 on ``device``; ``reason``: why only the reference can, if so."""
    return "scaled-mm" if reason is None else f"{kernel.REFERENCE}:{device.type}"


class Fp8Linear(nn.Module):
    """``y = W x + b`` with E4M3 codes float8_e4m3fn [out, in] and scales float32 [out, 1], named as in a variant's
    files; every row of x is rounded to E4M3 anew. Casting the module leaves codes and scales alone.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.scheme: Scheme = FP8
        self.out_features, self.in_features = codes.shape
        self.register_buffer(CODES, codes)
        self.register_buffer(SCALE, scale)
        self.register_buffer("bias", bias)
        self.stored_names = (CODES, SCALE)
        self.stored_bytes = codes.nbytes + scale.nbytes
        """What the weight came from the files as."""
        self.wide: Tensor | None = None
        """The codes as float32, after ``hold``."""

    @property
    def parts(self) -> Fp8Weight:
        """The weight as the kernels name it."""
        return Fp8Weight(self.weight, self.weight_scale.view(-1), self.wide)

    def hold(self) -> None:
        """Keep the codes as float32 too: the same numbers, faster where no matrix unit reads codes and memory is no
        matter.
        """
        self.wide = fp8.to_float(self.weight)

    def lay_out(self) -> None:
        """Say so, once, if the device has no matrix units for FP8; there is nothing to be laid out."""
        reason = fp8.unsupported(self.parts)
        if reason is not None:
            kernel.warn_once(
                self.weight.device, f"linear {[self.out_features, self.in_features]} fp8", reason
            )

    @property
    def path(self) -> str:
        """Name of the implementation that runs, for records."""
        return fp8_path(self.weight.device, fp8.unsupported(self.parts))

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffer in self.buffers(recurse=False))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fp8Linear:
        codes, scale = self.weight, self.weight_scale
        super()._apply(fn, recurse)
        self.wide = None
        # From what they were: a cast to another dtype and back would have changed them.
        self.weight, self.weight_scale = codes.to(self.weight.device), scale.to(self.weight.device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        out = fp8.fp8_linear(x.reshape(-1, x.shape[-1]), self.parts, self.bias)
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.scheme.label}"
