"""A linear layer that keeps its weight as it is stored."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from core.errors import CheckpointError
from core.quantization.scheme import Scheme
from kernels.linear import quantized_linear
from kernels.nvfp4 import dequantize_nvfp4
from kernels.packing import packed_words
from kernels.reference import dequantize_packed


class QuantizedLinear(nn.Module):
    """``y = W x + b`` over packed codes; buffers are named, shaped and typed as in the variant's files.

    Casting the module to another dtype leaves scales alone: they are part of the stored number format.
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
        self.in_features = scale.shape[1] * scheme.group_size
        self.register_buffer("weight_packed", packed)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", zero)
        self.register_buffer("weight_global_scale", global_scale)
        self.register_buffer("bias", bias)
        self.held: Tensor | None = None
        """The dequantized weight, if ``hold`` was called."""

    @staticmethod
    def check_shapes(
        name: str, scheme: Scheme, rows: int, columns: int, shapes: dict[str, tuple[int, ...]]
    ) -> None:
        """Compare the stored shapes (by buffer name) with what a weight [``rows``, ``columns``] needs.

        Raises:
            CheckpointError: one differs; it is named.
        """
        scheme.check_shape(name, (rows, columns))
        groups = columns // scheme.group_size
        wanted = {
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        scale, global_scale = self.weight_scale, self.weight_global_scale
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
        """Bytes of the buffers as stored (a held weight does not count)."""
        return sum(buffer.nbytes for buffer in self.buffers(recurse=False))

    def forward(self, x: Tensor) -> Tensor:
        if self.held is not None and self.held.dtype == x.dtype:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return nn.functional.linear(x, self.held, bias)
        if self.weight_global_scale is not None:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return nn.functional.linear(x, self.weight().to(x.dtype), bias)
        return quantized_linear(
            x, self.weight_packed, self.weight_scale, self.weight_zero_point, self.bias, self.scheme.bits
        )

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.scheme.label}"
