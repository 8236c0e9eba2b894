"""An embedding that keeps its table as it is stored and unpacks the rows it is asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from core.quantization.scheme import Scheme
from kernels.embedding import gather


class QuantizedEmbedding(nn.Module):
    """Rows of a table of packed symmetric codes; buffers are named, shaped and typed as in the variant's files."""

    weight_packed: Tensor
    weight_scale: Tensor

    def __init__(self, scheme: Scheme, packed: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        """Args:
        scheme: symmetric integers.
        packed: int32 [V, words].
        scale: [V, K/g].
        dtype: of the rows that ``forward`` returns.
        """
        super().__init__()
        self.scheme = scheme
        self.dtype = dtype
        self.embedding_dim = scheme.columns(packed.shape[1], scale.shape[1])
        self.register_buffer("weight_packed", packed)
        self.register_buffer("weight_scale", scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedEmbedding:
        scale = self.weight_scale
        super()._apply(fn, recurse)
        # A cast is one of what comes out; the scales are part of the stored number format.
        self.dtype = self.weight_scale.dtype if self.weight_scale.dtype != scale.dtype else self.dtype
        self.weight_scale = scale.to(self.weight_scale.device)
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., K] of ids [...]."""
        rows = gather(
            ids.flatten(),
            self.weight_packed,
            self.weight_scale,
            self.scheme.bits,
            self.embedding_dim,
            self.dtype,
        )
        return rows.view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.weight_packed.shape[0]}, {self.embedding_dim}, {self.scheme.label}"
