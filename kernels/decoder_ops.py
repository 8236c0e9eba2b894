"""What lies between a decoder layer's matrix products, in few launches: norms with residual, qk-norm with
rotation, SwiGLU.

Each operation has a pure-torch reference and a Triton kernel; the public functions take the kernel on CUDA
tensors of 16 bits and the reference otherwise. Both round at the same places as the model's own modules:
statistics in float32, the normalised value rounded to the activation dtype before its weight is applied.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

try:
    from kernels import decoder_triton as _triton
except ImportError:
    _triton = None  # type: ignore[assignment]

_HALF = (torch.bfloat16, torch.float16)


def uses_triton(x: Tensor) -> bool:
    """Whether these operations run as Triton kernels on ``x``."""
    return _triton is not None and x.is_cuda and x.dtype in _HALF


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``weight * x / sqrt(mean x^2 + eps)`` over the last dimension."""
    wide = x.float()
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normal.to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """RMSNorm of rows x [M, D] with weight [D], written to ``out`` [M, D]."""
    if uses_triton(x):
        return _triton.add_rms_norm(x, None, weight, eps, out)
    return out.copy_(rms_norm_reference(x, weight, eps))


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """Add ``delta`` [M, D] to x [M, D] in place, then RMSNorm the sum into ``out`` [M, D]."""
    if uses_triton(x):
        return _triton.add_rms_norm(x, delta, weight, eps, out)
    x += delta
    return out.copy_(rms_norm_reference(x, weight, eps))


def qk_norm_rope_reference(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys normed per head and rotated, and values, as [M, heads, head_dim] each."""
    size = q_weight.shape[0]
    parts = qkv.view(qkv.shape[0], -1, size)
    kv = (parts.shape[1] - heads) // 2
    q, k, v = parts.split([heads, kv, kv], dim=1)

    def turn(x: Tensor, weight: Tensor) -> Tensor:
        x = rms_norm_reference(x, weight, eps)
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return (x * cos[:, None] + turned * sin[:, None]).to(qkv.dtype)

    return turn(q, q_weight), turn(k, k_weight), v


def qk_norm_rope(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    places: Tensor,
) -> None:
    """Split fused projections, norm and rotate queries and keys, and file keys and values in a cache.

    Args:
        qkv: [M, (heads + 2 * kv) * head_dim], q before k before v.
        q_weight: per-head norm [head_dim]; ``k_weight`` likewise.
        cos: float32 [M, head_dim]; ``sin`` likewise.
        queries: [Q, heads, head_dim]; rows ``places`` are written.
        keys: cache [capacity, kv, head_dim], as is ``values``; rows ``rows`` are written.
        rows: int64 [M].
        places: int64 [M].
    """
    if uses_triton(qkv):
        _triton.qk_norm_rope(qkv, q_weight, k_weight, cos, sin, eps, queries, keys, values, rows, places)
        return
    q, k, v = qk_norm_rope_reference(qkv, q_weight, k_weight, cos, sin, eps, queries.shape[1])
    queries.index_copy_(0, places, q)
    keys.index_copy_(0, rows, k)
    values.index_copy_(0, rows, v)


def swiglu(gate_up: Tensor, out: Tensor) -> Tensor:
    """``silu(gate) * up`` of fused rows [M, 2 * I] (gate first), written to ``out`` [M, I]."""
    if uses_triton(gate_up):
        return _triton.swiglu(gate_up, out)
    gate, up = gate_up.chunk(2, dim=-1)
    return out.copy_(functional.silu(gate) * up)
