"""Attention of one new token over a static cache: everything between the fused q/k/v product and the output product.

Queries and the new key are normed per head and rotated, key and value are filed in the cache, and the queries attend
to every row up to the new one. The rows are divided among programs, as in Flash-Decoding
(https://crfm.stanford.edu/2023/10/12/flashdecoding.html), and a second launch adds their parts. How many rows there
are is read from the device, so a captured graph serves every length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kernels import decoder_ops

try:
    from kernels import decode_attention_triton as _triton
except ImportError:
    _triton = None  # type: ignore[assignment]

SPLITS = 128
"""Programs at most among which the rows of one key/value head are divided, the new row's included."""


@dataclass(frozen=True)
class Partials:
    """What the programs of one attention find before it is added up; one attention at a time uses it."""

    sums: Tensor
    """float32 [heads, splits, head_dim], values weighted but not normalised."""
    stats: Tensor
    """float32 [2, heads, splits]: largest exponent (base 2), sum of weights."""

    @classmethod
    def empty(cls, heads: int, head_dim: int, device: torch.device, splits: int = SPLITS) -> Partials:
        """For ``heads`` query heads."""
        return cls(
            torch.empty(heads, splits, head_dim, device=device), torch.empty(2, heads, splits, device=device)
        )


def decode_attention(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    keys: Tensor,
    values: Tensor,
    slot: Tensor,
    partials: Partials,
    out: Tensor,
) -> Tensor:
    """Attend from one row to the cached rows before it and to itself.

    Args:
        qkv: [1, (heads + 2 * kv) * head_dim], q before k before v.
        q_weight: per-head norm [head_dim]; ``k_weight`` likewise.
        cos: float32 [capacity, head_dim], as is ``sin``; row ``slot`` is the new token's.
        eps: of the norms.
        keys: cache [capacity, kv, head_dim], as is ``values``; row ``slot`` is written.
        slot: int64 [1], how many rows are in the cache.
        partials: scratch.
        out: written, [1, heads * head_dim].
    """
    size = q_weight.shape[0]
    if decoder_ops.uses_triton(qkv) and _triton is not None and size >= 32 and not size & (size - 1):
        _triton.decode_attention(
            qkv, q_weight, k_weight, cos, sin, eps, keys, values, slot,
            partials.sums, partials.stats, out,
        )  # fmt: skip
        return out
    kv = keys.shape[1]
    heads = qkv.shape[1] // size - 2 * kv
    q, k, v = decoder_ops.qk_norm_rope_reference(qkv, q_weight, k_weight, cos[slot], sin[slot], eps, heads)
    keys.index_copy_(0, slot, k)
    values.index_copy_(0, slot, v)
    seen = torch.arange(keys.shape[0], device=slot.device) <= slot
    # The query heads of one key/value head become rows of one small attention: no key is repeated.
    found = functional.scaled_dot_product_attention(
        q.view(1, kv, heads // kv, size),
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=seen[None],
    )
    return out.copy_(found.reshape(1, -1))
