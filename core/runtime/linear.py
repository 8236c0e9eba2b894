"""A linear layer that keeps its weight as it is stored."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from core.errors import CheckpointError
from core.quantization.scheme import Scheme
from kernels.linear import quantized_linear
from kernels.packing import packed_words
from kernels.reference import dequantize_packed


class QuantizedLinear(nn.Module):
    """``y = W x + b`` over packed codes; buffers are named, shaped and typed as in the variant's files.

    Casting the module to another dtype leaves scales alone: they are part of the stored number format.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        scheme: Scheme,
        packed: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        bias: Tensor | None,
    ) -> None:
        super().__init__()
        self.scheme = scheme
        self.out_features = packed.shape[0]
        self.in_features = scale.shape[1] * scheme.group_size
        self.register_buffer("weight_packed", packed)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", zero)
        self.register_buffer("bias", bias)
        self.held: Tensor | None = None
        """The dequantized weight, if ``hold`` was called."""

    @staticmethod
    def check_shapes(
        name: str, scheme: Scheme, linear: nn.Linear, shapes: dict[str, tuple[int, ...]]
    ) -> None:
        """Compare the stored shapes (by buffer name) with what ``linear`` needs.

        Raises:
            CheckpointError: one differs; it is named.
        """
        rows, columns = linear.out_features, linear.in_features
        scheme.check_shape(name, (rows, columns))
        groups = columns // scheme.group_size
        wanted = {
            "weight_packed": (rows, packed_words(columns, scheme.bits)),
            "weight_scale": (rows, groups),
            "weight_zero_point": (packed_words(rows, scheme.bits), groups),
            "bias": (rows,),
        }
        for key, shape in shapes.items():
            if shape != wanted[key]:
                raise CheckpointError(
                    f"{name}.{key} has shape {list(shape)}, wanted {list(wanted[key])} for a linear "
                    f"{[rows, columns]} as {scheme.label}"
                )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        scale_dtype = self.weight_scale.dtype
        super()._apply(fn, recurse)
        self.weight_scale = self.weight_scale.to(scale_dtype)
        if self.held is not None:
            self.held = fn(self.held)
        return self

    def weight(self) -> Tensor:
        """The weight [out, in] that runs, in the scales' dtype."""
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
        return quantized_linear(
            x, self.weight_packed, self.weight_scale, self.weight_zero_point, self.bias, self.scheme.bits
        )

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.scheme.label}"
