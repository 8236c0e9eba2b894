"""A linear layer that keeps its weight as it is stored, or as the kernels read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.errors import CheckpointError, UsageError
from core.quantization.scheme import Scheme
from kernels import cpu_int4
from kernels import linear as kernel
from kernels.cpu_int4 import CpuInt4Weight
from kernels.int8 import Int8Weight
from kernels.nvfp4 import dequantize_nvfp4
from kernels.packing import packed_words
from kernels.reference import dequantize_packed
from kernels.tiles import TiledWeight
from kernels.weights import Int4Weight, Nvfp4Weight


@dataclass(frozen=True)
class LaidOut:
    """Where a linear's weight is once the kernels have it: rows from ``first`` on of a weight that linears may
    share.
    """

    weight: TiledWeight
    first: int


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


class QuantizedLinear(nn.Module):
    """``y = W x + b`` over packed codes; buffers are named, shaped and typed as in the variant's files.

    ``lay_out`` reorders the weight for the kernels of its device and gives the stored buffers up. Casting the module
    to another dtype leaves scales alone: they are part of the stored number format.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None
    weight_global_scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        scheme: Scheme,
        packed: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        bias: Tensor | None,
        global_scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.scheme = scheme
        self.out_features = packed.shape[0]
        self.in_features = scheme.columns(packed.shape[1], scale.shape[1])
        self.register_buffer("weight_packed", packed)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", zero)
        self.register_buffer("weight_global_scale", global_scale)
        self.register_buffer("bias", bias)
        self.held: Tensor | None = None
        """The dequantized weight, if ``hold`` was called."""
        self.laid_out: LaidOut | None = None
        """Where the weight is instead of in the buffers, after ``adopt``."""
        self.for_cpu: CpuInt4Weight | None = None
        """The weight for torch's four-bit product, beside the buffers, after ``pack_for_cpu``."""
        stored = {name: buffer.nbytes for name, buffer in self.named_buffers() if name != "bias"}
        self.stored_names, self.stored_bytes = tuple(stored), sum(stored.values())
        """What the weight came from the files as."""

    @staticmethod
    def check_shapes(
        name: str, scheme: Scheme, rows: int, columns: int, shapes: dict[str, tuple[int, ...]]
    ) -> None:
        """Compare the stored shapes (by buffer name) with what a weight [``rows``, ``columns``] needs.

        Raises:
            CheckpointError: one differs; it is named.
        """
        scheme.check_shape(name, (rows, columns))
        groups = columns // scheme.width(columns)
        wanted = {
            "weight": (rows, columns),
            "weight_packed": (rows, packed_words(columns, scheme.bits)),
            "weight_scale": (rows, groups),
            "weight_zero_point": (packed_words(rows, scheme.bits), groups),
            "weight_global_scale": (1,),
            "bias": (rows,),
        }
        if scheme.kind == "nvfp4":
            wanted["weight_packed"] = (rows, columns // 2)
        for key, shape in shapes.items():
            if shape != wanted[key]:
                raise CheckpointError(
                    f"{name}.{key} has shape {list(shape)}, wanted {list(wanted[key])} for a linear "
                    f"{[rows, columns]} as {scheme.label}"
                )

    def stored(self) -> Int4Weight | Int8Weight | Nvfp4Weight | None:
        """The stored weight as the kernels name it; None if it is of a format that none of them has."""
        if self.weight_global_scale is not None:
            parts = ((self.out_features, float(self.weight_global_scale)),)
            return Nvfp4Weight(self.weight_packed, self.weight_scale, parts)
        if self.scheme.bits == 4 and self.in_features % 8 == 0:
            return Int4Weight(self.weight_packed, self.weight_scale, self.weight_zero_point)
        if self.scheme.bits == 8 and self.in_features % 4 == 0 and self.weight_zero_point is None:
            return Int8Weight(self.weight_packed, self.weight_scale)
        return None

    def adopt(self, weight: TiledWeight, first: int = 0) -> None:
        """Run rows ``first`` and following of ``weight``, which are this linear's, and let go of the buffers."""
        self.laid_out = LaidOut(weight, first)
        for name in ("weight_packed", "weight_scale", "weight_zero_point", "weight_global_scale"):
            setattr(self, name, None)

    def lay_out(self) -> None:
        """Give the weight to the kernels of its device, if there are any that take it; a warning says so if not."""
        if self.laid_out is not None:
            return
        stored = self.stored()
        if stored is None:
            device = self.weight_packed.device
            reason = kernel.no_kernels(device) or f"it is {self.scheme.label}"
            kernel.warn_once(device, f"linear {[self.out_features, self.in_features]}", reason)
            return
        prepared = kernel.prepare(stored)
        if isinstance(prepared, TiledWeight):
            self.adopt(prepared)

    def pack_for_cpu(self) -> None:
        """Keep the weight for torch's four-bit product too, where that can read it: what few rows of bfloat16 take."""
        stored = self.stored()
        if isinstance(stored, Int4Weight) and cpu_int4.unsupported(stored) is None:
            self.for_cpu = cpu_int4.pack(stored)

    @property
    def path(self) -> str:
        """Name of the implementation that runs, for records."""
        if self.laid_out is not None:
            return kernel.path(self.laid_out.weight)
        if self.for_cpu is not None:
            return "torch-int4:cpu"
        if self.held is not None:
            return f"{kernel.REFERENCE}:{self.held.device.type}:held"
        stored = self.stored()
        if isinstance(stored, Int8Weight):
            return kernel.path(stored)
        return f"{kernel.REFERENCE}:{self.weight_packed.device.type}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        if self.laid_out is not None:
            here = self.laid_out.weight.device
            there = fn(torch.empty(0, device=here)).device
            if there != here:
                raise UsageError(
                    f"a linear laid out for {here} cannot move to {there}; load the variant there"
                )
            super()._apply(fn, recurse)
            return self
        scale, global_scale = self.weight_scale, self.weight_global_scale
        self.for_cpu = None
        super()._apply(fn, recurse)
        # From the scales as they were: a cast to a narrower dtype and back would have changed them.
        self.weight_scale = scale.to(self.weight_scale.device)
        if global_scale is not None:
            self.weight_global_scale = global_scale.to(self.weight_scale.device)
        if self.held is not None:
            self.held = fn(self.held)
        return self

    def weight(self) -> Tensor:
        """The weight [out, in] that runs: in the scales' dtype, or float32 for NVFP4."""
        if self.laid_out is not None:
            first = self.laid_out.first
            return self.laid_out.weight.dense()[first : first + self.out_features]
        if self.weight_global_scale is not None:
            return dequantize_nvfp4(self.weight_packed, self.weight_scale, self.weight_global_scale)
        return dequantize_packed(
            self.weight_packed, self.weight_scale, self.weight_zero_point, self.scheme.bits, self.in_features
        )

    def hold(self, dtype: torch.dtype) -> None:
        """Keep the dequantized weight too, in ``dtype``: the same numbers, faster where memory is no
        matter.
        """
        self.held = self.weight().to(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers and of this linear's share of a laid out weight (a held weight does not count)."""
        own = sum(buffer.nbytes for buffer in self.buffers(recurse=False))
        if self.laid_out is None:
            return own
        weight = self.laid_out.weight
        return own + (weight.nbytes + weight.tickets.nbytes) * self.out_features // weight.rows

    def forward(self, x: Tensor) -> Tensor:
        if self.held is not None and self.held.dtype == x.dtype:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return nn.functional.linear(x, self.held, bias)
        if self.laid_out is not None:
            weight, first = self.laid_out.weight, self.laid_out.first
            return kernel.linear_rows(x, weight, first, self.out_features, self.bias)
        if self.for_cpu is not None and x.dtype == torch.bfloat16 and _rows(x) <= cpu_int4.MOST_ROWS:
            return cpu_int4.linear(x, self.for_cpu, self.bias)
        if self.scheme.bits == 8:
            stored = self.stored()
            if stored is not None:
                return kernel.linear(x, stored, self.bias)
        if self.weight_global_scale is not None:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return nn.functional.linear(x, self.weight().to(x.dtype), bias)
        return kernel.quantized_linear(
            x, self.weight_packed, self.weight_scale, self.weight_zero_point, self.bias, self.scheme.bits
        )

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.scheme.label}"
