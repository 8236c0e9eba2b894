"""Triton kernels of ``decoder_ops``; importing this module needs triton. Every operand has contiguous rows."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _add_rms_norm(x, delta, weight, out, stride_x, stride_d, stride_o, eps, D: tl.constexpr, BLOCK: tl.constexpr,
                  ADD: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    value = tl.load(x + row * stride_x + column, mask=inside, other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    if ADD:
        value += tl.load(delta + row * stride_d + column, mask=inside, other=0.0).to(tl.float32)
        value = value.to(kind).to(tl.float32)
        tl.store(x + row * stride_x + column, value.to(kind), mask=inside)
    scale = tl.rsqrt(tl.sum(value * value) / D + eps)
    normal = (value * scale).to(kind).to(tl.float32)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * stride_o + column, (normal * w).to(kind), mask=inside)


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """x += delta in place (if given), then RMSNorm into ``out``; rows [M, D]."""
    rows, size = x.shape
    other = x if delta is None else delta
    block = triton.next_power_of_2(size)
    _add_rms_norm[(rows,)](
        x, other, weight, out, x.stride(0), other.stride(0), out.stride(0), eps, D=size, BLOCK=block,
        ADD=delta is not None, num_warps=min(8, max(1, block // 256)),
    )  # fmt: skip
    return out


@triton.jit
def _qk_norm_rope(qkv, q_weight, k_weight, cos, sin, queries, keys, values, rows, stride_qkv, eps,
                  HEADS: tl.constexpr, KV: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    size: tl.constexpr = 2 * HALF
    kind = queries.dtype.element_ty
    lane = tl.arange(0, HALF)
    source = qkv + row * stride_qkv + head * size + lane
    first = tl.load(source).to(tl.float32)
    second = tl.load(source + HALF).to(tl.float32)
    slot = tl.load(rows + row)
    if head >= HEADS + KV:
        target = values + (slot * KV + head - HEADS - KV) * size + lane
        tl.store(target, first.to(kind))
        tl.store(target + HALF, second.to(kind))
    else:
        scale = tl.rsqrt((tl.sum(first * first) + tl.sum(second * second)) / size + eps)
        weight = q_weight if head < HEADS else k_weight
        a = (first * scale).to(kind).to(tl.float32) * tl.load(weight + lane).to(tl.float32)
        b = (second * scale).to(kind).to(tl.float32) * tl.load(weight + HALF + lane).to(tl.float32)
        a, b = a.to(kind).to(tl.float32), b.to(kind).to(tl.float32)
        c = tl.load(cos + row * size + lane)
        s = tl.load(sin + row * size + lane)
        # Both halves of a head turn by the same angles.
        if head < HEADS:
            target = queries + (row * HEADS + head) * size + lane
        else:
            target = keys + (slot * KV + head - HEADS) * size + lane
        tl.store(target, (a * c - b * s).to(kind))
        tl.store(target + HALF, (b * c + a * s).to(kind))


def qk_norm_rope(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float, queries: Tensor,
    keys: Tensor, values: Tensor, rows: Tensor,
) -> None:  # fmt: skip
    """See ``decoder_ops.qk_norm_rope``; one program per row and head."""
    count, heads, size = queries.shape
    kv = keys.shape[1]
    if size & (size - 1):
        raise ValueError(f"head_dim {size} is no power of two")
    _qk_norm_rope[(count, heads + 2 * kv)](
        qkv, q_weight, k_weight, cos, sin, queries, keys, values, rows, qkv.stride(0), eps, HEADS=heads, KV=kv,
        HALF=size // 2, num_warps=1,
    )  # fmt: skip


@triton.jit
def _swiglu(gate_up, out, stride_in, stride_out, I, BLOCK: tl.constexpr):  # noqa: E741
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < I
    kind = out.dtype.element_ty
    gate = tl.load(gate_up + row * stride_in + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride_in + I + column, mask=inside, other=0.0).to(tl.float32)
    active = (gate * tl.sigmoid(gate)).to(kind).to(tl.float32)
    tl.store(out + row * stride_out + column, (active * up).to(kind), mask=inside)


def swiglu(gate_up: Tensor, out: Tensor) -> Tensor:
    """See ``decoder_ops.swiglu``."""
    rows, size = out.shape
    block = 1024
    _swiglu[(rows, triton.cdiv(size, block))](
        gate_up, out, gate_up.stride(0), out.stride(0), size, BLOCK=block, num_warps=4
    )
    return out
