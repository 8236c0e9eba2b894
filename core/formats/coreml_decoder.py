"""A text decoder as Core ML runs it: tensors of fixed meaning, a key/value cache that the program keeps as state.

The interface is that of Apple's own examples of language models: token ids and an additive mask in, logits out, and
the states ``keyCache`` and ``valueCache``. How many tokens the cache holds already is read off the mask's shape.
Weights are what the files hold, in float16 or as codes; what flows between the linears is in float32, for Qwen's
residual stream leaves the range of float16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.quantization.groups import HEAD_NORMS, NORMS

EXPAND = "lance_workbench::expand"
"""The operation that makes a weight of its codes; the converter puts Core ML's compressed constants in its place."""


@torch.library.custom_op(EXPAND, mutates_args=())
def expand(codes: Tensor, scale: Tensor, zero: Tensor | None, table: Tensor | None, bits: int) -> Tensor:
    """``(value - zero) * scale`` [N, K], rounded once to ``scale``'s dtype.

    Args:
        codes: int8 [N, K]; the values themselves, or with a ``table`` indices into it.
        scale: [N, G], of K / G columns each.
        zero: int8 [N, G], or None for zeros.
        table: int8 [2 ** bits], or None.
        bits: what a code takes in the package, 4 or 8; numbers are not changed by it.
    """
    values = codes if table is None else table[codes.int()]
    steps = values.reshape(*scale.shape, -1).to(torch.int16)
    if zero is not None:
        steps = steps - zero.unsqueeze(-1)
    return (steps.to(scale.dtype) * scale.unsqueeze(-1)).reshape(codes.shape)


class Weight(nn.Module):
    """A matrix [N, K] stored in float16."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values: Tensor
        self.register_buffer("values", values)

    def forward(self) -> Tensor:
        return self.values


class Codes(nn.Module):
    """A matrix [N, K] stored as codes, see ``expand``."""

    def __init__(
        self, codes: Tensor, scale: Tensor, zero: Tensor | None, table: Tensor | None, bits: int
    ) -> None:
        super().__init__()
        for name, tensor in (("codes", codes), ("scale", scale), ("zero", zero), ("table", table)):
            self.register_buffer(name, tensor)
        self.bits = bits

    def forward(self) -> Tensor:
        return expand(self.codes, self.scale, self.zero, self.table, self.bits)


@dataclass(frozen=True)
class Sizes:
    """What a decoder needs to know beside its tensors."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    """Tokens that the cache holds."""
    inv_freq: Tensor
    """Rotary frequencies, float32 [head_dim / 2]."""
    rotary_scale: float = 1.0
    """Factor of cosines and sines (YaRN)."""


class Linear(nn.Module):
    """``y = W x + b``, computed in the weight's dtype and handed on in float32."""

    def __init__(self, weight: Weight | Codes, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias: Tensor | None
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight()
        return functional.linear(x.to(weight.dtype), weight, self.bias).float()


class RMSNorm(nn.Module):
    """``w * x / sqrt(mean x^2 + eps)`` over the last dimension in float32 (arXiv 1910.07467)."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", weight)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight.float()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Layer(nn.Module):
    """One decoder layer over a batch of one; it writes its keys and values into its part of the caches."""

    def __init__(
        self, index: int, linears: dict[str, Linear], norms: dict[str, RMSNorm], sizes: Sizes
    ) -> None:
        """Args:
        index: which layer it is, and so which part of the caches is its own.
        linears: by path below the layer (``core.quantization.groups.LINEARS``).
        norms: likewise; head norms where the decoder has them.
        sizes: the decoder's.
        """
        super().__init__()
        self.index, self.sizes = index, sizes
        for path, module in {**linears, **norms}.items():
            self.add_module(path.rpartition(".")[2], module)
        self.head_norms = set(HEAD_NORMS) <= norms.keys()

    def _heads(self, x: Tensor, name: str, heads: int) -> Tensor:
        """Rows [1, n, hidden] through a projection: [1, heads, n, head_dim]."""
        projected: Tensor = self.get_submodule(f"{name}_proj")(x)
        rows = projected.view(1, -1, heads, self.sizes.head_dim)
        if self.head_norms and name != "v":
            rows = self.get_submodule(f"{name}_norm")(rows)
        return rows.transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        keys: Tensor,
        values: Tensor,
        past: int,
        end: int,
    ) -> Tensor:
        """Rows [1, n, hidden], float32, in and out; ``mask`` [1, 1, n * heads / kv_heads, past + n]."""
        sizes = self.sizes
        h = self.get_submodule(NORMS["qkv"])(x)
        q = _rotate(self._heads(h, "q", sizes.heads), cos, sin)
        k = _rotate(self._heads(h, "k", sizes.kv_heads), cos, sin)
        v = self._heads(h, "v", sizes.kv_heads)
        keys[self.index, :, :, past:end, :] = k.to(keys.dtype)
        values[self.index, :, :, past:end, :] = v.to(values.dtype)
        # The queries that share a key head stand below each other, so no key is ever copied.
        shared = q.reshape(1, sizes.kv_heads, -1, sizes.head_dim)
        seen = (cache[self.index, :, :, :end, :] for cache in (keys, values))
        # The converter takes states for float32; the casts, idle in torch, say that they are not.
        q, k, v, mask = (tensor.to(keys.dtype) for tensor in (shared, *seen, mask))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).float()
        heads = out.reshape(1, sizes.heads, -1, sizes.head_dim).transpose(1, 2)
        x = x + self.get_submodule("o_proj")(heads.reshape(1, -1, sizes.heads * sizes.head_dim))
        g = self.get_submodule(NORMS["gate_up"])(x)
        gate, up = (self.get_submodule(f"{name}_proj")(g) for name in ("gate", "up"))
        down: Tensor = self.get_submodule("down_proj")(functional.silu(gate) * up)
        return x + down


class TextDecoder(nn.Module):
    """Embedding, layers, norm and head, and the caches [layers, 1, kv_heads, context, head_dim]."""

    def __init__(
        self,
        embedding: Weight | Codes,
        layers: list[Layer],
        norm: RMSNorm,
        head: Weight | Codes,
        sizes: Sizes,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        """``dtype``: of the caches."""
        super().__init__()
        self.embedding, self.norm, self.head = embedding, norm, head
        self.layers = nn.ModuleList(layers)
        self.sizes = sizes
        shape = (sizes.layers, 1, sizes.kv_heads, sizes.context, sizes.head_dim)
        self.keyCache: Tensor
        self.valueCache: Tensor
        self.register_buffer("keyCache", torch.zeros(shape, dtype=dtype))
        self.register_buffer("valueCache", torch.zeros(shape, dtype=dtype))
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", sizes.inv_freq)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits [1, n, vocabulary] in the head's dtype.

        Args:
            ids: int32 [1, n].
            mask: [1, 1, n, past + n] in the caches' dtype: 0 where a row sees a key, a large negative number elsewhere.
        """
        end = mask.shape[-1]
        past = end - ids.shape[-1]
        angles = torch.arange(past, end).float()[:, None] * self.inv_freq
        both = torch.cat([angles, angles], dim=-1)
        cos, sin = both.cos() * self.sizes.rotary_scale, both.sin() * self.sizes.rotary_scale
        x = functional.embedding(ids, self.embedding()).float()
        rows = mask.repeat(1, 1, self.sizes.heads // self.sizes.kv_heads, 1)
        for layer in self.layers:
            x = layer(x, cos, sin, rows, self.keyCache, self.valueCache, past, end)
        head = self.head()
        return functional.linear(self.norm(x).to(head.dtype), head)
